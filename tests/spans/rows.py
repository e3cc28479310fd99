"""Labels as files, and what tests of formats compare."""

from __future__ import annotations

from pathlib import Path

from uniformerv2.spans.files import read_rows
from uniformerv2.spans.frames import FrameTimes

UNEVEN = FrameTimes((0.0, 0.04, 0.1, 0.5, 0.54, 0.9), 1.0, 6.0, 64, 48)
"""Six frames at a rate that changes."""


def seconds(file: Path, format: str | None = None) -> list[tuple[object, ...]]:
    """Video, label, start and end of the rows that are not skipped."""
    rows = [row for row in read_rows(file, format) if not row.skip]
    assert not any(row.wrong for row in rows), rows
    return [(row.names[0], row.label, *row.times(lambda: UNEVEN)) for row in rows]


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return path
