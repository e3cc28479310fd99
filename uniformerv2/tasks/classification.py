"""Video classification: the loss, multi-view evaluation, and training a classifier from a folder of videos."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from uniformerv2.data.annotations import Annotation, class_names, read_annotations, split_annotations
from uniformerv2.data.dataset import Batch, VideoDataset, make_loader
from uniformerv2.device import model_device, pick_device
from uniformerv2.errors import AnnotationError, CheckpointError, RecipeError, VideoError
from uniformerv2.model.config import Preprocessing, named_config
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.tasks.class_order import order_warning
from uniformerv2.train.checkpoint import RunFolder, write_text
from uniformerv2.train.engine import Cost, Trainer
from uniformerv2.train.log import read_metrics
from uniformerv2.train.precision import pick_precision
from uniformerv2.train.recipe import Recipe
from uniformerv2.weights import arm, save_model

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

TOP = 5  # classes that are kept of a video's ranking, and that top-5 accuracy accepts


@dataclass(frozen=True)
class VideoResult:
    """What a model said of one video."""

    path: str
    label: str  # the right one
    labels: tuple[str, ...]  # the five most likely classes, best first
    scores: tuple[float, ...]  # their probabilities, averaged over the views


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
class Evaluation:
    """How good a model is on the videos that could be read. The others are counted and named, and nothing else."""

    top1: float  # in [0, 1]
    top5: float  # in [0, 1]
    loss: float  # cross entropy of the averaged probabilities
    num_clips: int  # views are clips x crops
    num_crops: int
    classes: tuple[ClassAccuracy, ...]  # in the order of the model's labels
    videos: tuple[VideoResult, ...]
    skipped: tuple[tuple[str, str], ...]  # (path, reason)
    warning: str = ""  # one line where the labels of the model seem to be in another order than its classifier

    @property
    def correct(self) -> int:
        return sum(one.correct for one in self.classes)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        fields = asdict(self)
        fields["classes"] = [asdict(one) | {"top1": one.top1} for one in self.classes]
        fields["skipped"] = [{"path": path, "reason": reason} for path, reason in self.skipped]
        counts = {"views": self.num_clips * self.num_crops, "evaluated": len(self.videos), "correct": self.correct}
        return counts | fields


def evaluate(
    model: UniFormerV2,
    annotations: Sequence[Annotation],
    *,
    num_clips: int = 1,
    num_crops: int = 1,
    batch_size: int = 8,
    workers: int = 0,
    console: Console | None = None,
) -> Evaluation:
    """Multi-view accuracy: a video's class probabilities are averaged over num_clips x num_crops views.

    Args:
        model: computes in float32 on the device that it is on, and is left in eval mode.
        annotations: the videos; their labels must be among the model's.
        num_clips: clips evenly spread over a video.
        num_crops: 1 (centre) or 3 (along the longer side) of each clip.
        batch_size: clips that the model sees at once.
        workers: processes that read videos; 0 reads in this one.
        console: shows a bar on a terminal; None shows nothing.

    Returns:
        The result. If it looks like guessing, `warning` says whether the class order explains it: see `class_order.py`.

    Raises:
        AnnotationError: a label that the model does not know.
        VideoError: not one video could be read.
    """
    loader = _evaluation_loader(
        model, annotations, num_clips=num_clips, num_crops=num_crops, batch_size=batch_size, workers=workers
    )
    result = _evaluate(model, loader, batch_size=batch_size, console=console)
    rows = {name: row for row, name in enumerate(model.labels)}
    guesses = [(rows[video.labels[0]], video.label) for video in result.videos]
    return replace(result, warning=order_warning(model.labels, guesses))


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


def _evaluation_loader(
    model: UniFormerV2,
    annotations: Sequence[Annotation],
    *,
    num_clips: int = 1,
    num_crops: int = 1,
    batch_size: int,
    workers: int,
) -> DataLoader[Any]:
    if not model.labels:
        raise CheckpointError(
            "the model has no labels, so that no accuracy can be told; load it with those of its own head"
        )
    dataset = VideoDataset(
        annotations, model.labels, model.preprocessing, num_clips=num_clips, num_crops=num_crops, threads=1
    )
    videos = max(1, batch_size // (num_clips * num_crops))
    return make_loader(dataset, batch_size=videos, workers=workers, seed=0, training=False)


@torch.inference_mode()
def _evaluate(
    model: UniFormerV2, loader: DataLoader[Any], *, batch_size: int, console: Console | None = None
) -> Evaluation:
    model.eval()
    device = model_device(model)
    scores, targets = [], []
    paths: list[str] = []
    skipped: list[tuple[str, str]] = []
    for batch in _tracked(loader, console):
        skipped += batch.errors
        if len(batch):
            scores.append(average_views(model, batch.clips.to(device), batch_size=batch_size).cpu())
            targets.append(batch.labels)
            paths += batch.paths
    if not paths:
        raise VideoError(f"not one of {len(skipped)} videos to evaluate could be read; the first: {skipped[0][1]}")
    dataset = loader.dataset
    assert isinstance(dataset, VideoDataset)
    return Evaluation(
        **_accuracies(model.labels, torch.cat(scores), torch.cat(targets), paths),
        num_clips=dataset.num_clips,
        num_crops=dataset.num_crops,
        skipped=tuple(skipped),
    )


def average_views(model: UniFormerV2, clips: Tensor, *, batch_size: int) -> Tensor:
    """Class probabilities of videos, averaged over their views.

    Args:
        model: in eval mode.
        clips: (videos, views, 3, frames, height, width), on the device of the model.
        batch_size: clips that the model sees at once.

    Returns:
        float32 (videos, classes); rows sum to 1.
    """
    # (videos, views, ...) -> (videos·views, ...)
    views = clips.flatten(0, 1).split(batch_size)
    probabilities = torch.cat([model(some).float().softmax(-1) for some in views])
    return probabilities.unflatten(0, clips.shape[:2]).mean(1)


def _accuracies(labels: Sequence[str], scores: Tensor, targets: Tensor, paths: Sequence[str]) -> dict[str, Any]:
    """Fields of `Evaluation` from scores (videos, classes) and right classes (videos)."""
    top_scores, top_classes = scores.topk(min(TOP, len(labels)))
    hits = top_classes == targets[:, None]  # (videos, 5)
    videos = [
        VideoResult(path, labels[target], tuple(labels[number] for number in ranked), tuple(best))
        for path, target, ranked, best in zip(
            paths, targets.tolist(), top_classes.tolist(), top_scores.tolist(), strict=True
        )
    ]
    counts = torch.bincount(targets, minlength=len(labels)).tolist()
    correct = torch.bincount(targets[hits[:, 0]], minlength=len(labels)).tolist()
    own = scores.gather(1, targets[:, None]).clamp_min(torch.finfo(scores.dtype).tiny)
    return {
        "top1": hits[:, 0].double().mean().item(),
        "top5": hits.any(1).double().mean().item(),
        "loss": -own.log().mean().item(),
        "classes": tuple(map(ClassAccuracy, labels, counts, correct)),
        "videos": tuple(videos),
    }


def _tracked(loader: DataLoader[Any], console: Console | None) -> Iterable[Batch]:
    if console is None or not console.is_terminal:
        return loader
    return track(loader, "evaluating", console=console, transient=True)


class Classification:
    """The task: cross entropy with label smoothing; single-view accuracy on the held-out videos.

    Args:
        held_out: single views of the held-out videos.
        label_smoothing: share of the target probability that is spread over all classes.
        batch_size: clips that the model sees at once in evaluation.
        console: is told of each unreadable or damaged video once; None stays silent.
    """

    monitor = "top1"

    def __init__(
        self, held_out: DataLoader[Any], *, label_smoothing: float, batch_size: int, console: Console | None = None
    ) -> None:
        self.held_out, self.label_smoothing, self.batch_size = held_out, label_smoothing, batch_size
        self.console = console
        self.evaluation: Evaluation | None = None  # the latest
        self.skipped: dict[str, str] = {}  # path -> reason
        self.damaged: dict[str, str] = {}  # path -> what is damaged

    def cost(self, model: nn.Module, batch: Batch) -> Cost | None:
        self._report(self.skipped, "skipped", batch.errors)
        self._report(self.damaged, "damaged", batch.warnings)
        if not len(batch):
            return None
        device = model_device(model)
        # (videos, 1 view, ...) -> (videos, ...)
        logits = model(batch.clips.flatten(0, 1).to(device, non_blocking=True)).float()
        labels = batch.labels.to(device, non_blocking=True)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        accuracy = (logits.argmax(1) == labels).float().mean().item()
        return Cost(loss, {"accuracy": accuracy}, len(batch))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, UniFormerV2)
        self.evaluation = _evaluate(model, self.held_out, batch_size=self.batch_size)
        self._report(self.skipped, "skipped", self.evaluation.skipped)
        return {"held_out_loss": self.evaluation.loss, "top1": self.evaluation.top1, "top5": self.evaluation.top5}

    def _report(self, known: dict[str, str], what: str, found: Iterable[tuple[str, str]]) -> None:
        for path, reason in found:
            if path not in known and self.console is not None:
                self.console.print(f"{what}: {reason}", style="yellow", highlight=False, markup=False, soft_wrap=True)
            known[path] = reason


@dataclass(frozen=True)
class TrainingResult:
    """A finished run."""

    last: Path  # checkpoint after the last epoch
    best: Path  # checkpoint of the epoch with the best held-out accuracy
    evaluation: Evaluation  # of `last`, on single views of the held-out videos
    history: tuple[dict[str, Any], ...]  # the epochs' records of metrics.jsonl
    skipped: dict[str, str]  # path -> reason, of unreadable videos


def train_classifier(
    data: str | Path,
    output: str | Path,
    recipe: Recipe,
    *,
    root: str | Path | None = None,
    holdout: float = 0.2,
    holdout_list: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 0,
    device: str = "auto",
    console: Console | None = None,
) -> TrainingResult:
    """Train a classifier on a folder that has one folder per class, or on a manifest.

    Args:
        data: the folder, or a CSV file with the columns path, label and optionally start, end, split.
        output: folder of the run; see `RunFolder` for what is written. Touched only once everything else is right.
        recipe: everything that the result depends on.
        root: what the manifest's paths are relative to; default: its own folder.
        holdout: share of each class's files that is held out, drawn with the recipe's seed.
        holdout_list: file with a path or pattern per line that says what is held out.
        resume: continue a killed run of the same recipe and data.
        overwrite: replace a former run.
        workers: processes that read videos; 0 reads in this one.
        device: "auto" (a GPU where there is one), or a name that torch knows.
        console: shows a bar on a terminal and a line per epoch; None shows nothing.

    Raises:
        RecipeError: values that contradict each other, or a folder that must not be touched.
        AnnotationError: data that do not say what is needed, such as a folder with one class.
        CheckpointError: an image checkpoint or a training state that cannot be read.
        VideoError: no video can be read.
    """
    run = RunFolder(output)
    run.check(resume=resume, overwrite=overwrite)
    place = pick_device(device)
    seed = recipe.optimization.seed
    annotations = read_annotations(data, root=_path(root))
    labels = class_names(annotations, minimum=2)
    training, held_out = split_annotations(annotations, holdout=holdout, holdout_list=_path(holdout_list), seed=seed)

    torch.manual_seed(seed)
    model = build_model(recipe, labels).to(place)
    recipe = _with_precision(recipe, place, width=model.config.width)
    batch_size = recipe.optimization.batch_size
    dataset = VideoDataset(training, labels, model.preprocessing, augmentation=recipe.augmentation, threads=1)
    loader = make_loader(dataset, batch_size=batch_size, workers=workers, seed=seed, training=True)
    task = Classification(
        _evaluation_loader(model, held_out, batch_size=batch_size, workers=workers),
        label_smoothing=recipe.optimization.label_smoothing,
        batch_size=batch_size,
        console=console,
    )
    run.start(
        {run.recipe: recipe.to_json(), run.train: _manifest(training), run.held_out: _manifest(held_out)},
        resume=resume,
    )
    _announce(console, recipe, model, training, held_out)
    origin = f"trained on {Path(data).name}, from {recipe.model.arm or recipe.model.model}"
    save = partial(save_model, model, origin=origin)
    trainer = Trainer(model, task, loader, recipe.optimization, run=run, save=save, console=console)
    if resume:
        trainer.resume()
    trainer.fit()
    return _result(run, task, model)


def _with_precision(recipe: Recipe, device: torch.device, *, width: int) -> Recipe:
    """The recipe that is run and saved: with the precision that "auto" means here."""
    precision = pick_precision(recipe.optimization.precision, device, width=width)
    return replace(recipe, optimization=replace(recipe.optimization, precision=precision))


def _manifest(annotations: Sequence[Annotation]) -> str:
    """Annotations as a CSV manifest that can be read from anywhere."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "start", "end"])
    writer.writerows([row.path.resolve(), row.label, row.start, row.end] for row in annotations)
    return text.getvalue()


