"""The evaluation of a classifier: as data, and as files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from uniformerv2.atomic import whole_file, write_text
from uniformerv2.data.annotations import Annotation, Damaged, Unreadable
from uniformerv2.data.tables import PARQUET_SUFFIXES, TABLE_SUFFIXES, check_suffix, ranked_columns, write_table
from uniformerv2.inference.precision import InferencePrecision
from uniformerv2.measuring.metrics import (
    Averages,
    ClassResult,
    averages,
    calibration_error,
    class_results,
    confusion_matrix,
    cross_entropy,
    top_k_accuracy,
)
from uniformerv2.measuring.published_figures import Published
from uniformerv2.video.views import Views
from uniformerv2.weights.checkpoint import run_checkpoint

TOP = 5  # classes that are kept of a video's ranking, and that top-5 accuracy accepts
WORST = 10  # pairs of confused classes that are reported
PREDICTION_FORMATS = TABLE_SUFFIXES | {".npz"}


@dataclass(frozen=True)
class VideoResult:
    """The ranking of one video."""

    path: str
    label: str  # the right one, as the model spells it
    labels: tuple[str, ...]  # the five most likely classes, best first
    scores: tuple[float, ...]  # their probabilities, averaged over the views
    row: int = 0  # its position in the annotations, from 0


@dataclass(frozen=True)
class Confusion:
    """How many videos of a class were taken for another class."""

    label: str
    taken_for: str
    videos: int


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on the videos that could be read. Other videos are counted, named and left out."""

    labels: tuple[str, ...]  # of the model
    scores: np.ndarray = field(repr=False, compare=False)  # float32 (videos, classes): probabilities over all views
    videos: tuple[VideoResult, ...]  # in the order of the annotations, as `skipped`
    views: Views = Views()
    skipped: tuple[Unreadable, ...] = ()
    damaged: tuple[Damaged, ...] = ()
    precision: InferencePrecision = "fp32"
    warning: str = ""  # one line where the labels of the model seem to be in another order than its classifier
    renamed: tuple[tuple[str, str], ...] = ()  # (label of the annotations, label of the model)
    published: Published | None = None  # figures of the checkpoint, where it is a published one
    annotations: tuple[Annotation, ...] = field(default=(), repr=False, compare=False)  # under the model's labels

    @cached_property
    def _scored(self) -> tuple[Tensor, Tensor]:
        """Scores (videos, classes), and the numbers of the right classes (videos)."""
        numbers = {label: number for number, label in enumerate(self.labels)}
        return torch.from_numpy(self.scores), torch.tensor([numbers[video.label] for video in self.videos])

    @property
    def top1(self) -> float:
        """In [0, 1]."""
        return top_k_accuracy(*self._scored)

    @property
    def top5(self) -> float:
        """In [0, 1]."""
        return top_k_accuracy(*self._scored, k=TOP)

    @property
    def loss(self) -> float:
        """Cross entropy of the averaged probabilities."""
        return cross_entropy(*self._scored)

    @property
    def calibration_error(self) -> float:
        """See `metrics.calibration_error`."""
        return calibration_error(*self._scored)

    @cached_property
    def confusion_matrix(self) -> np.ndarray:
        """int64 (right class, predicted class): videos. Classes in the order of the labels."""
        scores, targets = self._scored
        return confusion_matrix(scores, targets).numpy()

    @cached_property
    def classes(self) -> tuple[ClassResult, ...]:
        """In the order of the labels."""
        return class_results(self.labels, torch.from_numpy(self.confusion_matrix))

    @property
    def correct(self) -> int:
        return sum(row.correct for row in self.classes)

    @property
    def macro(self) -> Averages:
        """Of the classes that have videos, which count alike."""
        return averages(self.classes)

    @property
    def weighted(self) -> Averages:
        """Of the classes, by the number of their videos."""
        return averages(self.classes, weighted=True)

    @property
    def mean_class_accuracy(self) -> float:
        """In [0, 1]: the mean of the accuracies of those classes that have videos, which is the macro recall."""
        return self.macro.recall

    @property
    def confusions(self) -> tuple[Confusion, ...]:
        """The ten most frequent pairs of confused classes; equally frequent ones in the order of the labels."""
        wrong = self.confusion_matrix.copy()
        np.fill_diagonal(wrong, 0)
        worst = sorted(zip(*wrong.nonzero(), strict=True), key=lambda place: -wrong[place])[:WORST]
        return tuple(Confusion(self.labels[i], self.labels[j], int(wrong[i, j])) for i, j in worst)

    @property
    def summary(self) -> str:
        """A line for people."""
        return f"{self.correct} of {len(self.videos)} held-out videos right"

    def to_json(self) -> dict[str, Any]:
        """Everything but scores and annotations, as JSON has it."""
        fields = asdict(replace(self, scores=np.empty(0), annotations=()))
        del fields["annotations"], fields["scores"]
        computed = {
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "evaluated": len(self.videos),
            "correct": self.correct,
            "mean_class_accuracy": self.mean_class_accuracy,
            "macro": asdict(self.macro),
            "weighted": asdict(self.weighted),
            "calibration_error": self.calibration_error,
            "confusions": [asdict(pair) for pair in self.confusions],
            "confusion_matrix": self.confusion_matrix.tolist(),
            "classes": [
                asdict(row) | {"precision": row.precision, "recall": row.recall, "f1": row.f1} for row in self.classes
            ],
        }
        return computed | fields | {"renamed": dict(self.renamed)}


