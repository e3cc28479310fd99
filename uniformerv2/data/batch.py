"""A video as clips, and several of them as a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from uniformerv2.data.annotations import Damaged, Unreadable


@dataclass
class Sample:
    """A video that was read, or why it could not be: `clips` or `error` is None.

    Samples of loader workers have neither: their clips are in shared memory.
    """

    index: int  # row of the dataset
    path: str
    label: int
    clips: Tensor | None = None  # float32 (views, 3, frames, height, width), normalised
    error: str | None = None  # why there are no clips
    damage: list[str] = field(default_factory=list)  # what is damaged in a video that was read


@dataclass
class Batch:
    """The readable videos of a batch. The others are left out and named."""

    clips: Tensor  # float32 (n, views, 3, frames, height, width), normalised; (0,) if nothing could be read
    labels: Tensor  # int64 (n)
    indices: list[int]  # rows of the dataset, n of them
    paths: list[str]  # n of them
    unreadable: list[Unreadable] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)

    @classmethod
    def of(cls, samples: Sequence[Sample], clips: Tensor) -> Batch:
        """Samples as one batch.

        Args:
            samples: in their order.
            clips: of those without an error, (n, views, 3, frames, height, width).
        """
        read = [sample for sample in samples if sample.error is None]
        return cls(
            clips=clips,
            labels=torch.tensor([sample.label for sample in read], dtype=torch.int64),
            indices=[sample.index for sample in read],
            paths=[sample.path for sample in read],
            unreadable=[
                Unreadable(sample.path, sample.error, sample.index) for sample in samples if sample.error is not None
            ],
            damaged=[Damaged(sample.path, damage) for sample in samples for damage in sample.damage],
        )

    def __len__(self) -> int:
        return len(self.paths)

    def pin_memory(self) -> Batch:
        """Move it to page-locked memory, from which copying to a GPU overlaps with computing."""
        self.clips, self.labels = self.clips.pin_memory(), self.labels.pin_memory()
        return self


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples as one batch; those without clips are left out and named in `unreadable`."""
    clips = [sample.clips for sample in samples if sample.clips is not None]
    return Batch.of(samples, torch.stack(clips) if clips else torch.empty(0))
