"""A loader whose worker processes may die, and whose clips are written once, to where they are read."""

from __future__ import annotations

import os
import signal
import traceback
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, cast

import torch
import torch.multiprocessing
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from uniformerv2.data.annotations import Unreadable
from uniformerv2.data.batch import Batch, Sample, collate
from uniformerv2.data.crashproof import cause_of_end
from uniformerv2.errors import RecipeError, VideoError

Key = int | tuple[int, int]  # row, or row and draw

_ATTEMPTS = 2  # a process may be ended by chance
_IN_FLIGHT = 64  # samples that a worker is asked for at once; their messages fit into the buffers of a pipe
_SHARED_MEMORY = "/dev/shm"


class Samples(Protocol):
    """What a loader reads: a `VideoDataset`, or another source of samples by key."""

    @property
    def clips_shape(self) -> tuple[int, ...]:
        """Of a sample's clips, whose first axis are the views."""

    def __len__(self) -> int:
        """How many rows there are."""

    def __getitem__(self, key: Key) -> Sample:
        """As `read`."""

    def read(self, key: Key, *, out: Tensor | None = None) -> Sample:
        """A sample whose clips, of `clips_shape`, are written to `out` or to new memory."""

    def unreadable(self, key: Key, reason: str) -> Sample:
        """The sample of what could not be read, for a reason that only others know."""


class VideoLoader(DataLoader[Sample]):
    """A `DataLoader` of `Batch`es, in the same order whatever the number of workers.

    A video whose decoding ends a worker process is tried once more in a new one, and then left out and named like any
    other that cannot be read. Workers take single videos, not batches, and write the clips to shared memory that is
    used again once a batch is let go: fresh memory would cost more than many a decode.

    Args:
        dataset: as for `DataLoader`.
        max_failures: share of the dataset's rows that may fail before iterating ends with an error; a single one
            always may. None: any number may.
        options: as for `DataLoader`; batches are those of `collate`.
    """

    dataset: Samples  # type: ignore[assignment]

    def __init__(self, dataset: Samples, *, max_failures: float | None = None, **options: Any) -> None:
        super().__init__(cast("Dataset[Sample]", dataset), collate_fn=collate, **options)
        self.max_failures = max_failures
        self.unreadable: dict[int, Unreadable] = {}
        """By row, every video that could not be read so far."""
        self._pools: list[_Pool] = []  # without work

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if self.num_workers == 0:
            batches: Iterable[Any] = super().__iter__()
        elif self.pin_memory:
            batches = _pinned_ahead(self._read_by_workers())
        else:
            batches = self._read_by_workers()
        for batch in batches:
            self._count(batch)
            yield batch

    def over(self, dataset: Samples) -> VideoLoader:
        """A loader of other samples by the same keys, in the same order."""
        return VideoLoader(
            dataset,
            max_failures=self.max_failures,
            batch_size=self.batch_size,
            sampler=self.sampler,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            generator=self.generator,
        )

    def _count(self, batch: Batch) -> None:
        """Remember what failed. Raises VideoError where that is too much."""
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

    def _new_pool(self) -> _Pool:
        context = self.multiprocessing_context or torch.multiprocessing.get_context()
        return _Pool(context, self.dataset, workers=self.num_workers, batch_size=self.batch_size or 1)

    def _read_by_workers(self) -> Iterator[Batch]:
        pool = self._pools.pop() if self._pools else self._new_pool()
        try:
            yield from pool.batches(cast("Iterable[Sequence[Key]]", self.batch_sampler))
        except BaseException:  # left before its end, too: then workers are still at it
            pool.stop()
            raise
        self._pools.append(pool)


def _pinned_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same in page-locked memory, each made while the one before is computed."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(_pinned, batches)
        while (batch := coming.result()) is not None:
            coming = thread.submit(_pinned, batches)
            yield batch


def _pinned(batches: Iterator[Batch]) -> Batch | None:
    batch = next(batches, None)
    return batch and batch.pin_memory()


@dataclass
class _Pending:
    """A batch in the making."""

    keys: Sequence[Key]
    slot: int  # of the shared memory
    samples: dict[int, Sample] = field(default_factory=dict)  # by place in the batch

    @property
    def done(self) -> bool:
        return len(self.samples) == len(self.keys)


@dataclass
class _Job:
    """One video to be read, for one place of a batch."""

    batch: _Pending
    place: int
    attempts: int = 0


