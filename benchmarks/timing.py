"""What every benchmark here shares: alternating runs, medians, and a line about the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

from uniformerv2.benchmark.measuring import machine

__all__ = ["alternate", "machine"]


def alternate(functions: Mapping[str, Callable[[], object]], *, repeats: int = 7, inner: int = 3) -> dict[str, float]:
    """Median milliseconds of each function, run in turn A B C A B C ... after one warm-up round.

    Args:
        functions: what to time, by name.
        repeats: counted rounds, at least 5.
        inner: calls per measurement.
    """
    if repeats < 5:
        raise ValueError(f"a median needs at least 5 rounds, got {repeats}")
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(inner):
                function()
            if round_number:
                times[name].append((time.perf_counter() - start) / inner * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}