def _announce(
    console: Console | None,
    recipe: Recipe,
    model: UniFormerV2,
    training: Sequence[Annotation],
    held_out: Sequence[Annotation],
) -> None:
    if console is None:
        return
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    for line in (
        f"{len(training)} videos of {len(model.labels)} classes to learn from, {len(held_out)} held out; "
        f"{size:.1f} M parameters on {model_device(model)}",
        *(f"{name}: {values}" for name, values in recipe.lines()),
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _result(run: RunFolder, task: Classification, model: UniFormerV2) -> TrainingResult:
    if task.evaluation is None:  # resumed after the last epoch
        task.evaluate(model)
    assert task.evaluation is not None
    write_text(run.evaluation, json.dumps(task.evaluation.to_json(), indent=2) + "\n")
    history = tuple(record for record in read_metrics(run.metrics) if record["kind"] == "epoch")
    return TrainingResult(run.last, run.best, task.evaluation, history, task.skipped)


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def build_model(recipe: Recipe, labels: Sequence[str]) -> UniFormerV2:
    """The model that a recipe starts from, with a new head.

    Raises:
        RecipeError: an unknown size, or options that contradict each other.
        CheckpointError: the image checkpoint cannot be read.
    """
    start, clip = recipe.model, recipe.clip
    try:
        if start.arm is not None:
            return arm(
                start.arm,
                num_classes=len(labels),
                layout=start.layout,
                labels=labels,
                num_frames=clip.num_frames,
                size=clip.height_width,
                **start.options(),
            )
        config = named_config(
            str(start.model), start.layout, image_size=clip.height_width, num_classes=len(labels), **start.options()
        )
        return UniFormerV2(config, Preprocessing(num_frames=clip.num_frames, size=clip.height_width), labels)
    except ValueError as error:
        raise RecipeError(f"no such model: {error}") from error
