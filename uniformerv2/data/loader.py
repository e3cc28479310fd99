"""Clips in batches, read by worker processes that may die; they share the memory of the clips, which nothing copies."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from uniformerv2.data.annotations import Damaged, Unreadable
from uniformerv2.data.order import EpochSampler
from uniformerv2.data.processes import Crash, Workers
from uniformerv2.device import on_device, upload
from uniformerv2.errors import RecipeError, VideoError


@dataclass
class Sample:
    """A video that was read, or why it could not be: `clips` or `error` is None.

    Samples of loader workers have neither: their clips are in shared memory.
    """

    index: int  # row of the dataset
    path: str
    label: int | list[int] | list[int | list[int]]  # of `VideoDataset.label_of`; where views differ, of each
    clips: Tensor | None = None  # float32 (views, 3, frames, height, width), normalised
    error: str | None = None  # why there are no clips
    damage: list[str] = field(default_factory=list)  # what is damaged in a video that was read
    seconds: tuple[float, float] = (0.0, 0.0)  # start and end of what was read, where the dataset tells


@dataclass
class Batch:
    """The readable videos of a batch. The others are left out and named."""

    clips: Tensor  # float32 (n, views, 3, frames, height, width), normalised; (0,) if nothing could be read
    labels: Tensor  # int64 (n), or (n, views) where the augmentation changes them; with several labels (..., classes)
    indices: list[int]  # rows of the dataset, n of them
    paths: list[str]  # n of them
    unreadable: list[Unreadable] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)
    seconds: list[tuple[float, float]] = field(default_factory=list)  # n of them, as of `Sample`

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
            seconds=[sample.seconds for sample in read],
        )

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.clips, self.labels

    def to(self, device: torch.device) -> Batch:
        """Move it, as `upload` does."""
        self.clips, self.labels = upload(self.clips, device), upload(self.labels, device)
        return self


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples as one batch; those without clips are left out and named in `unreadable`."""
    clips = [sample.clips for sample in samples if sample.clips is not None]
    return Batch.of(samples, torch.stack(clips) if clips else torch.empty(0))


SampleKey = int | tuple[int, int]  # row, or row and draw

_QUEUE_SIZE = 64  # keys that a worker has at once; their messages fit into the buffers of a pipe
SHARED_MEMORY = "/dev/shm"


class ClipDataset(Protocol):
    """What a loader reads: a `VideoDataset`, or other samples by key."""

    @property
    def clips_shape(self) -> tuple[int, ...]:
        """Of a sample's clips, whose first axis are the views."""

    def __len__(self) -> int:
        """How many rows there are."""

    def read(self, key: SampleKey, *, out: Tensor | None = None) -> Sample:
        """A sample whose clips, of `clips_shape`, are written to `out` or to new memory."""

    def unreadable(self, key: SampleKey, reason: str) -> Sample:
        """The sample of a video that could not be read, for a reason that the loader knows."""


