"""How good a model is that names several labels of a video: average precision, and F1 at its thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from uniformerv2.data.annotations import Annotation, Damaged, Split, Unreadable
from uniformerv2.data.sources import Classes, read_annotations
from uniformerv2.errors import RecipeError
from uniformerv2.inference.optimize import Backend
from uniformerv2.inference.precision import InferencePrecision
from uniformerv2.machine import WORKERS
from uniformerv2.measuring.evaluation import Scored, Scoring, collect, model_labels, score_all
from uniformerv2.measuring.labels import match_labels
from uniformerv2.measuring.metrics import ClassResult
from uniformerv2.measuring.models import computing, on_rank_device
from uniformerv2.measuring.multilabel_metrics import average_precision, binary_cross_entropy
from uniformerv2.video.views import Views


@dataclass(frozen=True)
class LabelResult(ClassResult):
    """How well the videos that show a class were told from others."""

    threshold: float  # the probability from which on it is named
    average_precision: float | None  # None: no video shows it


@dataclass(frozen=True)
class MultilabelEvaluation:
    """How good a model is on the videos that could be read. Other videos are counted, named and left out.

    Means over classes are over those that a video shows, as for Charades (docs/multilabel.md).
    """

    labels: tuple[str, ...]  # of the model
    thresholds: tuple[float, ...]  # of each, at which F1, precision and recall are measured
    scores: np.ndarray = field(repr=False, compare=False)  # float32 (videos, classes): probabilities over all views
    present: np.ndarray = field(repr=False, compare=False)  # bool (videos, classes): what each shows
    videos: tuple[str, ...]  # paths, in the order of the annotations
    views: Views = Views()
    skipped: tuple[Unreadable, ...] = ()
    damaged: tuple[Damaged, ...] = ()
    precision: InferencePrecision = "fp32"
    renamed: tuple[tuple[str, str], ...] = ()  # (label of the annotations, label of the model)

    @cached_property
    def classes(self) -> tuple[LabelResult, ...]:
        """In the order of the labels."""
        named = self.scores >= np.array(self.thresholds)
        counts = (self.present.sum(0), (named & self.present).sum(0), named.sum(0))
        precisions = [average_precision(*columns) for columns in zip(self.scores.T, self.present.T, strict=True)]
        rows = zip(self.labels, *(count.tolist() for count in counts), self.thresholds, precisions, strict=True)
        return tuple(LabelResult(*row) for row in rows)

    @property
    def mean_average_precision(self) -> float:
        """mAP, in [0, 1]: the mean over the classes that a video shows; 0 where there are none."""
        return _mean([found.average_precision for found in self.classes if found.average_precision is not None])

    @property
    def micro_average_precision(self) -> float:
        """In [0, 1]: of all pairs of a video and a class in one ranking; 0 where no video shows any."""
        return average_precision(self.scores.ravel(), self.present.ravel()) or 0.0

    @property
    def macro_f1(self) -> float:
        """The mean over the classes that a video shows."""
        return _mean([found.f1 or 0.0 for found in self.classes if found.videos])

    @property
    def micro_f1(self) -> float:
        """Of all pairs of a video and a class together."""
        sums = [sum(getattr(found, name) for found in self.classes) for name in ("videos", "correct", "predicted")]
        return ClassResult("", *sums).f1 or 0.0

    @property
    def loss(self) -> float:
        """Binary cross entropy of the averaged probabilities, summed over the classes."""
        return binary_cross_entropy(self.scores, self.present)

    @property
    def summary(self) -> str:
        """A line for people."""
        return f"mAP {self.mean_average_precision:.1%} of {len(self.videos)} held-out videos"

    def to_json(self) -> dict[str, Any]:
        """Everything but the scores of the videos, as JSON has it."""
        fields = asdict(replace(self, scores=np.empty(0), present=np.empty(0)))
        for name in ("scores", "present", "videos", "thresholds"):
            del fields[name]
        figures = ("mean_average_precision", "micro_average_precision", "macro_f1", "micro_f1", "loss")
        rows = [asdict(row) | {"precision": row.precision, "recall": row.recall, "f1": row.f1} for row in self.classes]
        computed = {"evaluated": len(self.videos), **{name: getattr(self, name) for name in figures}, "classes": rows}
        return computed | fields | {"renamed": dict(self.renamed)}


def _mean(shares: Sequence[float]) -> float:
    return math.fsum(shares) / len(shares) if shares else 0.0


def summarise_multilabel(
    labels: Sequence[str], thresholds: Sequence[float], annotations: Sequence[Annotation], scored: Scored, views: Views
) -> MultilabelEvaluation:
    """The evaluation that scores add up to.

    Args:
        labels, thresholds: of the model.
        annotations: all rows.
        scored: of `collect`.
        views: of each video.
    """
    return MultilabelEvaluation(
        labels=tuple(labels),
        thresholds=tuple(thresholds),
        scores=scored.scores,
        present=what_is_present(labels, [annotations[row] for row in scored.rows]),
        videos=tuple(str(annotations[row].path) for row in scored.rows),
        views=views,
        skipped=scored.skipped,
        damaged=scored.damaged,
    )


def what_is_present(labels: Sequence[str], annotations: Sequence[Annotation]) -> np.ndarray:
    """Bool (videos, classes): which of the labels each video has."""
    shown = [{*row.labels} for row in annotations]
    return np.array([[label in some for label in labels] for some in shown], dtype=bool)


def evaluate_multilabel(
    model: str | Path | nn.Module,
    data: str | Path | Sequence[Annotation],
    *,
    root: str | Path | None = None,
    classes: Classes | None = None,
    split: Split = "held-out",
    views: Views = Views(),
    batch_size: int = 8,
    head: str | None = None,
    precision: InferencePrecision | Literal["auto"] = "fp32",
    backend: Backend | Literal["auto"] = "torch",
    device: str = "auto",
    workers: int = WORKERS,
    journal: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> MultilabelEvaluation:
    """Average precision and F1 of a model that names several labels of a video.

    Charades is measured so: mAP over its test videos, `Views(10, 3, "maximum")` (docs/multilabel.md).

    Args:
        model, data, root, classes, split, views, batch_size: as of `evaluate`; a video may have several labels.
        head, precision, backend, device, workers, journal, resume, progress: likewise.

    Raises:
        RecipeError: a model that names one label of a video, for `evaluate`; or as that.
        AnnotationError, CheckpointError, VideoError: as `evaluate`.
    """
    model = on_rank_device(model, device=device, head=head)
    if not model.thresholds:
        raise RecipeError("the model names one label of a video: evaluate measures it")
    read = read_annotations(data, root=root, classes=classes, split=split, several_labels=True)
    rows, renamed = match_labels(read, model_labels(model))
    chosen = computing(model, precision=precision, backend=backend)
    options: Any = {"workers": workers, "journal": journal, "resume": resume, "progress": progress}
    results = score_all(model, chosen, rows, Scoring(views, batch_size), **options)
    found = summarise_multilabel(model.labels, model.thresholds, rows, collect(rows, results), views)
    return replace(found, precision=chosen.precision, renamed=tuple(renamed.items()))
