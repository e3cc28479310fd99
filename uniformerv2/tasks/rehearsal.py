"""Before the long run: does everything work, how long will it take, and can the model learn?"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor, nn

from uniformerv2.data.annotations import Annotation
from uniformerv2.data.batch import Batch
from uniformerv2.data.loader import VideoLoader
from uniformerv2.device import pick_device
from uniformerv2.distributed import Ranks, current_ranks, rank_device
from uniformerv2.errors import VideoError
from uniformerv2.measuring.evaluation import HeldOut
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.tasks.classification.training import (
    Classification,
    Division,
    Parts,
    assemble,
    divide,
    measure,
    micro_batch,
)
from uniformerv2.train.engine import Cost, Trainer
from uniformerv2.train.log import read_metrics
from uniformerv2.train.parallel import Parallel
from uniformerv2.train.recipe import Recipe
from uniformerv2.train.run_folder import RunFolder
from uniformerv2.train.state import StateFolder
from uniformerv2.video.augmentation import Augmentation
from uniformerv2.weights import save_model

STEPS = 4  # of a dry run; the first, which is slower, is not counted
CLOSE = 0.05  # a loss that is near zero
IN_A_ROW = 3  # steps with such a loss, so that it is none by chance
UNCHANGED = Augmentation(num_ops=0, crop_area=(1.0, 1.0), flip=0.0)


@dataclass(frozen=True)
class DryRun:
    """What a few steps, an evaluation of a few videos and saving say of the whole run."""

    steps: int  # of an epoch
    step_seconds: float  # the median
    data_wait: float  # share of a step that passes waiting for clips
    memory_mib: float  # at most so far: of the GPU in tensors, else of this process
    epoch_seconds: float  # training and, where it follows, evaluation
    run_seconds: float

    def lines(self) -> list[str]:
        """The same for people."""
        epoch, run = (timedelta(seconds=round(seconds)) for seconds in (self.epoch_seconds, self.run_seconds))
        return [
            f"everything works: {self.steps} steps an epoch, {self.step_seconds:.3g} s each, of which "
            f"{self.data_wait:.0%} waiting for clips",
            f"about {epoch} an epoch with its evaluation, {run} for the whole run; {self.memory_mib / 2**10:.2f} GiB "
            "of memory at most",
        ]


def dry_run(
    data: str | Path,
    recipe: Recipe,
    *,
    workers: int = 0,
    device: str = "auto",
    console: Console | None = None,
    parallel: Parallel = "ddp",
    **split: Any,
) -> DryRun:
    """A run in little: a few steps, the evaluation, saving, all as in `train_classifier`, in a folder that vanishes.

    Args:
        data, recipe, workers, device, parallel: as for `train_classifier`.
        console: is shown the result.
        split: root, holdout and holdout_list of `train_classifier`.

    Raises:
        UniFormerV2Error: what the run would end with.
    """
    videos = divide(data, recipe, **split)
    some = recipe.optimization.batch_size // recipe.augmentation.repeats
    little = Division(videos.labels, _spread(videos.training, STEPS * some), _spread(videos.held_out, some))
    parts = assemble(_one_epoch(recipe), little, device=rank_device(device), workers=workers, console=console)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(current_ranks().gather(folder)[0])
        trainer = Trainer(
            parts.model,
            parts.task,
            parts.loader,
            parts.recipe.optimization,
            run=run,
            save=save_model,
            parallel=parallel,
        )
        trainer.fit()
        start = time.perf_counter()
        with trainer.evaluated() as model:
            parts.task.evaluate(model)
        evaluating = (time.perf_counter() - start) / len(little.held_out) * len(videos.held_out)
        start = time.perf_counter()
        measure(trainer, parts, little.held_out, workers=workers)
        measuring = (time.perf_counter() - start) / len(little.held_out) * len(videos.held_out)
        records = read_metrics(run.metrics)
        current_ranks().wait()  # until all have read what the first removes
    result = _projection(recipe, [one for one in records if one["kind"] == "step"], videos, evaluating, measuring)
    show(console, result.lines())
    return result


def _spread(rows: Sequence[Annotation], count: int) -> list[Annotation]:
    """So many of the rows, from all over them."""
    return [rows[number * len(rows) // count] for number in range(count)] if count < len(rows) else list(rows)


def _one_epoch(recipe: Recipe) -> Recipe:
    return replace(recipe, optimization=replace(recipe.optimization, epochs=1, warmup_epochs=0.0))


def _projection(
    recipe: Recipe, steps: Sequence[dict[str, Any]], videos: Division, evaluating: float, measuring: float
) -> DryRun:
    """From the records of some steps to the whole run."""
    counted = steps[1:] or steps
    seconds = statistics.median(step["clips"] / step["clips_per_second"] for step in counted)
    optimization = recipe.optimization
    in_step = optimization.batch_size // recipe.augmentation.repeats
    per_epoch = max(1, len(videos.training) // in_step)
    evaluations = math.ceil(optimization.epochs / optimization.evaluate_every)
    return DryRun(
        steps=per_epoch,
        step_seconds=seconds,
        data_wait=statistics.median(step["data_wait"] for step in counted),
        memory_mib=max(step["memory_mib"] for step in steps),
        epoch_seconds=per_epoch * seconds + evaluating,
        run_seconds=optimization.epochs * per_epoch * seconds + evaluations * evaluating + measuring,
    )


def show(console: Console | None, lines: Iterable[str]) -> None:
    """Print lines as they are."""
    for line in lines if console is not None else ():
        cast("Console", console).print(line, highlight=False, markup=False, soft_wrap=True)


# --- one batch


@dataclass(frozen=True)
class OverfitBatch:
    """What came of learning one batch by heart."""

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
    data: str | Path,
    recipe: Recipe,
    *,
    steps: int = 200,
    device: str = "auto",
    console: Console | None = None,
    **split: Any,
) -> OverfitBatch:
    """Train on one batch, again and again, without anything that makes it hard: the loss has to come near zero.

    Left out are augmentation, mixing, label smoothing, dropout, drop path and the schedule; the learning rate is the
    recipe's.

    Args:
        data, recipe, device: as for `train_classifier`.
        steps: how many at most.
        console: is shown the result.
        split: root, holdout and holdout_list of `train_classifier`.
    """
    videos = divide(data, recipe, **split)
    parts = assemble(without_regularisation(recipe), videos, device=pick_device(device))
    batch = _readable(parts.loader)
    losses = _losses(parts, batch, steps)
    complaint = "" if max(losses[-IN_A_ROW:]) < CLOSE else _complaint(parts, batch, losses)
    result = OverfitBatch(tuple(losses), complaint)
    show(console, result.lines())
    return result


def without_regularisation(recipe: Recipe) -> Recipe:
    """The recipe for one batch: nothing that makes learning it by heart harder, and a constant learning rate."""
    recipe = recipe.resolved()
    rate = recipe.optimization.lr
    model = replace(
        recipe.model,
        drop_path=0.0,
        global_drop_path=0.0,
        global_dropout=0.0,
        head_dropout=0.0,
        cache_features="none",
    )
    optimization = replace(
        recipe.optimization,
        epochs=1,
        warmup_epochs=0.0,
        start_lr=rate,
        end_lr=rate,
        label_smoothing=0.0,
        weight_decay=0.0,
        accumulate=1,
        batch_size=micro_batch(recipe) // recipe.augmentation.repeats,
        lr_base_batch=None,
        ema=0.0,
        early_stop=0,
    )
    return replace(recipe, model=model, optimization=optimization, augmentation=UNCHANGED)


def _readable(loader: VideoLoader) -> Batch:
    """The first batch of several classes, or the first with something in it."""
    found: Batch | None = None
    for batch in loader:
        if len(batch.labels.unique()) > 1:
            return batch
        if found is None and len(batch):
            found = batch
    if found is None:
        raise VideoError("not one training video could be read")
    return found


class _Learned(Exception):
    """The loss is near zero."""


class OneBatch(Classification):
    """The task until a batch is learned; nothing is evaluated."""

    def __init__(self, target: float = 0.0) -> None:
        super().__init__(cast("HeldOut", None), label_smoothing=0.0)
        self.target = target
        self.losses: list[float] = []
        self.times: list[float] = []  # when each step had its loss, in seconds

    def cost(self, model: nn.Module, batch: Batch) -> Cost | None:
        cost = super().cost(model, batch)
        if cost is not None:
            self.losses.append(cost.loss.item())
            self.times.append(time.perf_counter())
            if len(self.losses) >= IN_A_ROW and max(self.losses[-IN_A_ROW:]) < self.target:
                raise _Learned
        return cost

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {}


class _Again:
    """A loader of one batch, so many times."""

    def __init__(self, batch: Batch, times: int) -> None:
        self.batch, self.times, self.batch_size = batch, times, len(batch)
        self.sampler = self

    def set_epoch(self, epoch: int, *, first_batch: int = 0) -> None:
        """There is no order."""

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[Batch]:
        return iter([self.batch] * self.times)


class _Nowhere(RunFolder):
    """The folder of a run of which no state is kept."""

    def open_states(self, ranks: Ranks) -> StateFolder:
        return _NoStates(self.states, ranks)


class _NoStates(StateFolder):
    def save(self, name: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Not here."""


def train_on(model: UniFormerV2, recipe: Recipe, task: Classification, batch: Batch, times: int) -> None:
    """So many steps on one batch, of which nothing is kept."""
    loader = _Again(batch, times)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(model, task, loader, recipe.optimization, run=_Nowhere(folder), save=lambda model, path: None).fit()


def _losses(parts: Parts, batch: Batch, steps: int) -> list[float]:
    task = OneBatch(CLOSE)
    with suppress(_Learned):
        train_on(parts.model, parts.recipe, task, batch, steps)
    return task.losses


def _complaint(parts: Parts, batch: Batch, losses: Sequence[float]) -> str:
    """What is wrong with a batch that cannot be learned."""
    twins = _same_clips(batch)
    if twins:
        return f"{twins[0]} and {twins[1]} are the same clip with different labels: nothing can tell them apart"
    trained = [one for one in parts.model.parameters() if one.requires_grad]
    still = [one for one in trained if one.grad is None or not one.grad.any()]
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
    for one, other in combinations(range(len(batch)), 2):
        same = files[one] == files[other] or torch.equal(batch.clips[one], batch.clips[other])
        if same and batch.labels[one] != batch.labels[other]:
            return batch.paths[one], batch.paths[other]
    return None
