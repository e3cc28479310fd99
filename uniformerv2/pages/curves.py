"""Curves made ready to be drawn, on a page or in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

Points = Sequence[tuple[float, float]]  # (epochs, value)


def averages(line: Points, most: int) -> list[tuple[float, float]]:
    """At most so many points: means of runs of neighbours, which all have the same length but for the last."""
    step = neighbours(line, most)
    parts = [line[first : first + step] for first in range(0, len(line), step)]
    return [(math.fsum(x for x, _ in part) / len(part), math.fsum(y for _, y in part) / len(part)) for part in parts]


def neighbours(line: Sequence[object], most: int) -> int:
    """How many points each of the `averages` stands for."""
    return max(1, math.ceil(len(line) / most))


def last_epoch(lines: Sequence[Points]) -> int:
    """Where an axis ends that begins at 0 and holds all points, at least 1."""
    return max([1, *(math.ceil(x) for line in lines for x, _ in line)])


def round_top(lines: Sequence[Points]) -> float:
    """Where an axis ends that begins at 0 and holds all values: 1, 2, 4, 6 or 8 times a power of ten."""
    largest = max([1e-9, *(y for line in lines for _, y in line)])
    power = 10.0 ** math.floor(math.log10(largest))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= largest * (1 - 1e-9))
