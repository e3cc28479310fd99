"""Video classification: the loss, and training a classifier from a folder of videos."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from uniformerv2.data.annotations import Annotation, Damaged, Unreadable, class_names
from uniformerv2.data.batch import Batch
from uniformerv2.data.dataset import VideoDataset, make_loader
from uniformerv2.data.loader import VideoLoader
from uniformerv2.data.sources import read_annotations
from uniformerv2.data.split import split_annotations
from uniformerv2.device import model_device
from uniformerv2.distributed import current_ranks, rank_device, reporting_lost_ranks
from uniformerv2.errors import RecipeError
from uniformerv2.measuring.evaluation import HeldOut
from uniformerv2.measuring.metrics import Evaluation
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.tasks.classification.mixing import Mixing, mix
from uniformerv2.tasks.feature_cache import FeatureCache, FeatureLayout
from uniformerv2.tasks.start import build_model
from uniformerv2.train.engine import SAVE_EVERY, Cost, Trainer
from uniformerv2.train.log import read_metrics
from uniformerv2.train.loggers import Program, check_programs
from uniformerv2.train.parallel import Parallel, check_parallel
from uniformerv2.train.precision import pick_training_precision
from uniformerv2.train.recipe import Recipe
from uniformerv2.train.run_folder import RunFolder, write_text
from uniformerv2.weights import save_model


class Classification:
    """The task: cross entropy with label smoothing, of mixed clips if asked for; single-view accuracy when held out.

    Args:
        held_out: what is measured after an epoch.
        label_smoothing: share of the target probability that is spread over all classes.
        mixing: how the clips of a training batch are mixed.
        console: is told of each unreadable or damaged video once; None stays silent.
    """

    monitor = "top1"

    def __init__(
        self,
        held_out: HeldOut,
        *,
        label_smoothing: float,
        mixing: Mixing = Mixing(),  # noqa: B008 - it is frozen
        console: Console | None = None,
    ) -> None:
        self.held_out, self.label_smoothing = held_out, label_smoothing
        self.mixing, self.console = mixing, console
        self.together = current_ranks().world > 1
        self.features: FeatureLayout | None = None  # what training batches hold in the place of clips
        self.evaluation: Evaluation | None = None  # the latest
        self.skipped: dict[str, str] = {}  # path -> reason
        self.damaged: dict[str, str] = {}  # path -> what is damaged

    def cost(self, model: nn.Module, batch: Batch) -> Cost | None:
        """Where clips are mixed, an answer counts as right if it is the class with the larger share."""
        self.report(batch)
        if not len(batch):
            return self._nothing(model) if self.together else None
        device, views = model_device(model), batch.clips.shape[1]
        # (videos, views, ...) -> (clips, ...)
        clips = batch.clips.flatten(0, 1).to(device, non_blocking=True)
        labels = batch.labels.repeat_interleave(views).to(device, non_blocking=True)
        clips, others, kept = mix(clips, self.mixing)
        logits = model(clips if self.features is None else self.features.unpack(clips)).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self.mixing:  # cross entropy is linear in the target: this is the one with the mixed target
            other = F.cross_entropy(logits, labels[others], label_smoothing=self.label_smoothing)
            loss = kept * loss + (1 - kept) * other
        wanted = labels if kept >= 0.5 else labels[others]
        accuracy = (logits.argmax(1) == wanted).float().mean().item()
        return Cost(loss, {"accuracy": accuracy}, len(clips))

    def _nothing(self, model: nn.Module) -> Cost:
        """Of no clip, with a gradient of zeros: the other processes wait for one."""
        video = model.module if isinstance(model, DistributedDataParallel) else model
        assert isinstance(video, UniFormerV2)
        size = video.preprocessing.size
        no_clip = torch.empty(0, 3, video.preprocessing.num_frames, *size, device=model_device(model))
        return Cost(model(no_clip).float().sum(), {"accuracy": 0.0}, 0)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, UniFormerV2)
        self.evaluation = self.held_out.evaluate(model)
        self._report(self.skipped, "skipped", self.evaluation.skipped)
        return {"held_out_loss": self.evaluation.loss, "top1": self.evaluation.top1, "top5": self.evaluation.top5}

    def report(self, batch: Batch) -> None:
        """Tell of the videos of a batch that could not be read, or that are damaged."""
        self._report(self.skipped, "skipped", batch.unreadable)
        self._report(self.damaged, "damaged", batch.damaged)

    def _report(self, known: dict[str, str], what: str, found: Iterable[Unreadable | Damaged]) -> None:
        for video in found:
            if video.path not in known and self.console is not None:
                self.console.print(
                    f"{what}: {video.reason}", style="yellow", highlight=False, markup=False, soft_wrap=True
                )
            known[video.path] = video.reason


@dataclass(frozen=True)
class TrainingResult:
    """A finished run."""

    last: Path  # checkpoint after the last epoch
    best: Path  # checkpoint of the epoch with the best held-out accuracy
    evaluation: Evaluation  # of `last` on the held-out videos, with the views of the recipe
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
    save_every: float = SAVE_EVERY,
    programs: Sequence[Program] = (),
    parallel: Parallel = "ddp",
    feature_cache: str | Path | None = None,
) -> TrainingResult:
    """Train a classifier on a folder that has one folder per class, or on a manifest.

    In a process group of torch.distributed the processes train one model: a step has the recipe's batch size, of which
    each has its part, and the gradient is that of one process. All of them see the same files, and return the same.

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
        save_every: seconds after which a killed run has lost nothing, whatever the length of an epoch.
        programs: "tensorboard" or "wandb" (Weights & Biases), to show the curves; each has to be installed.
        parallel: "ddp": each process has the whole model; "fsdp": weights, gradients and the state of the optimizer are
            divided among them.
        feature_cache: folder for the features of a recipe with `cache_features`, which runs can share; None: "features"
            in the folder of the run.

    Raises:
        RecipeError: values that contradict each other, a folder that must not be touched or that a live process uses.
        AnnotationError: data that do not say what is needed, such as a folder with one class.
        CheckpointError: a checkpoint to start from or a training state that cannot be read, or a file of the run that
            cannot be written.
        VideoError: no video can be read.
        ProcessError: another process of the group has ended.
        Terminated: after a SIGTERM; the run can be resumed. It is a SystemExit.
    """
    run, ranks = RunFolder(output), current_ranks()
    check_programs(programs)
    check_parallel(parallel)
    ranks.on_rank_zero(lambda: run.check(resume=resume, overwrite=overwrite))
    if resume and recipe.optimization.precision == "auto":  # whatever it would mean now
        begun = ranks.on_rank_zero(lambda: run.begun_with("optimization", "precision"))
        recipe = replace(recipe, optimization=replace(recipe.optimization, precision=begun or "auto"))
    videos = divide(data, recipe, root=root, holdout=holdout, holdout_list=holdout_list)
    parts = assemble(recipe, videos, device=rank_device(device), workers=workers, console=console)
    recipe, model, task = parts.recipe, parts.model, parts.task
    given = {run.recipe: recipe.to_json(), run.train: _manifest(videos.training)}
    given[run.held_out] = _manifest(videos.held_out)
    cache = None
    if recipe.model.cache_features != "none":
        cache = FeatureCache(model, recipe, parts.loader, Path(feature_cache or run.path / "features"))
    start = recipe.model.arm or recipe.model.model or recipe.model.checkpoint
    save = partial(save_model, origin=f"trained on {Path(data).name}, from {start}")
    with reporting_lost_ranks(ranks, "its own message says why; continue with --resume"), ExitStack() as stack:

        def begin() -> None:
            stack.enter_context(run.locked())
            run.start(given, resume=resume)

        ranks.on_rank_zero(begin)
        _announce(console, recipe, model, videos)
        loader = parts.loader
        if cache is not None:
            loader, task.features = cache.fill(report=task.report, console=console), cache.layout
        trainer = Trainer(
            model,
            task,
            loader,
            recipe.optimization,
            run=run,
            save=save,
            console=console,
            save_every=save_every,
            programs=programs,
            recipe=asdict(recipe),
            parallel=parallel,
        )
        if resume:
            trainer.resume()
        trainer.fit()
        evaluation = measure(trainer, parts, videos.held_out, workers=workers)
        ranks.on_rank_zero(lambda: _write_evaluation(run, evaluation))
    history = tuple(record for record in read_metrics(run.metrics) if record["kind"] == "epoch")
    skipped = {path: reason for some in ranks.gather(task.skipped) for path, reason in some.items()}
    return TrainingResult(run.last, run.best, evaluation, history, skipped)


def _write_evaluation(run: RunFolder, evaluation: Evaluation) -> None:
    with run.saving(run.evaluation):
        write_text(run.evaluation, json.dumps(evaluation.to_json(), indent=2) + "\n")


@dataclass(frozen=True)
class Division:
    """What is learned from, and what is held out."""

    labels: tuple[str, ...]
    training: Sequence[Annotation]
    held_out: Sequence[Annotation]


def divide(
    data: str | Path,
    recipe: Recipe,
    *,
    root: str | Path | None = None,
    holdout: float = 0.2,
    holdout_list: str | Path | None = None,
) -> Division:
    """The videos of `train_classifier`, which says what is given and raised."""
    annotations = read_annotations(data, root=_path(root))
    labels = class_names(annotations, minimum=2)
    training, held_out = split_annotations(
        annotations, holdout=holdout, holdout_list=_path(holdout_list), seed=recipe.optimization.seed
    )
    return Division(tuple(labels), training, held_out)


@dataclass(frozen=True)
class Parts:
    """What a trainer is given."""

    recipe: Recipe  # with everything that "auto" and the like mean here
    model: UniFormerV2
    loader: VideoLoader
    task: Classification


def assemble(
    recipe: Recipe, videos: Division, *, device: torch.device, workers: int = 0, console: Console | None = None
) -> Parts:
    """Build model, loader and task of a recipe. Raises as `train_classifier`."""
    recipe = recipe.resolved()
    torch.manual_seed(recipe.optimization.seed)
    model = build_model(recipe, videos.labels).to(device)
    recipe = _with_precision(recipe, device, width=model.config.width)
    task = Classification(
        HeldOut(model, videos.held_out, batch_size=micro_batch(recipe), workers=workers),
        label_smoothing=recipe.optimization.label_smoothing,
        mixing=Mixing(recipe.augmentation.mixup, recipe.augmentation.cutmix),
        console=console,
    )
    return Parts(recipe, model, training_loader(recipe, model, videos.training, workers=workers), task)


def micro_batch(recipe: Recipe) -> int:
    """Clips that a process trains on at once.

    Raises:
        RecipeError: the batch cannot be divided.
    """
    world, optimization = current_ranks().world, recipe.optimization
    parts = world * optimization.accumulate * recipe.augmentation.repeats
    if optimization.batch_size % parts:
        raise RecipeError(
            f"batch_size must be divisible by {world} processes times accumulate times repeats, {parts}, "
            f"got {optimization.batch_size}"
        )
    return optimization.batch_size // (world * optimization.accumulate)


def training_loader(
    recipe: Recipe, model: UniFormerV2, training: Sequence[Annotation], *, workers: int = 0
) -> VideoLoader:
    """Batches of `micro_batch` clips, in an order that does not depend on how many of them make a step.

    Raises:
        AnnotationError: no annotations, or a label that is not among the model's.
    """
    optimization, repeats = recipe.optimization, recipe.augmentation.repeats
    dataset = VideoDataset(
        training, model.labels, model.preprocessing, augmentation=recipe.augmentation, repeats=repeats, threads=1
    )
    ranks = current_ranks()
    whole = make_loader(
        dataset,
        batch_size=optimization.batch_size // (repeats * ranks.world),
        workers=workers,
        seed=optimization.seed,
        rank=ranks.rank,
        world=ranks.world,
        fixed_views=recipe.augmentation.fixed_views,
    )
    if optimization.accumulate == 1:
        return whole
    # fewer videos than a step needs are divided as well as they can be
    parts = min(optimization.accumulate, whole.batch_size)
    return replace(whole, batch_size=-(-whole.batch_size // parts))


def _with_precision(recipe: Recipe, device: torch.device, *, width: int) -> Recipe:
    """The recipe that is run and saved: with the precision that "auto" means here."""
    precision = current_ranks().gather(pick_training_precision(recipe.optimization.precision, device, width=width))[0]
    return replace(recipe, optimization=replace(recipe.optimization, precision=precision))


def _manifest(annotations: Sequence[Annotation]) -> str:
    """Annotations as a CSV manifest that can be read from anywhere."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "start", "end"])
    writer.writerows([row.path.resolve(), row.label, row.start, row.end] for row in annotations)
    return text.getvalue()


def _announce(console: Console | None, recipe: Recipe, model: UniFormerV2, videos: Division) -> None:
    if console is None or not current_ranks().first:
        return
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    for line in (
        f"{len(videos.training)} videos of {len(model.labels)} classes to learn from, {len(videos.held_out)} held out; "
        f"{size:.1f} M parameters on {model_device(model)}",
        *(f"{name}: {values}" for name, values in recipe.lines()),
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def measure(trainer: Trainer, parts: Parts, held_out: Sequence[Annotation], *, workers: int = 0) -> Evaluation:
    """The evaluation of the run, with the views of the recipe; that of the last epoch where it is the same."""
    recipe, model = parts.recipe, parts.model
    views = recipe.evaluation.views
    if parts.task.evaluation is not None and len(views) == 1:
        return parts.task.evaluation
    with trainer.evaluated() as evaluated:
        assert isinstance(evaluated, UniFormerV2)
        return HeldOut(model, held_out, views=views, batch_size=micro_batch(recipe), workers=workers).evaluate(
            evaluated
        )


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)