@dataclass(eq=False)
class VideoLoader:
    """`Batch`es of a dataset, in the same order whatever the number of workers.

    A video whose decoding ends a worker process is tried once more in a new one, and then left out and named like any
    other that cannot be read. Workers read single videos, not batches, and write the clips to shared memory, which is
    used again when nothing refers to a batch any more: new memory would cost more than decoding a short video.

    `dataclasses.replace` makes a loader that differs in some of these, with workers of its own.
    """

    dataset: ClipDataset
    batch_size: int
    sampler: EpochSampler | Sequence[SampleKey]  # the keys of an epoch, in their order
    workers: int = 0  # processes that read ahead; 0: this process reads, and a video that crashes the decoder ends it
    max_failures: float | None = None
    """Share of the rows that may be unreadable before iterating ends with an error; one always may. None: all may."""
    device: torch.device | None = None
    """That computes. To a GPU batches are uploaded, each while the one before is computed if there are workers."""
    unreadable: dict[int, Unreadable] = field(default_factory=dict, init=False)
    """By row, every video that could not be read so far."""
    _pool: _Pool | None = field(default=None, init=False, repr=False)  # while it is idle

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Generator[Batch, None, None]:
        # closed by name: from Python 3.12 on, a generator that is left early keeps those that it iterates over
        with closing(self._batches()) as read, closing(self._moved(read)) as batches:
            for batch in batches:
                self._count(batch)
                yield batch

    def _moved(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        # without workers, this thread reads
        return on_device(batches, self.device) if self.device is not None and self.workers else batches

    def set_epoch(self, epoch: int, *, first_batch: int = 0) -> None:
        """Choose the epoch of a training loader; see `EpochSampler.set_epoch`."""
        assert isinstance(self.sampler, EpochSampler)
        self.sampler.set_epoch(epoch, first_batch=first_batch)

    def _count(self, batch: Batch) -> None:
        """Remember the unreadable videos. Raises VideoError where they are too many."""
        self.unreadable |= {video.row: video for video in batch.unreadable}
        if self.max_failures is None or len(self.unreadable) <= max(1, self.max_failures * len(self.dataset)):
            return
        reasons = [video.reason for video in self.unreadable.values()]
        raise VideoError(
            f"{len(self.unreadable)} of {len(self.dataset)} videos could not be read so far, more than the "
            f"{100 * self.max_failures:.3g} % that max_failures allows: "
            f"{'; '.join(reasons[:3])}{'; ...' if len(reasons) > 3 else ''}; "
            "`uniformerv2 data check` finds all such videos and writes a manifest without them"
        )

    def _batches(self) -> Generator[Batch, None, None]:
        keys = iter(self.sampler)
        batches = iter(lambda: list(islice(keys, self.batch_size)), [])
        if self.workers == 0:
            for batch in batches:
                yield collate([self.dataset.read(key) for key in batch])
            return
        pool = self._pool or _Pool(self.dataset, workers=self.workers, batch_size=self.batch_size)
        self._pool = None
        try:
            yield from pool.batches(batches)
        except BaseException:  # also if the iteration is left early: then workers are still busy
            pool.stop()
            raise
        self._pool = pool


@dataclass
class _Pending:
    """A batch that is being read."""

    keys: Sequence[SampleKey]
    slot: int  # of the shared memory
    samples: dict[int, Sample] = field(default_factory=dict)  # by place in the batch

    @property
    def done(self) -> bool:
        return len(self.samples) == len(self.keys)


_Task = tuple[SampleKey, int, int]  # what to read, and where its clips go: the slot and the place in the batch


class _Pool:
    """Worker processes and the memory that they share with this one."""

    def __init__(self, dataset: ClipDataset, *, workers: int, batch_size: int) -> None:
        self._dataset = dataset
        self._ahead = 1 + -(-2 * workers // batch_size)  # batches: enough that no worker waits
        slots = self._ahead + 2  # one for the batch in use, and one for the batch before it
        self._memory = shared_memory((slots, batch_size, *dataset.clips_shape))
        self._free = deque(range(slots))
        self._workers: Workers[_Task] = Workers(partial(_read, dataset, self._memory), workers, queue_size=_QUEUE_SIZE)
        self.stop = self._workers.stop

    def batches(self, keys: Iterator[Sequence[SampleKey]]) -> Iterator[Batch]:
        """The batches of these keys, in order."""
        pending: dict[int, _Pending] = {}  # by slot, in order
        while True:
            while len(pending) < self._ahead and self._free and (some := next(keys, None)) is not None:
                slot = self._free.popleft()
                pending[slot] = _Pending(some, slot)
                for place, key in enumerate(some):
                    self._workers.give((key, slot, place))
            if not pending:
                return
            first = next(iter(pending.values()))
            while not first.done:
                for (key, slot, place), found in self._workers.receive():
                    if isinstance(found, Crash):
                        found = self._dataset.unreadable(key, f"reading it ended a process ({found.cause})")
                    pending[slot].samples[place] = found
            yield self._finish(pending.pop(first.slot))

    def _finish(self, batch: _Pending) -> Batch:
        """The batch with its clips in shared memory, or copied where no slot is left for the next batches."""
        samples = [batch.samples[place] for place in range(len(batch.keys))]
        read = [place for place, sample in enumerate(samples) if sample.error is None]
        memory = self._memory[batch.slot]
        clips: Tensor
        if len(read) < len(samples) or not self._free:
            clips = memory[read] if read else torch.empty(0)  # a copy
            self._free.append(batch.slot)
        else:
            lease = memory[: len(read)].numpy()
            weakref.finalize(lease, self._free.append, batch.slot)  # when no tensor refers to it any more
            clips = torch.from_numpy(lease)
        return Batch.of(samples, clips)


def _read(dataset: ClipDataset, memory: Tensor, task: _Task) -> Sample:
    """The sample without its clips, which go to the memory."""
    key, slot, place = task
    sample = dataset.read(key, out=memory[slot, place])
    sample.clips = None
    return sample


def shared_memory(shape: tuple[int, ...]) -> Tensor:
    """Float32 memory for several processes. Raises RecipeError where the system has too little of it."""
    wanted = 4 * torch.Size(shape).numel()
    if os.path.isdir(SHARED_MEMORY):
        status = os.statvfs(SHARED_MEMORY)
        free = status.f_bavail * status.f_frsize
        if wanted > free:  # a process that touched it would be ended
            raise RecipeError(
                f"the loader's workers need {wanted / 1e9:.2f} GB of shared memory, but {SHARED_MEMORY} has "
                f"{free / 1e9:.2f} GB left: enlarge it (docker run --shm-size), or use a smaller batch or 0 workers"
            )
    return torch.empty(shape, dtype=torch.float32).share_memory_()
