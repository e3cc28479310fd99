"""How many clips a model can be trained on at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from uniformerv2.data.batch import Batch
from uniformerv2.device import peak_memory_mib, pick_device
from uniformerv2.errors import RecipeError
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.tasks.rehearsal import OneBatch, show, train_on, without_regularisation
from uniformerv2.tasks.start import build_model
from uniformerv2.train.precision import pick_training_precision
from uniformerv2.train.recipe import Recipe


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
        return next(parts for parts in range(1, self.batch_size + 1) if self._fits(parts))

    def _fits(self, parts: int) -> bool:
        return self.batch_size % parts == 0 and self.batch_size // parts <= self.largest

    def lines(self) -> list[str]:
        """The same for people."""
        tried = [
            f"{size:>5} clips: {self.memory_mib[size] / 2**10:.2f} GiB, {self.clips_per_second[size]:.1f} clips/s"
            for size in self.memory_mib
        ]
        together = "at once" if self.accumulate == 1 else f"with accumulate {self.accumulate}"
        return [*tried, f"{self.largest} clips fit; the recipe's batch of {self.batch_size} {together}"]


def find_batch_size(
    recipe: Recipe,
    num_classes: int,
    *,
    device: str = "auto",
    limit_mib: float | None = None,
    largest: int = 4096,
    console: Console | None = None,
) -> BatchSizes:
    """Double the number of clips until memory is out; a training step on random clips each.

    A GPU says itself when its memory is out. The memory of a machine must not run out, so there a size is tried only
    if it should stay below a limit, judged by the sizes before.

    Args:
        recipe: model, clip and precision.
        num_classes: of the head.
        device: as for `train_classifier`.
        limit_mib: of this process, or of tensors on a GPU; None: four fifths of what is free now, or all of a GPU.
        largest: where to stop in any case.
        console: is shown the result.

    Raises:
        RecipeError: not even one clip fits.
    """
    place, batch_size = pick_device(device), recipe.optimization.batch_size
    recipe = without_regularisation(recipe)
    model = build_model(recipe, [str(number) for number in range(num_classes)]).to(place)
    precision = pick_training_precision(recipe.optimization.precision, place, width=model.config.width)
    recipe = replace(recipe, optimization=replace(recipe.optimization, precision=precision))
    if limit_mib is None:
        limit_mib = math.inf if place.type == "cuda" else peak_memory_mib(place) + 0.8 * _free_mib()
    memory = {0: peak_memory_mib(place)}
    speed: dict[int, float] = {}
    for size in _doubling(largest):
        if _expected(memory) > limit_mib:
            break
        try:
            speed[size] = _try(model, recipe, size)
        except torch.OutOfMemoryError:
            break
        memory[size] = peak_memory_mib(place)
        if memory[size] > limit_mib:
            break
    fitting = [size for size in speed if memory[size] <= limit_mib]
    if not fitting:
        raise RecipeError(
            f"not even one clip fits into {limit_mib:.0f} MiB on {place}: take a smaller model, size or num_frames, "
            "or more checkpoint_blocks"
        )
    memory.pop(0)
    result = BatchSizes(max(fitting), memory, speed, batch_size)
    show(console, result.lines())
    return result


def _doubling(largest: int) -> Iterator[int]:
    size = 1
    while size <= largest:
        yield size
        size *= 2


def _expected(memory: dict[int, float]) -> float:
    """Of the next size, if every clip takes as much as those before."""
    *_, before, last = [0, *memory] if len(memory) == 1 else memory
    if last == before:  # nothing was tried yet
        return memory[last]
    return memory[last] + last * (memory[last] - memory[before]) / (last - before)


def _try(model: UniFormerV2, recipe: Recipe, size: int) -> float:
    """Two training steps on random clips; returns the clips per second of the second."""
    frames, (height, width) = model.preprocessing.num_frames, model.preprocessing.size
    clips = torch.randn(size, 1, 3, frames, height, width)
    labels = torch.randint(model.config.num_classes, (size,))
    batch = Batch(clips, labels, [*range(size)], ["random"] * size)
    task = OneBatch()
    train_on(model, recipe, task, batch, 2)
    first, second = task.times
    return size / (second - first)


def _free_mib() -> float:
    """Memory of the machine that can still be had, as Linux says; elsewhere a GiB is assumed."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 1024.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable")), 1024.0)
