"""Before the long run: does everything work, how long will it take, can a batch be learned, how large may it be?"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from timeit import timeit
from typing import Any, TypeVar

import torch

from uniformerv2.data.loader import Batch, VideoLoader
from uniformerv2.data.sources import Classes, read_annotations
from uniformerv2.device import peak_memory_mib, pick_device
from uniformerv2.distributed import current_ranks, rank_device
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.machine import WORKERS
from uniformerv2.progress import say, track
from uniformerv2.tasks.motion_first import motion_clips
from uniformerv2.tasks.run import RunComponents, Videos, build_run, split_data, trained_classes, with_precision
from uniformerv2.tasks.start import build_model, micro_batch
from uniformerv2.tasks.table import find_task
from uniformerv2.tasks.video_task import VideoTask
from uniformerv2.train.engine import Trainer
from uniformerv2.train.failures import reporting_device_failures
from uniformerv2.train.log import read_metrics
from uniformerv2.train.optim import train_mode
from uniformerv2.train.parallel import Parallel
from uniformerv2.train.recipe import Recipe
from uniformerv2.train.run_folder import RunFolder
from uniformerv2.train.step import TrainingStep
from uniformerv2.video.augmentation import Augmentation
from uniformerv2.weights.checkpoint import save_model

T = TypeVar("T")

STEPS = 4  # of a dry run; the first, which is slower, is not counted
CLOSE = 0.05  # a loss that is near zero
IN_A_ROW = 3  # steps with such a loss, so that it is none by chance
UNCHANGED = Augmentation(num_ops=0, crop_area=(1.0, 1.0), flip=0.0)


# --- a dry run


@dataclass(frozen=True)
class DryRun:
    """What the whole run will take, judged by a few steps, an evaluation of a few videos and saving."""

    steps: int  # of an epoch
    step_seconds: float  # the median
    data_wait: float  # share of a step that passes waiting for clips
    memory_mib: float  # at most so far: of the GPU in tensors, else of this process
    epoch_seconds: float  # training and, where it follows, evaluation
    run_seconds: float
    motion_seconds: float = 0.0  # of `motion_first` before it, unless its start has done so before; not in run_seconds

    def lines(self) -> list[str]:
        """The same for people."""
        epoch, run, motions = (
            timedelta(seconds=round(seconds)) for seconds in (self.epoch_seconds, self.run_seconds, self.motion_seconds)
        )
        first = [f"about {motions} before that for drawn motions, once for this start"] if self.motion_seconds else []
        return [
            f"everything works: {self.steps} steps an epoch, {self.step_seconds:.3g} s each, of which "
            f"{self.data_wait:.0%} waiting for clips",
            f"about {epoch} an epoch with its evaluation, {run} for the whole run; {self.memory_mib / 2**10:.2f} GiB "
            "of memory at most",
            *first,
        ]


def dry_run(
    data: Videos,
    recipe: Recipe,
    *,
    root: str | Path | None = None,
    classes: Classes | None = None,
    holdout: float | None = None,
    holdout_list: str | Path | None = None,
    group: str | None = None,
    device: str = "auto",
    workers: int = WORKERS,
    progress: bool = False,
    parallel: Parallel = "ddp",
    task: str = "classification",
) -> DryRun:
    """Everything that `train_classifier` does, for a few steps and videos, in a folder that is removed.

    Args:
        data, recipe, root, classes, holdout, holdout_list, group: as for `train_classifier`.
        device, workers, progress, parallel: likewise.
        task: name of what is trained for.

    Raises:
        UniFormerV2Error: what the run would end with.
    """
    videos = split_data(
        data, recipe, task=task, root=root, classes=classes, holdout=holdout, holdout_list=holdout_list, group=group,
        progress=progress,
    )  # fmt: skip
    in_step = recipe.optimization.batch_size // recipe.augmentation.repeats
    training, held_out = _spread(videos.training, STEPS * in_step), _spread(videos.held_out, in_step)
    few = videos._replace(training=training, held_out=held_out)
    short = recipe.vary(epochs=1, warmup_epochs=0.0)
    parts = build_run(short, few, task=task, device=rank_device(device), workers=workers, progress=progress)
    with tempfile.TemporaryDirectory() as folder, reporting_device_failures("dry run", parts.recipe):
        run = RunFolder(current_ranks().gather(folder)[0])
        options: Any = {"run": run, "save": save_model, "parallel": parallel}
        trainer = Trainer(parts.model, parts.task, parts.loader, parts.recipe.optimization, **options)
        trainer.fit()
        evaluating = measuring = 0.0
        if videos.held_out:
            share = len(videos.held_out) / len(few.held_out)
            with trainer.step.evaluated() as model:
                evaluating = share * timeit(lambda: parts.task.evaluate(model), number=1)
                measuring = share * timeit(lambda: parts.task.measure(model), number=1)
        records = read_metrics(run.metrics)
        current_ranks().wait()  # until all have read what the first removes
    steps = [record for record in records if record["kind"] == "step"]
    return _projection(recipe, steps, len(videos.training), evaluating, measuring)


def _spread(rows: Sequence[T], count: int) -> list[T]:
    """So many of the rows, from all over them."""
    return [rows[number * len(rows) // count] for number in range(count)] if count < len(rows) else list(rows)


def _projection(recipe: Recipe, steps: Sequence[Any], videos: int, evaluating: float, measuring: float) -> DryRun:
    counted = steps[1:] or steps
    seconds = statistics.median(step["clips"] / step["clips_per_second"] for step in counted)
    optimization = recipe.optimization
    per_epoch = max(1, videos // (optimization.batch_size // recipe.augmentation.repeats))
    evaluations = math.ceil(optimization.epochs / optimization.evaluate_every)
    return DryRun(
        steps=per_epoch,
        step_seconds=seconds,
        data_wait=statistics.median(step["data_wait"] for step in counted),
        memory_mib=max(step["memory_mib"] for step in steps),
        epoch_seconds=per_epoch * seconds + evaluating,
        run_seconds=optimization.epochs * per_epoch * seconds + evaluations * evaluating + measuring,
        motion_seconds=motion_clips() * seconds / optimization.batch_size if recipe.model.motion_first else 0.0,
    )


# --- overfitting a batch


@dataclass(frozen=True)
class OverfitBatch:
    """The result of training on one batch."""

    losses: tuple[float, ...]  # of each step
    complaint: str  # why the loss is not near zero; empty where it is

    @property
    def learned(self) -> bool:
        """Whether the loss came near zero."""
        return not self.complaint

    def lines(self) -> list[str]:
        """The same for people."""
        path = f"loss {self.losses[0]:.3f} -> {self.losses[-1]:.3f} after {len(self.losses)} steps on one batch"
        return [path, self.complaint or "the batch is learned: model, loss and optimizer work together"]


def overfit_batch(
    data: Videos,
    recipe: Recipe,
    *,
    root: str | Path | None = None,
    classes: Classes | None = None,
    holdout: float | None = None,
    holdout_list: str | Path | None = None,
    group: str | None = None,
    device: str = "auto",
    workers: int = WORKERS,
    progress: bool = False,
    steps: int = 200,
    task: str = "classification",
) -> OverfitBatch:
    """Train on one batch, again and again, without regularisation: the loss has to come near zero.

    Left out are augmentation, mixing, label smoothing, dropout, drop path and the schedule; the learning rate is the
    recipe's.

    Args:
        data, recipe, root, classes, holdout, holdout_list, group, device, workers: as for `train_classifier`.
        progress: whether to show a bar, and videos that cannot be read.
        steps: how many at most.
        task: name of what is trained for.
    """
    videos = split_data(
        data, recipe, task=task, root=root, classes=classes, holdout=holdout, holdout_list=holdout_list, group=group,
        progress=progress,
    )  # fmt: skip
    options: Any = {"task": task, "device": pick_device(device), "workers": workers, "progress": progress}
    parts = build_run(without_regularisation(recipe), videos, **options)
    batch = _readable(parts.loader)
    step = TrainingStep(parts.model, parts.task, parts.recipe.optimization, batch_size=len(batch))
    train_mode(parts.model)
    losses: list[float] = []
    for _ in track(range(steps), "overfitting", progress=progress):
        losses.append(step([batch], lr=parts.recipe.optimization.lr).means["loss"])
        if _is_learned(losses):
            break
    return OverfitBatch(tuple(losses), "" if _is_learned(losses) else _complaint(parts, batch, losses))


def without_regularisation(recipe: Recipe) -> Recipe:
    """The recipe for overfitting one batch: no regularisation, a constant learning rate, and nothing compiled."""
    recipe = recipe.resolved()
    rate, batch_size = recipe.optimization.lr, micro_batch(recipe) // recipe.augmentation.repeats
    return recipe.vary(
        **dict.fromkeys(("drop_path", "global_drop_path", "global_dropout", "head_dropout"), 0.0),
        **dict.fromkeys(("warmup_epochs", "label_smoothing", "weight_decay", "ema"), 0.0),
        **{"epochs": 1, "early_stop": 0, "start_lr": rate, "end_lr": rate, "cache_features": "none"},
        **{"class_weights": "none", "sampling": "none", "compile": False},
        **{"batch_size": batch_size, "accumulate": 1, "lr_base_batch": None},
        **asdict(UNCHANGED),
    )


def _readable(loader: VideoLoader) -> Batch:
    """The first batch of several classes, or the first with something in it."""
    found: Batch | None = None
    for batch in loader:
        if len(batch.labels.unique(dim=0)) > 1:
            return batch
        found = found or (batch if len(batch) else None)
    if found is None:
        raise VideoError("not one training video could be read")
    return found


def _is_learned(losses: Sequence[float]) -> bool:
    return len(losses) >= IN_A_ROW and max(losses[-IN_A_ROW:]) < CLOSE


def _complaint(parts: RunComponents, batch: Batch, losses: Sequence[float]) -> str:
    if twins := _same_clips(batch):
        return f"{twins[0]} and {twins[1]} are the same clip with different labels: nothing can tell them apart"
    trained = [parameter for parameter in parts.model.parameters() if parameter.requires_grad]
    still = [parameter for parameter in trained if parameter.grad is None or not parameter.grad.any()]
    if len(still) == len(trained):
        return "nothing has a gradient: the model does not depend on what is trained"
    rate = parts.recipe.optimization.lr
    if losses[-1] > losses[0]:
        return f"the loss grows: take a lower lr than {rate:g}"
    if losses[-1] > 0.5 * losses[0]:
        return f"the loss hardly falls: take a higher lr than {rate:g}, or start from weights that know more"
    return f"the loss falls, but slowly: take more steps or a higher lr than {rate:g}"


def _same_clips(batch: Batch) -> tuple[str, str] | None:
    """Two that are the same file, or equal frames, and have different labels."""
    files = [Path(path).resolve() for path in batch.paths]
    for first, second in combinations(range(len(batch)), 2):
        same = files[first] == files[second] or torch.equal(batch.clips[first], batch.clips[second])
        if same and not torch.equal(batch.labels[first], batch.labels[second]):
            return batch.paths[first], batch.paths[second]
    return None


# --- the batch size


@dataclass(frozen=True)
class BatchSizes:
    """What fits into memory."""

    largest: int  # clips that the model can be trained on at once, a power of 2
    memory_mib: dict[int, float]  # by number of clips: at most so far
    clips_per_second: dict[int, float]
    batch_size: int  # of the recipe

    @property
    def accumulate(self) -> int:
        """How many parts the recipe's batch needs."""
        whole = (parts for parts in range(1, self.batch_size + 1) if self.batch_size % parts == 0)
        return next(parts for parts in whole if self.batch_size // parts <= self.largest)

    def lines(self) -> list[str]:
        """The same for people."""
        tried = [
            f"{size:>5} clips: {self.memory_mib[size] / 2**10:.2f} GiB, {self.clips_per_second[size]:.1f} clips/s"
            for size in self.memory_mib
        ]
        together = "at once" if self.accumulate == 1 else f"with accumulate {self.accumulate}"
        return [*tried, f"{self.largest} clips fit; the recipe's batch of {self.batch_size} {together}"]


def find_batch_size(
    data: Videos,
    recipe: Recipe,
    *,
    root: str | Path | None = None,
    classes: Classes | None = None,
    device: str = "auto",
    progress: bool = False,
    limit_mib: float | None = None,
    largest: int = 4096,
    task: str = "classification",
) -> BatchSizes:
    """Double the number of clips until memory is out; a training step on random clips each.

    A GPU reports when its memory is out. The memory of a machine must not run out, so there a size is tried only
    if it should stay below a limit, judged by the sizes before.

    Args:
        data: whose classes the head has; no video is read.
        recipe: model, clip and precision.
        root, classes, device: as for `train_classifier`.
        progress: whether to show each size as it is tried.
        limit_mib: of this process, or of tensors on a GPU; None: four fifths of what is free now, or all of a GPU.
        largest: where to stop in any case.
        task: name of what is trained for.

    Raises:
        RecipeError: not even one clip fits.
    """
    place = pick_device(device)
    chosen = find_task(task)
    rows = read_annotations(data, root=root, classes=classes, several_labels=chosen.several_labels)
    labels = trained_classes(rows, recipe, task=task)
    alone = without_regularisation(recipe)
    model = build_model(alone, labels).to(place)
    trained = chosen(with_precision(alone, place, width=model.config.width), model)
    if limit_mib is None:
        limit_mib = math.inf if place.type == "cuda" else peak_memory_mib(place) + 0.8 * _free_mib()
    memory, speed = _try_sizes(trained, place, limit_mib, largest, progress)
    fitting = [size for size in speed if memory[size] <= limit_mib]
    if not fitting:
        raise RecipeError(
            f"not even one clip fits into {limit_mib:.0f} MiB on {place}: take a smaller model, size or num_frames, "
            "or more checkpoint_blocks"
        )
    return BatchSizes(max(fitting), memory, speed, recipe.optimization.batch_size)


def _try_sizes(
    task: VideoTask, place: torch.device, limit_mib: float, largest: int, progress: bool
) -> tuple[dict[int, float], dict[int, float]]:
    """MiB and clips per second, by size; the last size may be past the limit."""
    memory, speed = {0: peak_memory_mib(place)}, {}
    for size in (2**power for power in range(largest.bit_length())):
        if _expected(memory) > limit_mib:
            break
        say(f"trying {size} clips", progress=progress)
        try:
            speed[size] = _try_size(task, size)
        except torch.OutOfMemoryError:
            break
        memory[size] = peak_memory_mib(place)
        if memory[size] > limit_mib:
            break
    memory.pop(0)
    return memory, speed


def _expected(memory: dict[int, float]) -> float:
    """Of the next size, if every clip takes as much as those before."""
    *_, before, last = [0, *memory] if len(memory) == 1 else memory
    if last == before:  # nothing was tried yet
        return memory[last]
    return memory[last] + last * (memory[last] - memory[before]) / (last - before)


def _try_size(task: VideoTask, size: int) -> float:
    """Two training steps on random clips; returns the clips per second of the second."""
    model, optimization = task.model, task.recipe.optimization
    shape = model.preprocessing
    clips = torch.randn(size, 1, 3, shape.num_frames, *shape.size)
    batch = Batch(clips, task.random_labels(size), [*range(size)], ["random"] * size)
    step = TrainingStep(model, task, optimization, batch_size=size)
    train_mode(model)
    for _ in range(2):
        start = time.perf_counter()
        _ = step([batch], lr=optimization.lr).means  # waits for it
    return size / (time.perf_counter() - start)


def _free_mib() -> float:
    """Memory of the machine that is available, on Linux; elsewhere a GiB is assumed."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) / 1024
    return 1024.0
