"""An evaluation as files: everything as JSON, and a table with a row for every video."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from uniformerv2.atomic import write_text
from uniformerv2.data.annotations import Unreadable
from uniformerv2.data.tables import write_table
from uniformerv2.measuring.metrics import TOP, Evaluation, VideoResult
from uniformerv2.video.views import Views


def default_output(checkpoint: Path, data: Path, *, views: Views, head: str | None = None) -> Path:
    """CHECKPOINT[.HEAD].DATA.CLIPSxCROPS.json beside the checkpoint."""
    parts = [checkpoint.stem, *([head] if head else []), data.stem, f"{views.clips}x{views.crops}"]
    return checkpoint.with_name(".".join([*parts, "json"]))


def write_evaluation(target: Path, result: Evaluation) -> None:
    """Write everything as JSON, whole or not at all."""
    write_text(target, json.dumps(result.to_json(), indent=2) + "\n")


def write_predictions(target: Path, result: Evaluation) -> None:
    """Write a table with a row for every annotation, whole or not at all.

    Columns: path, label (as the model spells it), start, end (seconds, as annotated), label1, score1 (the most likely
    class and its probability) to label5, score5, and error (why the video could not be read; the others are empty).

    Args:
        target: CSV, or Parquet by the suffix .parquet or .pq.
        result: of `evaluate`.

    Raises:
        AnnotationError: Parquet without pyarrow, or there is no folder to write to.
    """
    ranked = [(f"label{place}", f"score{place}") for place in range(1, TOP + 1)]
    columns = {"path": str, "label": str, "start": float, "end": float}
    columns |= {name: kind for pair in ranked for name, kind in zip(pair, (str, float), strict=True)}
    found: dict[int, VideoResult | Unreadable] = {video.row: video for video in result.videos}
    found |= {video.row: video for video in result.skipped}

    def cells() -> Iterator[list[object]]:
        for number, row in enumerate(result.annotations):
            video = found[number]
            guesses: list[object] = []
            if isinstance(video, VideoResult):
                guesses = [cell for pair in zip(video.labels, video.scores, strict=True) for cell in pair]
            guesses += [None] * (2 * TOP - len(guesses))
            error = video.reason if isinstance(video, Unreadable) else None
            yield [video.path, row.label, row.start, row.end, *guesses, error]

    write_table(target, columns | {"error": str}, cells())
