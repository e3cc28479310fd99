"""What a model answers for videos: as data, and as files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uniformerv2.atomic import whole_file
from uniformerv2.data.annotations import Annotation, Unreadable
from uniformerv2.data.tables import TABLE_SUFFIXES, check_suffix, ranked_columns, write_table
from uniformerv2.errors import RecipeError

FORMATS = TABLE_SUFFIXES | {".jsonl"}


@dataclass(frozen=True)
class Prediction:
    """The most likely classes of a video, best first; of a model that names several labels, those that it shows."""

    video: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]  # probabilities, averaged over the views; those of all classes sum to 1, unless several
    label: str | None  # the answer, the most likely class; None: "none of these", as it is below the threshold


Outcome = tuple[Annotation, Prediction | Unreadable]


def check_threshold(threshold: float) -> None:
    """Raises RecipeError for a probability outside [0, 1]."""
    if not 0 <= threshold <= 1:
        raise RecipeError(f"the threshold is a probability in [0, 1], got {threshold:g}")


def outcome_json(row: Annotation, found: Prediction | Unreadable) -> dict[str, Any]:
    """A prediction, or {"video", "error"}; with "start" and "end" (seconds, or None) where the row has either."""
    interval = {"start": row.start, "end": row.end} if row.interval != (None, None) else {}
    result = {"video": found.path, "error": found.reason} if isinstance(found, Unreadable) else asdict(found)
    return result | interval


def save_predictions(path: Path, outcomes: Iterable[Outcome], *, places: int) -> None:
    """Write a row for each video, in their order, whole or not at all; docs/inference.md lists what is in it.

    Args:
        path: .csv, .parquet (or .pq) or .jsonl.
        outcomes: taken as they are needed.
        places: how many of the most likely classes a table has.

    Raises:
        RecipeError: another suffix.
        AnnotationError: Parquet without pyarrow, or there is no folder to write to.
    """
    check_suffix(path, FORMATS)
    if path.suffix.lower() == ".jsonl":
        with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(outcome_json(*outcome)) + "\n" for outcome in outcomes)
        return
    columns: dict[str, type] = {"path": str, "label": str, "start": float, "end": float}
    write_table(path, columns | ranked_columns(places) | {"error": str}, _cells(outcomes, places))


def _cells(outcomes: Iterable[Outcome], places: int) -> Iterator[list[object]]:
    for row, found in outcomes:
        if isinstance(found, Unreadable):
            yield [found.path, None, row.start, row.end, *[None] * (2 * places), found.reason]
        else:
            ranked = [cell for pair in zip(found.labels, found.scores, strict=True) for cell in pair][: 2 * places]
            yield [found.video, found.label, row.start, row.end, *ranked, *[None] * (2 * places - len(ranked)), None]
