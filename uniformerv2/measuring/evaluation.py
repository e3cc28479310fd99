"""How good a model is: accuracy over several views of every video, in one process or in many, and what it was given."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from uniformerv2.data.annotations import Annotation, Damaged, Unreadable
from uniformerv2.data.batch import Batch
from uniformerv2.data.dataset import VideoDataset, make_loader
from uniformerv2.data.tables import write_table
from uniformerv2.device import model_device
from uniformerv2.distributed import current_ranks
from uniformerv2.errors import AnnotationError, CheckpointError, RecipeError, VideoError
from uniformerv2.measuring.class_order import order_warning
from uniformerv2.measuring.ledger import Ledger, Record, videos_digest, weights_digest
from uniformerv2.measuring.published_figures import Published, published_figure
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.video.views import Average, Views
from uniformerv2.weights.labels import matching

if TYPE_CHECKING:
    from rich.console import Console
    from torch.utils.data import DataLoader

TOP = 5  # classes that are kept of a video's ranking, and that top-5 accuracy accepts
BINS = 15  # of the calibration error
WORST = 10  # pairs of confused classes that are told


# --- what is found


@dataclass(frozen=True)
class VideoResult:
    """What a model said of one video."""

    path: str
    label: str  # the right one, as the model spells it
    labels: tuple[str, ...]  # the five most likely classes, best first
    scores: tuple[float, ...]  # their probabilities, averaged over the views
    row: int = 0  # place among the annotations


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
    """So many videos of a class were taken for another."""

    label: str
    taken_for: str
    videos: int


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on the videos that could be read. The others are counted and named, and nothing else."""

    top1: float  # in [0, 1]
    top5: float  # in [0, 1]
    loss: float  # cross entropy of the averaged probabilities
    num_clips: int  # views are clips x crops
    num_crops: int
    classes: tuple[ClassAccuracy, ...]  # in the order of the model's labels
    videos: tuple[VideoResult, ...]  # in the order of the annotations, as `skipped`
    skipped: tuple[Unreadable, ...]
    warning: str = ""  # one line where the labels of the model seem to be in another order than its classifier
    average: Average = "probabilities"  # what was averaged over the views
    damaged: tuple[Damaged, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()  # (label of the annotations, what the model calls it)
    published: Published | None = None  # what was published of this checkpoint, where it is a published one

    @property
    def correct(self) -> int:
        return sum(one.correct for one in self.classes)

    @property
    def mean_class_accuracy(self) -> float:
        """In [0, 1]: the mean of the accuracies of those classes that have videos."""
        shares = [one.top1 for one in self.classes if one.top1 is not None]
        return math.fsum(shares) / len(shares)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, in [0, 1], of the most likely class (Guo et al., ICML 2017, equation 3).

        The videos are sorted by the probability p of their most likely class into 15 bins of equal width,
        (0, 1/15], (1/15, 2/15] and so on. Each bin counts by its share of the videos; it errs by the difference
        between its accuracy and its mean p.
        """
        excess = [0.0] * BINS  # of the right answers over the probabilities
        for video in self.videos:
            confidence = min(video.scores[0], 1.0)
            excess[max(math.ceil(confidence * BINS) - 1, 0)] += (video.labels[0] == video.label) - confidence
        return math.fsum(map(abs, excess)) / len(self.videos)

    @property
    def confusions(self) -> tuple[Confusion, ...]:
        """The ten pairs of classes that were confused most often; of equal ones, in the order of the labels."""
        pairs = Counter((one.label, one.labels[0]) for one in self.videos if one.label != one.labels[0])
        place = {one.label: number for number, one in enumerate(self.classes)}
        worst = sorted(pairs.items(), key=lambda pair: (-pair[1], place[pair[0][0]], place[pair[0][1]]))
        return tuple(Confusion(*names, videos) for names, videos in worst[:WORST])

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        fields = asdict(self)
        fields["classes"] = [asdict(one) | {"top1": one.top1} for one in self.classes]
        fields["damaged"] = [{"path": video.path, "reason": video.reason} for video in self.damaged]
        fields["renamed"] = dict(self.renamed)
        counts = {"views": self.num_clips * self.num_crops, "evaluated": len(self.videos), "correct": self.correct}
        computed = {
            "mean_class_accuracy": self.mean_class_accuracy,
            "calibration_error": self.calibration_error,
            "confusions": [asdict(one) for one in self.confusions],
        }
        return counts | computed | fields


def write_predictions(target: Path, result: Evaluation, annotations: Sequence[Annotation]) -> None:
    """Write a table with a row for every annotation, whole or not at all.

    Columns: path, label (as the model spells it), start, end (seconds, as annotated), label1, score1 (the most likely
    class and its probability) to label5, score5, and error (why the video could not be read; the others are empty).

    Args:
        target: CSV, or Parquet by the suffix .parquet or .pq.
        result: of `evaluate`.
        annotations: what it was given.

    Raises:
        AnnotationError: Parquet without pyarrow, or there is no folder to write to.
    """
    ranked = [(f"label{place}", f"score{place}") for place in range(1, TOP + 1)]
    columns = {"path": str, "label": str, "start": float, "end": float}
    columns |= {name: kind for pair in ranked for name, kind in zip(pair, (str, float), strict=True)}
    names = dict(result.renamed)
    found: dict[int, VideoResult | Unreadable] = {one.row: one for one in result.videos}
    found |= {one.row: one for one in result.skipped}

    def cells() -> Iterator[list[object]]:
        for number, row in enumerate(annotations):
            one = found[number]
            guesses: list[object] = []
            if isinstance(one, VideoResult):
                guesses = [cell for pair in zip(one.labels, one.scores, strict=True) for cell in pair]
            guesses += [None] * (2 * TOP - len(guesses))
            error = one.reason if isinstance(one, Unreadable) else None
            yield [one.path, names.get(row.label, row.label), row.start, row.end, *guesses, error]

    write_table(target, columns | {"error": str}, cells())


# --- how it is found


def evaluate(
    model: UniFormerV2,
    annotations: Sequence[Annotation],
    *,
    views: Views = Views(),
    batch_size: int = 8,
    workers: int = 0,
    journal: Path | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> Evaluation:
    """Multi-view accuracy: what a model says of several views of a video is averaged.

    In a process group of torch.distributed the processes share the videos, and each returns the whole result. As the
    same videos are always computed together, whoever computes them, it does not depend on how many there are.

    Args:
        model: computes in float32 on the device that it is on, and is left in eval mode.
        annotations: the videos; their labels must be among the model's, be it in another spelling.
        views: clips x crops of each video, and what is averaged over them.
        batch_size: clips that the model sees at once.
        workers: processes that read videos; 0 reads in this one.
        journal: file that everything is added to at once, for `resume`; `remove_journals` when the result is safe.
        resume: go on from what the journal holds; the result has the same bits as that of an unbroken run.
        console: shows a bar on a terminal; None shows nothing.

    Returns:
        The result. If it looks like guessing, `warning` says whether the class order explains it: see `class_order.py`.

    Raises:
        AnnotationError: a label that the model does not know.
        CheckpointError: the model has no labels, or what it computes are no numbers.
        RecipeError: a batch size below 1, a journal of another model, other videos or other options, or one that
            `resume` was not given for.
        VideoError: not one video could be read.
    """
    if batch_size < 1:
        raise RecipeError(f"the batch size must be at least 1, got {batch_size}")
    rows, renamed = match_labels(annotations, _labels_of(model))
    evaluation_loader(
        model, rows, views, batch_size=batch_size
    )  # what is wrong with rows and views shows before anything is written
    ledger = Ledger(journal, _work(model, rows, views, batch_size) if journal else {}, resume=resume)
    try:
        _score_open_units(model, rows, views, ledger, batch_size=batch_size, workers=workers, console=console)
        records = ledger.collect()
    finally:
        ledger.close()
    result = summarise(model.labels, rows, records.values(), views)
    places = {name: place for place, name in enumerate(model.labels)}
    return replace(
        result,
        warning=order_warning(model.labels, [(places[one.labels[0]], one.label) for one in result.videos]),
        renamed=tuple(renamed.items()),
        published=published_figure(model, rows, views=views, skipped=len(result.skipped)),
    )


class HeldOut:
    """Videos on which a model is measured again and again, as `evaluate` does it once.

    Args:
        model: its labels and its preprocessing count.
        annotations: the videos, under the model's labels.
        views: what is looked at.
        batch_size: clips that the model sees at once.
        workers: processes that read videos; 0 reads in this one.

    Raises:
        AnnotationError, CheckpointError: as `evaluation_loader`.
    """

    def __init__(
        self,
        model: UniFormerV2,
        annotations: Sequence[Annotation],
        views: Views = Views(),
        *,
        batch_size: int = 8,
        workers: int = 0,
    ) -> None:
        self.annotations, self.views, self.batch_size = annotations, views, batch_size
        self._ranks = current_ranks()
        self._units = _units(annotations, videos_at_once(views, batch_size))[self._ranks.rank :: self._ranks.world]
        self._rows = [annotations[row] for unit in self._units for row in unit]
        # made of all of them where none is for this process: what is wrong with them shows in every process
        self._loader = evaluation_loader(
            model, self._rows or annotations, views, batch_size=batch_size, workers=workers
        )

    def evaluate(self, model: UniFormerV2) -> Evaluation:
        """The result, in every process. Raises CheckpointError and VideoError, as `evaluate`."""
        model.eval()
        step = videos_at_once(self.views, self.batch_size)
        batches = self._loader if self._rows else ()

        def records() -> list[Record]:
            return [
                score(model, batch, self.views, unit, batch_size=self.batch_size, first=place * step)
                for place, (unit, batch) in enumerate(zip(self._units, batches, strict=True))
            ]

        every = [record for some in self._ranks.on_all_ranks(records) for record in some]
        return summarise(model.labels, self.annotations, every, self.views)


def of_split(annotations: Sequence[Annotation], split: str) -> list[Annotation]:
    """The rows of one split: "train", "val", "test", "held-out" (all but train) or "all".

    Rows without a split belong to every one of them.

    Raises:
        AnnotationError: there are none.
    """
    wanted = {"held-out": ("val", "test"), "all": ("train", "val", "test")}.get(split, (split,))
    rows = [row for row in annotations if row.split is None or row.split in wanted]
    if not rows:
        raise AnnotationError(f"none of the {len(annotations)} videos belongs to the split {split!r}")
    return rows


def match_labels(annotations: Sequence[Annotation], labels: Sequence[str]) -> tuple[list[Annotation], dict[str, str]]:
    """Annotations under the labels of a model.

    A label that the model does not have stands for the one of its other labels that is the same in another spelling or
    in another list of Kinetics; see `weights.labels.matching`.

    Args:
        annotations: the rows.
        labels: of the model.

    Returns:
        The rows, and the labels that were replaced, with what they were replaced by.

    Raises:
        AnnotationError: labels without a counterpart, or several for one label of the model.
    """
    names = {row.label for row in annotations}
    others = sorted(names - set(labels))
    left = [label for label in labels if label not in names]
    places = matching(others, left)
    if places is None:
        unknown = [name for name in others if matching([name], left) is None] or others
        row = next(row for row in annotations if row.label == unknown[0])
        raise AnnotationError(
            f"{row.path}: label {row.label!r} is not among the {len(labels)} classes of the model "
            f"({', '.join(labels[:3])}, ...); {len(unknown)} label(s) are unknown to it: {', '.join(unknown[:5])}"
            + (", ..." if len(unknown) > 5 else "")
        )
    renamed = {name: left[place] for name, place in zip(others, places, strict=True)}
    return [replace(row, label=renamed[row.label]) if row.label in renamed else row for row in annotations], renamed


def evaluation_loader(
    model: UniFormerV2, annotations: Sequence[Annotation], views: Views, *, batch_size: int = 8, workers: int = 0
) -> DataLoader[Any]:
    """The views of the videos, in batches of `videos_at_once`.

    Raises:
        AnnotationError: no annotations, or a label that is not among the model's.
        CheckpointError: the model has no labels.
    """
    dataset = VideoDataset(annotations, _labels_of(model), model.preprocessing, views=views, threads=1)
    return make_loader(dataset, batch_size=videos_at_once(views, batch_size), workers=workers, seed=0, training=False)


def videos_at_once(views: Views, batch_size: int) -> int:
    """How many videos are computed together: the unit of work."""
    return max(1, batch_size // len(views))


def score(
    model: UniFormerV2, batch: Batch, views: Views, rows: Sequence[int], *, batch_size: int = 8, first: int = 0
) -> Record:
    """What a model says of a batch, as JSON has it, so that it is the same once it was written down and read again.

    Args:
        model: in eval mode.
        batch: of a dataset's rows from `first` on.
        views: how to compute.
        rows: numbers of the annotations that it was made of, in order.
        batch_size: clips that the model sees at once.
        first: row of the dataset where the batch begins.

    Raises:
        CheckpointError: what the model computes are no numbers.
    """
    read = [rows[index - first] for index in batch.indices]
    record: Record = {
        "videos": [],
        "skipped": [[rows[video.row - first], video.reason] for video in batch.unreadable],
        "damaged": [[video.path, video.reason] for video in batch.damaged],
    }
    if not read:
        return record
    clips = batch.clips.to(model_device(model), non_blocking=True)
    scores = average_views(model, clips, batch_size=batch_size, average=views.average).cpu()
    if not scores.isfinite().all():
        raise CheckpointError(f"{batch.paths[0]}: the model gives NaN, so its weights or its clips are no numbers")
    own = scores.gather(1, batch.labels[:, None]).clamp_min(torch.finfo(scores.dtype).tiny)
    best, ranked = scores.sort(dim=1, descending=True, stable=True)  # of equal classes, the first
    columns = (read, ranked[:, :TOP].tolist(), best[:, :TOP].tolist(), own[:, 0].double().log().neg().tolist())
    record["videos"] = [list(video) for video in zip(*columns, strict=True)]
    return record


def summarise(
    labels: Sequence[str], annotations: Sequence[Annotation], records: Iterable[Record], views: Views
) -> Evaluation:
    """Put together what `score` gave.

    Args:
        labels: of the model.
        annotations: all rows; each is in one record.
        records: in any order.
        views: that were looked at.

    Raises:
        VideoError: not one video could be read.
    """
    records = list(records)
    found = sorted(video for record in records for video in record["videos"])
    skipped = tuple(
        Unreadable(str(annotations[row].path), reason, row)
        for row, reason in sorted(one for record in records for one in record["skipped"])
    )
    if not found:
        raise VideoError(f"not one of {len(skipped)} videos to evaluate could be read; the first: {skipped[0].reason}")
    videos = tuple(
        VideoResult(
            str(annotations[row].path),
            annotations[row].label,
            tuple(labels[number] for number in ranked),
            tuple(scores),
            row,
        )
        for row, ranked, scores, _ in found
    )
    return Evaluation(
        top1=sum(one.label == one.labels[0] for one in videos) / len(videos),
        top5=sum(one.label in one.labels for one in videos) / len(videos),
        loss=math.fsum(loss for *_, loss in found) / len(videos),
        num_clips=views.clips,
        num_crops=views.crops,
        classes=_class_accuracies(labels, videos),
        videos=videos,
        skipped=skipped,
        average=views.average,
        damaged=tuple(sorted(Damaged(path, reason) for record in records for path, reason in record["damaged"])),
    )


@torch.inference_mode()
def average_views(model: UniFormerV2, clips: Tensor, *, batch_size: int, average: Average = "probabilities") -> Tensor:
    """Class probabilities of videos over all of their views.

    Args:
        model: in eval mode.
        clips: (videos, views, 3, frames, height, width), on the device of the model.
        batch_size: clips that the model sees at once.
        average: the mean of the views' probabilities, or the probabilities of the mean of their logits.

    Returns:
        float32 (videos, classes); rows sum to 1.
    """
    # (videos, views, ...) -> (videos·views, ...)
    logits = torch.cat([model(some).float() for some in clips.flatten(0, 1).split(batch_size)])
    logits = logits.unflatten(0, clips.shape[:2])
    return logits.mean(1).softmax(-1) if average == "logits" else logits.softmax(-1).mean(1)


def _score_open_units(
    model: UniFormerV2,
    annotations: Sequence[Annotation],
    views: Views,
    ledger: Ledger,
    *,
    batch_size: int,
    workers: int,
    console: Console | None,
) -> None:
    """Compute the units of this process that nobody has computed yet.

    A unit is a fixed number of rows that follow each other, so that a video has the same company in every run.
    """
    step = videos_at_once(views, batch_size)
    units = _units(annotations, step)
    mine = [number for number in ledger.mine(len(units)) if (number,) not in ledger.done]
    order = [annotations[row] for number in mine for row in units[number]]
    if not order:
        return
    model.eval()
    loader = evaluation_loader(model, order, views, batch_size=batch_size, workers=workers)
    for place, (number, batch) in enumerate(zip(mine, _tracked(loader, console), strict=True)):
        record = score(model, batch, views, units[number], batch_size=batch_size, first=place * step)
        ledger.add((number,), record)


def _units(annotations: Sequence[Annotation], step: int) -> list[range]:
    """Rows that are computed together."""
    rows = range(len(annotations))
    return [rows[first : first + step] for first in rows[::step]]


def _work(model: UniFormerV2, annotations: Sequence[Annotation], views: Views, batch_size: int) -> dict[str, str]:
    """What decides the result, for the journal."""
    return {
        "weights": weights_digest(model),
        "videos": videos_digest(annotations),
        "views": f"{views.clips} clips x {views.crops} crops",
        "average": views.average,
        "batch size": str(batch_size),
    }


def _labels_of(model: UniFormerV2) -> tuple[str, ...]:
    if not model.labels:
        raise CheckpointError(
            "the model has no labels, so that no accuracy can be told; load it with those of its own head"
        )
    return model.labels


def _class_accuracies(labels: Sequence[str], videos: Iterable[VideoResult]) -> tuple[ClassAccuracy, ...]:
    counts, correct = Counter[str](), Counter[str]()
    for video in videos:
        counts[video.label] += 1
        correct[video.label] += video.label == video.labels[0]
    return tuple(ClassAccuracy(label, counts[label], correct[label]) for label in labels)


def _tracked(loader: DataLoader[Any], console: Console | None) -> Iterable[Batch]:
    if console is None or not console.is_terminal:
        return loader
    from rich.progress import track

    return track(loader, "evaluating", console=console, transient=True)
