"""The classes of a long video, window by window, as data and as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uniformerv2.atomic import whole_file
from uniformerv2.data.tables import csv_writer, ranked_columns
from uniformerv2.errors import RecipeError

Array = np.ndarray[Any, np.dtype[Any]]


class Moment(NamedTuple):
    """One window and its most likely classes."""

    start: float  # seconds
    end: float
    labels: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Timeline:
    """The scores of all windows of a video, in order of time."""

    video: str
    labels: tuple[str, ...]  # of all classes
    start: Array  # float64 (windows): seconds
    end: Array  # float64 (windows): seconds
    scores: Array  # float32 (windows, classes): probabilities

    def moments(self, *, top_k: int | None = 5) -> Iterator[Moment]:
        """Each window with its most likely classes. Raises RecipeError for a `top_k` below 1."""
        check_top_k(top_k)
        for start, end, scores in zip(self.start, self.end, self.scores, strict=True):
            classes = np.argsort(-scores, kind="stable")[:top_k]
            labels = tuple(self.labels[number] for number in classes)
            yield Moment(float(start), float(end), labels, tuple(scores[classes].tolist()))

    def write_table(self, path: Path, *, top_k: int | None = 5) -> None:
        """Write the most likely classes of each window as CSV, whole or not at all.

        Columns: start, end, label1, score1, ... to `top_k`.
        """
        places = len(self.labels) if top_k is None else min(top_k, len(self.labels))
        with (
            whole_file(path) as partial,
            partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            write = csv_writer(file)
            write(["start", "end", *ranked_columns(places)])
            for moment in self.moments(top_k=top_k):
                pairs = zip(moment.labels, moment.scores, strict=True)
                cells = [cell for label, score in pairs for cell in (label, f"{score:.6f}")]
                write([f"{moment.start:.3f}", f"{moment.end:.3f}", *cells])


def timeline_files(folder: Path, videos: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Where the table and the picture of each video are written: NAME.csv and NAME.svg in a folder.

    Raises:
        RecipeError: several videos have one name.
    """
    for name, count in Counter(video.stem for video in videos).items():
        if count > 1:
            raise RecipeError(f"{count} videos would be written to {folder / name}.csv; give one at a time")
    return [(folder / f"{video.stem}.csv", folder / f"{video.stem}.svg") for video in videos]


def check_top_k(top_k: int | None) -> None:
    """Raise RecipeError for a number of classes below 1."""
    if top_k is not None and top_k < 1:
        raise RecipeError(f"top_k must be at least 1, got {top_k}")
