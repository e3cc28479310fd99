"""How many clips a model can be trained on at once."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from uniformerv2.data.annotations import class_names
from uniformerv2.data.batch import Batch
from uniformerv2.data.sources import read_annotations
from uniformerv2.device import peak_memory_mib, pick_device
from uniformerv2.errors import RecipeError
from uniformerv2.progress import say
from uniformerv2.tasks.overfitting import without_regularisation
from uniformerv2.tasks.run import Videos, with_precision
from uniformerv2.tasks.start import build_model
from uniformerv2.tasks.table import find_task
from uniformerv2.tasks.video_task import VideoTask
from uniformerv2.train.frozen import train_mode
from uniformerv2.train.recipe import Recipe
from uniformerv2.train.step import TrainingStep


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
        root, device: as for `train_classifier`.
        progress: whether to show each size as it is tried.
        limit_mib: of this process, or of tensors on a GPU; None: four fifths of what is free now, or all of a GPU.
        largest: where to stop in any case.
        task: name of what is trained for.

    Raises:
        RecipeError: not even one clip fits.
    """
    place = pick_device(device)
    labels = class_names(read_annotations(data, root=root), minimum=find_task(task).min_classes)
    alone = without_regularisation(recipe)
    model = build_model(alone, labels).to(place)
    trained = find_task(task)(with_precision(alone, place, width=model.config.width), model)
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
        step([batch], lr=optimization.lr)
    return size / (time.perf_counter() - start)


def _free_mib() -> float:
    """Memory of the machine that is available, on Linux; elsewhere a GiB is assumed."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) / 1024
    return 1024.0