class _Pool:
    """Worker processes and the memory that they share with this one."""

    def __init__(self, context: Any, dataset: Samples, *, workers: int, batch_size: int) -> None:
        self._context, self._dataset = context, dataset
        self._ahead = 1 + -(-2 * workers // batch_size)  # batches: enough that no worker waits
        slots = self._ahead + 2  # one more that is being looked at, and one that was
        self._memory = _shared((slots, batch_size, *dataset.clips_shape))
        self._free = deque(range(slots))
        self._waiting: deque[_Job] = deque()
        self._workers: dict[Any, _Worker] = {}  # by connection
        self._stop = weakref.finalize(self, _stop, self._workers)
        for _ in range(workers):
            self._add_worker()

    def batches(self, keys: Iterable[Sequence[Key]]) -> Iterator[Batch]:
        """The videos of all these keys, batch by batch and in order."""
        coming = iter(keys)
        pending: deque[_Pending] = deque()
        while True:
            while len(pending) < self._ahead and self._free and (some := next(coming, None)) is not None:
                pending.append(_Pending(some, self._free.popleft()))
                self._waiting.extend(_Job(pending[-1], place) for place in range(len(some)))
            self._distribute()
            if not pending:
                return
            while not pending[0].done:
                self._receive()
            yield self._finish(pending.popleft())

    def stop(self) -> None:
        self._stop()

    def _finish(self, batch: _Pending) -> Batch:
        """The clips of a batch where they are, as long as memory is left for the batches to come."""
        samples = [batch.samples[place] for place in range(len(batch.keys))]
        read = [place for place, sample in enumerate(samples) if sample.error is None]
        memory = self._memory[batch.slot]
        clips: Tensor
        if len(read) < len(samples) or not self._free:
            clips = memory[read] if read else torch.empty(0)  # a copy
            self._free.append(batch.slot)
        else:
            lease = memory[: len(read)].numpy()
            weakref.finalize(lease, self._free.append, batch.slot)  # when no tensor looks at it any more
            clips = torch.from_numpy(lease)
        return Batch.of(samples, clips)

    def _distribute(self) -> None:
        while self._waiting:
            worker = min(self._workers.values(), key=lambda worker: len(worker.jobs))
            if len(worker.jobs) >= _IN_FLIGHT:
                return
            worker.give(self._waiting.popleft())

    def _receive(self) -> None:
        """Take what workers have sent, at least one message."""
        for worker in [self._workers[connection] for connection in wait(list(self._workers))]:
            try:
                sample = worker.connection.recv()
            except (EOFError, OSError):
                self._bury(worker)
                continue
            if isinstance(sample, str):
                raise RuntimeError(f"an error in a loader worker:\n{sample}")
            job = worker.jobs.popleft()
            job.batch.samples[job.place] = sample
        self._distribute()

    def _bury(self, worker: _Worker) -> None:
        """A worker has died: its first job is to blame, the others are given to other workers."""
        del self._workers[worker.connection]
        cause = worker.end()
        self._add_worker()
        if worker.jobs:
            job = worker.jobs[0]
            job.attempts += 1
            if job.attempts == _ATTEMPTS:
                worker.jobs.popleft()
                key = job.batch.keys[job.place]
                job.batch.samples[job.place] = self._dataset.unreadable(key, f"reading it ended a process ({cause})")
        self._waiting.extendleft(reversed(worker.jobs))

    def _add_worker(self) -> None:
        worker = _Worker(self._context, self._dataset, self._memory)
        self._workers[worker.connection] = worker


class _Worker:
    """A process that reads videos, one after the other."""

    def __init__(self, context: Any, dataset: Samples, memory: Tensor) -> None:
        self.jobs: deque[_Job] = deque()  # in the order that they were given
        self.connection, theirs = context.Pipe()
        # a fork has this end as well, and would never see that it is closed
        copied = self.connection if context.get_start_method() == "fork" else None
        self._process = context.Process(target=_serve, args=(dataset, memory, theirs, copied), daemon=True)
        self._process.start()
        theirs.close()  # or the end of the process would not show

    def give(self, job: _Job) -> None:
        self.jobs.append(job)
        with suppress(OSError):  # of a process that has died, as receiving will show
            self.connection.send((job.batch.keys[job.place], job.batch.slot, job.place))

    def end(self) -> str:
        """Clear up after a process that has died, and say of what."""
        self.connection.close()
        self._process.join()
        return cause_of_end(self._process.exitcode or 0)

    def stop(self) -> None:
        self.connection.close()
        self._process.terminate()
        self._process.join()


def _stop(workers: dict[Any, _Worker]) -> None:
    while workers:
        workers.popitem()[1].stop()


def _serve(dataset: Samples, memory: Tensor, connection: Connection, copied: Connection | None) -> None:
    """The life of a worker: until the other end is closed, be it because that process is dead."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the one that gives the jobs decides
    torch.set_num_threads(1)
    if copied is not None:
        copied.close()
    with suppress(EOFError, OSError):
        while True:
            key, slot, place = connection.recv()
            connection.send(_read(dataset, key, memory[slot, place]))


def _read(dataset: Samples, key: Key, memory: Tensor) -> Sample | str:
    """The sample without its clips, which go to the memory; or the traceback of a programming error."""
    try:
        sample = dataset.read(key, out=memory)
        sample.clips = None
        return sample
    except Exception:
        return traceback.format_exc()


def _shared(shape: tuple[int, ...]) -> Tensor:
    """Float32 memory for several processes. Raises RecipeError where the system has too little of it."""
    wanted = 4 * torch.Size(shape).numel()
    if os.path.isdir(_SHARED_MEMORY):
        status = os.statvfs(_SHARED_MEMORY)
        free = status.f_bavail * status.f_frsize
        if wanted > free:  # a process that touched it would be ended
            raise RecipeError(
                f"the loader's workers need {wanted / 1e9:.2f} GB of shared memory, but {_SHARED_MEMORY} has "
                f"{free / 1e9:.2f} GB left: enlarge it (docker run --shm-size), or use a smaller batch or 0 workers"
            )
    return torch.empty(shape, dtype=torch.float32).share_memory_()
