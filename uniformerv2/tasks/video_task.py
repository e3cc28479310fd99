"""What all tasks on videos have in common, and what each of them defines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from uniformerv2.data.annotations import Annotation, Damaged, Unreadable
from uniformerv2.data.loader import Batch
from uniformerv2.device import model_device
from uniformerv2.errors import RecipeError
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.progress import say
from uniformerv2.train.choices import MONITORED, Loss, Monitor
from uniformerv2.train.recipe import Recipe
from uniformerv2.train.task import BatchLoss
from uniformerv2.video.augmentation import REVERSED, Augmentation

Video = TypeVar("Video", Unreadable, Damaged)


class Measurement(Protocol):
    """What a task finds on held-out videos."""

    @property
    def summary(self) -> str:
        """A line for people."""

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
    monitors: ClassVar[tuple[Monitor, ...]] = ()
    """What a recipe may choose as monitor, the usual one first; none: the task has one of its own."""
    losses: ClassVar[tuple[Loss, ...]] = ()
    """What a recipe may choose as loss; none: the task has one of its own."""
    min_classes: ClassVar[int] = 1
    """How many classes there have to be."""
    several_labels: ClassVar[bool] = False
    """Whether a video may have several labels, or none; see `VideoDataset`."""

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
        self.recipe, self.model, self.held_out, self.training = self.chosen(recipe), model, held_out, training
        self.workers, self.progress = workers, progress
        if self.monitors:
            self.monitor = MONITORED[self.recipe.optimization.monitor]
            self.lower_is_better = self.recipe.optimization.monitor == "loss"
        self.unpack: Callable[[Tensor], Any] = lambda clips: clips
        self.skipped: dict[str, Unreadable] = {}
        self._damaged: dict[str, Damaged] = {}

    @classmethod
    def chosen(cls, recipe: Recipe) -> Recipe:
        """The recipe with what "auto" means for this task. Raises RecipeError for what the task does not have."""
        optimization = recipe.optimization
        monitor = optimization.monitor
        if monitor == "auto" and cls.monitors:
            monitor = cls.monitors[0]
        for name, value, known in (("monitor", monitor, cls.monitors), ("loss", optimization.loss, cls.losses)):
            if known and value not in known:
                raise RecipeError(f"this task has no {name} {value!r}; it has {', '.join(known)}")
        return recipe.vary(monitor=monitor)

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

    def describe(self, model: UniFormerV2) -> None:
        """Say on a model that is about to be saved what belongs to it beside its weights: one label for each video."""
        model.thresholds = ()

    def clips_shown(self) -> list[float]:
        """How many training clips show each class, in an epoch on the average; mirrored and reversed ones as seen."""
        rows = Counter(label for row in self.training for label in row.labels)
        counts = [float(rows[label]) for label in self.model.labels]
        augmentation, labels = self.recipe.augmentation, self.model.labels
        reversing, mirroring = self.reversing(augmentation, labels), self.mirroring(augmentation, labels)
        # in the order of `VideoDataset`: a clip that is played backwards is mirrored as one of the class that it shows
        for share, counterparts in ((REVERSED, reversing), (augmentation.flip, mirroring)):
            before = list(counts)
            for one, other in enumerate(counterparts.classes):
                if other is not None:  # so many of its clips are seen with the other label
                    counts[one] -= share * before[one]
                    counts[other] += share * before[one]
        return counts

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
