"""What an evaluation measures, out of the ranking of each video; as data and as files."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from uniformerv2.atomic import write_text
from uniformerv2.data.annotations import Annotation, Damaged, Unreadable
from uniformerv2.data.tables import write_table
from uniformerv2.inference.precision import InferencePrecision
from uniformerv2.measuring.published_figures import Published
from uniformerv2.video.views import Views
from uniformerv2.weights.checkpoint import run_checkpoint

TOP = 5  # classes that are kept of a video's ranking, and that top-5 accuracy accepts
BINS = 15  # of the calibration error
WORST = 10  # pairs of confused classes that are reported


@dataclass(frozen=True)
class VideoResult:
    """The ranking of one video."""

    path: str
    label: str  # the right one, as the model spells it
    labels: tuple[str, ...]  # the five most likely classes, best first
    scores: tuple[float, ...]  # their probabilities, averaged over the views
    row: int = 0  # its position in the annotations, from 0


@dataclass(frozen=True)
class ClassAccuracy:
    """How many videos of a class were recognised."""

    label: str
    videos: int
    correct: int

    @property
    def top1(self) -> float | None:
        """In [0, 1]; None for a class without videos."""
        return self.correct / self.videos if self.videos else None


@dataclass(frozen=True)
class Confusion:
    """How many videos of a class were taken for another class."""

    label: str
    taken_for: str
    videos: int


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on the videos that could be read. Other videos are counted, named and left out."""

    top1: float  # in [0, 1]
    top5: float  # in [0, 1]
    loss: float  # cross entropy of the averaged probabilities
    views: Views
    classes: tuple[ClassAccuracy, ...]  # in the order of the model's labels
    videos: tuple[VideoResult, ...]  # in the order of the annotations, as `skipped`
    skipped: tuple[Unreadable, ...]
    damaged: tuple[Damaged, ...] = ()
    precision: InferencePrecision = "fp32"
    warning: str = ""  # one line where the labels of the model seem to be in another order than its classifier
    renamed: tuple[tuple[str, str], ...] = ()  # (label of the annotations, label of the model)
    published: Published | None = None  # figures of the checkpoint, where it is a published one
    annotations: tuple[Annotation, ...] = field(default=(), repr=False, compare=False)  # under the model's labels

    @property
    def correct(self) -> int:
        return sum(row.correct for row in self.classes)

    @property
    def mean_class_accuracy(self) -> float:
        """In [0, 1]: the mean of the accuracies of those classes that have videos."""
        shares = [row.top1 for row in self.classes if row.top1 is not None]
        return math.fsum(shares) / len(shares)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, in [0, 1], of the most likely class (Guo et al., ICML 2017, equation 3).

        The videos are sorted by the probability p of their most likely class into 15 bins of equal width,
        (0, 1/15], (1/15, 2/15] and so on. Each bin counts by its share of the videos; its error is the difference
        between its accuracy and its mean p.
        """
        excess = [0.0] * BINS  # of the right answers over the probabilities
        for video in self.videos:
            confidence = min(video.scores[0], 1.0)
            excess[max(math.ceil(confidence * BINS) - 1, 0)] += (video.labels[0] == video.label) - confidence
        return math.fsum(map(abs, excess)) / len(self.videos)

    @property
    def confusions(self) -> tuple[Confusion, ...]:
        """The ten most frequent pairs of confused classes; equally frequent ones in the order of the labels."""
        pairs = Counter((video.label, video.labels[0]) for video in self.videos if video.label != video.labels[0])
        index = {row.label: number for number, row in enumerate(self.classes)}
        worst = sorted(pairs.items(), key=lambda pair: (-pair[1], index[pair[0][0]], index[pair[0][1]]))
        return tuple(Confusion(*names, videos) for names, videos in worst[:WORST])

    def to_json(self) -> dict[str, Any]:
        """Everything but the annotations, as JSON has it."""
        fields = asdict(self)
        del fields["annotations"]
        fields["classes"] = [asdict(row) | {"top1": row.top1} for row in self.classes]
        fields["renamed"] = dict(self.renamed)
        computed = {
            "evaluated": len(self.videos),
            "correct": self.correct,
            "mean_class_accuracy": self.mean_class_accuracy,
            "calibration_error": self.calibration_error,
            "confusions": [asdict(pair) for pair in self.confusions],
        }
        return computed | fields


def class_accuracies(labels: Sequence[str], videos: Iterable[VideoResult]) -> tuple[ClassAccuracy, ...]:
    """The accuracy of each class, in the order of the labels."""
    counts, correct = Counter[str](), Counter[str]()
    for video in videos:
        counts[video.label] += 1
        correct[video.label] += video.label == video.labels[0]
    return tuple(ClassAccuracy(label, counts[label], correct[label]) for label in labels)


def default_output(checkpoint: Path, data: Path, *, views: Views, head: str | None = None) -> Path:
    """CHECKPOINT[.HEAD].DATA.CLIPSxCROPS.json: beside a checkpoint, in the folder of a run, else in the current one."""
    file = run_checkpoint(checkpoint) or checkpoint
    folder, name = (file.parent, file.stem) if file.is_file() else (Path(), "-".join(file.parts))
    if file.is_dir():
        folder, name = file.absolute().parent, file.absolute().name
    place = data.absolute()
    parts = [name, *([head] if head else []), place.name if place.is_dir() else place.stem]
    return folder / f"{'.'.join(parts)}.{views.clips}x{views.crops}.json"


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
