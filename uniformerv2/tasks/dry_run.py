"""Before the long run: does everything work, and how long will it take?"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from uniformerv2.distributed import current_ranks, rank_device
from uniformerv2.tasks.run import TrainingData, Videos, build_run, split_data
from uniformerv2.train.engine import Trainer
from uniformerv2.train.log import read_metrics
from uniformerv2.train.parallel import Parallel
from uniformerv2.train.recipe import Recipe
from uniformerv2.train.run_folder import RunFolder
from uniformerv2.weights import save_model

T = TypeVar("T")

STEPS = 4  # of a dry run; the first, which is slower, is not counted


@dataclass(frozen=True)
class DryRun:
    """What the whole run will take, judged by a few steps, an evaluation of a few videos and saving."""

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
    data: Videos,
    recipe: Recipe,
    *,
    root: str | Path | None = None,
    holdout: float = 0.2,
    holdout_list: str | Path | None = None,
    device: str = "auto",
    workers: int = 2,
    progress: bool = False,
    parallel: Parallel = "ddp",
    task: str = "classification",
) -> DryRun:
    """Everything that `train_classifier` does, for a few steps and videos, in a folder that is removed.

    Args:
        data, recipe, root, holdout, holdout_list, device, workers, progress, parallel: as for `train_classifier`.
        task: name of what is trained for.

    Raises:
        UniFormerV2Error: what the run would end with.
    """
    videos = split_data(data, recipe, task=task, root=root, holdout=holdout, holdout_list=holdout_list)
    in_step = recipe.optimization.batch_size // recipe.augmentation.repeats
    few = TrainingData(videos.labels, _spread(videos.training, STEPS * in_step), _spread(videos.held_out, in_step))
    short = recipe.vary(epochs=1, warmup_epochs=0.0)
    parts = build_run(short, few, task=task, device=rank_device(device), workers=workers, progress=progress)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(current_ranks().gather(folder)[0])
        options: Any = {"run": run, "save": save_model, "parallel": parallel}
        trainer = Trainer(parts.model, parts.task, parts.loader, parts.recipe.optimization, **options)
        trainer.fit()
        share = len(videos.held_out) / len(few.held_out)
        with trainer.step.evaluated() as model:
            evaluating = share * _seconds(lambda: parts.task.evaluate(model))
            measuring = share * _seconds(lambda: parts.task.measure(model))
        records = read_metrics(run.metrics)
        current_ranks().wait()  # until all have read what the first removes
    steps = [record for record in records if record["kind"] == "step"]
    return _projection(recipe, steps, len(videos.training), evaluating, measuring)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


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
    )
