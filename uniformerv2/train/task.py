"""What a task defines for the engine: a loss, held-out metrics, and the input for an empty batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a batch."""

    loss: Tensor  # scalar: the mean over the clips
    scalars: Mapping[str, Tensor]  # () each, on the device of the loss: means over the clips, those that the task names
    clips: int


class Task(Protocol):
    """What the trainer needs of a task. Another task is another class; the engine stays as it is."""

    scalars: tuple[str, ...]
    """Names of what is logged beside the loss."""
    monitor: str
    """The metric of `evaluate` that decides which epoch was best."""
    lower_is_better: bool
    """Whether that is the epoch where it is lowest."""

    def loss(self, model: nn.Module, batch: Any) -> BatchLoss | None:
        """The loss of a batch, called under autocast; None if nothing in the batch could be read."""

    def empty_input(self, model: nn.Module) -> Any:
        """Input without a clip. A process whose batch is empty runs the model on it, as the others wait for it."""

    def files(self, batch: Any) -> Sequence[str]:
        """The files of a batch, for error messages."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out metrics, the same on every rank; empty where nothing is held out."""


class TrainingLoader(Protocol):
    """Batches of training data, epoch by epoch, as `VideoLoader` has them."""

    @property
    def batch_size(self) -> int:
        """Items of a full batch."""

    def set_epoch(self, epoch: int, *, first_batch: int = 0) -> None:
        """Choose the epoch, and how many of its steps the next iteration leaves out."""

    def __len__(self) -> int:
        """Batches of a whole epoch."""

    def __iter__(self) -> Iterator[Any]:
        """The batches of the epoch that are left."""