def default_output(checkpoint: Path, data: Path, *, views: Views | None = None, head: str | None = None) -> Path:
    """CHECKPOINT[.HEAD].DATA[.CLIPSxCROPS].json: beside a checkpoint, in a run's folder, else in the current one."""
    file = run_checkpoint(checkpoint) or checkpoint
    folder, name = (file.parent, file.stem) if file.is_file() else (Path(), "-".join(file.parts))
    if file.is_dir():
        folder, name = file.absolute().parent, file.absolute().name
    place = data.absolute()
    parts = [name, *([head] if head else []), place.name if place.is_dir() else place.stem]
    parts += [f"{views.clips}x{views.crops}"] if views else []
    return folder / f"{'.'.join(parts)}.json"


class Writable(Protocol):
    """An evaluation of any kind."""

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""


def write_evaluation(target: Path, result: Writable) -> None:
    """Write everything as JSON, whole or not at all."""
    write_text(target, json.dumps(result.to_json(), indent=2) + "\n")


def write_confusion(target: Path, result: Evaluation) -> None:
    """Write the confusion matrix as a table, whole or not at all: a row and a column for each class, by their labels.

    Args:
        target: CSV, or Parquet by the suffix .parquet or .pq.
        result: of `evaluate`.

    Raises:
        AnnotationError: Parquet without pyarrow, or there is no folder to write to.
    """
    rows = ([label, *counts] for label, counts in zip(result.labels, result.confusion_matrix.tolist(), strict=True))
    write_table(target, {"": str, **dict.fromkeys(result.labels, int)}, rows)


def write_predictions(target: Path, result: Evaluation) -> None:
    """Write what the model says of every annotation, whole or not at all; docs/evaluation.md lists what is in it.

    Args:
        target: CSV with the five most likely classes, or Parquet or .npz with the scores of all classes too.
        result: of `evaluate`.

    Raises:
        RecipeError: another suffix.
        AnnotationError: Parquet without pyarrow, or there is no folder to write to.
    """
    check_suffix(target, PREDICTION_FORMATS)
    if target.suffix.lower() == ".npz":
        with whole_file(target) as partial, partial.open("wb") as file:
            np.savez(file, **_arrays(result))  # type: ignore[arg-type]
        return
    columns: dict[str, type] = {"path": str, "label": str, "start": float, "end": float}
    columns |= ranked_columns(TOP) | {"error": str}
    whole = target.suffix.lower() in PARQUET_SUFFIXES
    found = {video.row: (video, scores) for video, scores in zip(result.videos, result.scores, strict=True)}
    errors = {video.row: video.reason for video in result.skipped}

    def cells() -> Iterator[list[object]]:
        for number, row in enumerate(result.annotations):
            video, scores = found.get(number, (None, None))
            pairs = zip(video.labels, video.scores, strict=True) if video else ()
            guesses: list[object] = [cell for pair in pairs for cell in pair]
            guesses += [None] * (2 * TOP - len(guesses))
            yield [str(row.path), row.label, row.start, row.end, *guesses, errors.get(number), *([scores] * whole)]

    columns |= {"scores": list} if whole else {}
    write_table(target, columns, cells(), metadata={"classes": json.dumps(result.labels)})


def _arrays(result: Evaluation) -> dict[str, np.ndarray]:
    rows = result.annotations
    scores = np.full((len(rows), len(result.labels)), np.nan, dtype=np.float32)
    scores[[video.row for video in result.videos]] = result.scores
    errors = {video.row: video.reason for video in result.skipped}
    return {
        "paths": np.array([str(row.path) for row in rows], dtype=np.str_),
        "labels": np.array([row.label for row in rows], dtype=np.str_),
        "start": np.array([row.start for row in rows], dtype=np.float64),  # NaN where there is none
        "end": np.array([row.end for row in rows], dtype=np.float64),
        "errors": np.array([errors.get(number, "") for number in range(len(rows))], dtype=np.str_),
        "classes": np.array(result.labels, dtype=np.str_),
        "scores": scores,
    }
