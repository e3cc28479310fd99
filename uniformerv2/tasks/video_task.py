"""What all tasks on videos have in common, and what each of them defines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from uniformerv2.data.annotations import Annotation, Damaged, Unreadable
from uniformerv2.data.loader import Batch
from uniformerv2.device import model_device
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.progress import say
from uniformerv2.train.recipe import Recipe
from uniformerv2.train.task import BatchLoss
from uniformerv2.video.augmentation import Augmentation

Video = TypeVar("Video", Unreadable, Damaged)


class Measurement(Protocol):
    """What a task finds on held-out videos."""

    def to_json(self) -> dict[str, Any]:
        """As evaluation.json has it."""


@dataclass(frozen=True)
class Counterparts:
    """What a change of a training clip, mirroring it or playing it backwards, changes about its label."""

    pairs: str = "none"  # `flip_labels` or `reverse_labels` of `Augmentation`, but for auto
    classes: tuple[int | None, ...] = ()  # see `mirrored_classes` and `reversed_classes` of `VideoDataset`
    notes: tuple[str, ...] = ()  # lines for people


class VideoTask(ABC):
    """Loss, metric and batches of a model of videos: a `train.task.Task`, built from a recipe.

    Args:
        recipe: that is trained.
        model: whose labels and preprocessing count.
        held_out: the videos that are measured; none: there is nothing to evaluate.
        training: the videos that are trained on, for what depends on all of them.
        workers: processes that read them.
        progress: whether to name each unreadable or damaged video, once.

    Attributes:
        unpack: makes the input of the model from the clips of a batch, or from what a batch has in their place.
        skipped: by path, the videos that could not be read.
    """

    monitor: str
    lower_is_better: bool = False
    scalars: tuple[str, ...]
    min_classes: ClassVar[int] = 1
    """How many classes there have to be."""

    def __init__(
        self,
        recipe: Recipe,
        model: UniFormerV2,
        held_out: Sequence[Annotation] = (),
        *,
        training: Sequence[Annotation] = (),
        workers: int = 0,
        progress: bool = False,
    ) -> None:
        self.recipe, self.model, self.held_out, self.training = recipe, model, held_out, training
        self.workers, self.progress = workers, progress
        self.unpack: Callable[[Tensor], Any] = lambda clips: clips
        self.skipped: dict[str, Unreadable] = {}
        self._damaged: dict[str, Damaged] = {}

    @classmethod
    def mirroring(cls, augmentation: Augmentation, labels: Sequence[str]) -> Counterparts:
        """What it changes about these classes; nothing, unless a task says otherwise."""
        return Counterparts()

    @classmethod
    def reversing(cls, augmentation: Augmentation, labels: Sequence[str]) -> Counterparts:
        """The classes whose clips are played backwards; none, unless a task says otherwise."""
        return Counterparts()

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss | None:
        """See `train.task.Task`. Calls `report`."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """See `train.task.Task`. One view of each held-out video, which takes less time than those of the recipe."""

    @abstractmethod
    def measure(self, model: nn.Module) -> Measurement:
        """The result of the run, with the views of the recipe; the same on every rank."""

    @abstractmethod
    def random_labels(self, clips: int) -> Tensor:
        """Labels as a batch of so many clips has them."""

    def empty_input(self, model: nn.Module) -> Tensor:
        """See `train.task.Task`."""
        shape = self.model.preprocessing
        return torch.empty(0, 3, shape.num_frames, *shape.size, device=model_device(model))

    def files(self, batch: Batch) -> Sequence[str]:
        """See `train.task.Task`."""
        return batch.paths

    def report(self, batch: Batch) -> None:
        """Remember and name the videos of a batch that could not be read, or that are damaged."""
        self.report_skipped(batch.unreadable)
        self._report(self._damaged, "damaged", batch.damaged)

    def report_skipped(self, videos: Iterable[Unreadable]) -> None:
        """Remember and name videos that could not be read."""
        self._report(self.skipped, "skipped", videos)

    def _report(self, known: dict[str, Video], what: str, videos: Iterable[Video]) -> None:
        for video in videos:
            if video.path not in known:
                say(f"{what}: {video.reason}", progress=self.progress, style="yellow")
            known[video.path] = video
