"""Curves prepared for drawing, on a page or in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

Points = Sequence[tuple[float, float]]  # (epochs, value)


def averages(line: Points, limit: int) -> list[tuple[float, float]]:
    """At most `limit` points: means of neighbouring points, equally many for each mean but the last."""
    step = points_per_average(line, limit)
    parts = [line[first : first + step] for first in range(0, len(line), step)]
    return [(math.fsum(x for x, _ in part) / len(part), math.fsum(y for _, y in part) / len(part)) for part in parts]


def points_per_average(line: Sequence[object], limit: int) -> int:
    """How many points are averaged into each of `averages`."""
    return max(1, math.ceil(len(line) / limit))


def last_epoch(lines: Sequence[Points]) -> int:
    """End of an axis that begins at 0 and holds all points, at least 1."""
    return max([1, *(math.ceil(x) for line in lines for x, _ in line)])


def round_top(lines: Sequence[Points]) -> float:
    """End of an axis that begins at 0 and holds all values: 1, 2, 4, 6 or 8 times a power of ten."""
    largest = max([1e-9, *(y for line in lines for _, y in line)])
    power = 10.0 ** math.floor(math.log10(largest))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= largest * (1 - 1e-9))
