"""Windows of videos, read in batches, in this process or in others."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from uniformerv2.data.annotations import Annotation
from uniformerv2.data.loader import Sample, SampleKey, VideoLoader, shared_memory
from uniformerv2.data.processes import ATTEMPTS, START_METHOD, Crash, run_tasks
from uniformerv2.data.shards import video_source
from uniformerv2.device import upload
from uniformerv2.errors import AnnotationError, VideoError
from uniformerv2.measuring.shared_work import WorkItem
from uniformerv2.model.config import Preprocessing
from uniformerv2.video.clips import Windows, window_frames
from uniformerv2.video.reader import VideoReader, VideoWarning
from uniformerv2.video.transforms import test_crops

LAST = -1  # number of the last batch of a group
_MOST_WINDOWS = 4096  # of a batch, however few clips they have

Group = tuple[int, range]  # its number and its videos, which are read one after the other


@dataclass
class WindowBatch:
    """Windows that are computed together; a group of videos is a sequence of batches."""

    item: WorkItem  # (group, number of the batch)
    windows: list[tuple[int, float, float]] = field(default_factory=list)  # video, start and end in seconds
    clips: Tensor | None = None  # float32 (n, 3, frames, height, width), normalised
    clip_of: list[int] = field(default_factory=list)  # of each window; in a gap of a video, windows are alike
    skipped: list[tuple[int, str]] = field(default_factory=list)  # video, reason
    damaged: list[tuple[str, str]] = field(default_factory=list)  # path, what is damaged
    frames_of: list[tuple[int, ...]] = field(default_factory=list)  # of each clip of a divided video: frame numbers
    done: bool = False  # it has a result already, but later windows may have frames of it

    @property
    def tensors(self) -> list[Tensor]:
        return [] if self.clips is None else [self.clips]

    def to(self, device: torch.device) -> WindowBatch:
        """Move it, as `upload` does."""
        if self.clips is not None:
            self.clips = upload(self.clips, device)
        return self


@dataclass(frozen=True)
class WindowReader:
    """Reads groups of videos.

    A video whose decoding ends a process is tried once more in a new one, and then skipped as any other that cannot
    be read.
    """

    rows: Sequence[Annotation]
    windows: Windows
    preprocessing: Preprocessing
    batch_size: int
    done: set[WorkItem]  # batches that are not needed

    def read(self, groups: Sequence[Group], *, workers: int) -> Generator[WindowBatch, None, None]:
        """The batches of the groups; those of a group in order. What is done of a group that is not is marked."""
        return self._whole(groups, workers) if self.windows.seconds is None else self._divided(groups, workers)

    def _whole(self, groups: Sequence[Group], workers: int) -> Generator[WindowBatch, None, None]:
        """Videos that are one window each: single videos for the workers, and clips in memory that is shared."""
        wanted = [video for _, videos in groups for video in videos]
        videos = _WholeVideos([self.rows[video] for video in wanted], self.windows, self.preprocessing)
        loader = VideoLoader(videos, self.batch_size, range(len(wanted)), workers)
        with closing(iter(loader)) as batches:
            for (number, _), batch in zip(groups, batches, strict=True):
                yield WindowBatch(
                    (number, LAST),
                    [(wanted[index], *span) for index, span in zip(batch.indices, batch.seconds, strict=True)],
                    batch.clips[:, 0] if len(batch) else None,
                    list(range(len(batch))),
                    [(wanted[video.row], video.reason) for video in batch.unreadable],
                    [(video.path, video.reason) for video in batch.damaged],
                )

    def _divided(self, groups: Sequence[Group], workers: int) -> Generator[WindowBatch, None, None]:
        """Videos of many windows, one in a group, whose batches are decoded one after the other."""
        shape = self.preprocessing
        slots = _Slots((self.batch_size, 3, shape.num_frames, *shape.size), workers)
        known, read = set(self.done), partial(self._batches, slots)
        for attempt in range(1, ATTEMPTS + 1):
            again = []
            tasks = ((group, slots.free.popleft()) for group in groups)
            for (group, slot), result in run_tasks(read, tasks, workers=workers, attempts=1):
                if isinstance(result, Crash):
                    slots.take_back(slot)
                    again.append(group)
                    if attempt == ATTEMPTS:
                        reason = f"{self.rows[group[1][0]].path}: reading it ended a process ({result.cause})"
                        yield WindowBatch((group[0], LAST), skipped=[(group[1][0], reason)])
                    continue
                batch, clips = result
                batch.clips = slots.memory[slot, :clips] if clips else None
                yield replace(batch, done=batch.item in known)  # those of a second attempt come again
                known.add(batch.item)
                if batch.item[1] == LAST:
                    slots.take_back(slot)
                else:
                    slots.empty[slot].release()
            groups = again

    def _batches(self, slots: _Slots, task: tuple[Group, int]) -> Iterator[tuple[WindowBatch, int]]:
        """The batches of a video, with the number of their clips, which are in its slot."""
        # A video that was begun is decoded from its beginning: of a damaged one, other ways of reading could give
        # other frames. What is in the journal is only not computed again.
        (number, [video]), slot = task
        row, damage = self.rows[video], list[str]()
        batch, clips = WindowBatch((number, 0)), list[Tensor]()
        try:
            former = None
            for window in read_windows(row, self.windows, self.preprocessing, damage):
                if window.clip is not former or len(batch.windows) == _MOST_WINDOWS:
                    if len(clips) == self.batch_size or len(batch.windows) == _MOST_WINDOWS:
                        yield batch, slots.fill(slot, clips)
                        batch, clips = WindowBatch((number, batch.item[1] + 1)), []
                    clips.append(window.clip)
                    batch.frames_of.append(window.frames)
                batch.windows.append((video, window.start, window.end))
                batch.clip_of.append(len(clips) - 1)
                former = window.clip
        except (VideoError, AnnotationError, OSError) as error:
            batch.skipped.append((video, _reason(row, error)))
        batch.damaged = [(str(row.path), what) for what in damage]
        batch.item = (number, LAST)
        yield batch, slots.fill(slot, clips)


class _Slots:
    """Memory that processes share: a batch for each video that is being read, written once the one before is used.

    Args:
        shape: of the clips of a batch.
        workers: processes, each of which reads a video while the last batch of another may wait.
    """

    def __init__(self, shape: tuple[int, ...], workers: int) -> None:
        count = max(1, 2 * workers)
        self.memory = shared_memory((count, *shape)) if workers else torch.empty(count, *shape)
        self.empty = [get_context(START_METHOD).Semaphore(1) for _ in range(count)]
        self.free = deque(range(count))

    def fill(self, slot: int, clips: Sequence[Tensor]) -> int:
        """Write clips to a slot once it is empty; returns how many."""
        if clips:
            self.empty[slot].acquire()
            torch.stack(list(clips), out=self.memory[slot, : len(clips)])
        return len(clips)

    def take_back(self, slot: int) -> None:
        """Whose process is through with it, or has died while it held it."""
        while self.empty[slot].acquire(block=False):
            pass
        self.empty[slot].release()
        self.free.append(slot)


@dataclass(frozen=True)
class _WholeVideos:
    """Videos as one window each, for a loader."""

    rows: Sequence[Annotation]
    windows: Windows
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def clips_shape(self) -> tuple[int, int, int, int, int]:
        return 1, 3, self.preprocessing.num_frames, *self.preprocessing.size

    def read(self, key: SampleKey, *, out: Tensor | None = None) -> Sample:
        row, sample = self._empty(key)
        try:
            with warnings.catch_warnings(), VideoReader(video_source(row.path), threads=1, name=sample.path) as reader:
                warnings.simplefilter("ignore", VideoWarning)  # told as `damage`
                plan = self.windows.plan(reader, self.preprocessing.num_frames, start=row.start, end=row.end)
                sample.seconds = float(plan.start[0]), float(plan.end[0])
                sample.clips = test_crops(reader.frames_at(plan.indices[0]), self.preprocessing, out=out)
                sample.damage += [reader.damage] if reader.damage else []
        except (VideoError, AnnotationError, OSError) as error:
            sample.error = _reason(row, error)
        return sample

    def unreadable(self, key: SampleKey, reason: str) -> Sample:
        row, sample = self._empty(key)
        sample.error = f"{row.path}: {reason}"
        return sample

    def _empty(self, key: SampleKey) -> tuple[Annotation, Sample]:
        assert isinstance(key, int)
        row = self.rows[key]
        return row, Sample(index=key, path=str(row.path), label=0)


def _reason(row: Annotation, error: Exception) -> str:
    """Why a video is skipped; other errors are those of a shard that has changed."""
    return str(error) if isinstance(error, VideoError) else f"{row.path}: {error}"


class ReadWindow(NamedTuple):
    """A window of a video."""

    start: float  # seconds
    end: float
    frames: tuple[int, ...]  # their numbers
    clip: Tensor  # float32 (3, frames, height, width), normalised, the centre crop


def read_windows(
    row: Annotation, windows: Windows, preprocessing: Preprocessing, damage: list[str]
) -> Iterator[ReadWindow]:
    """The windows of a video one after the other, while it is decoded once.

    Args:
        row: which video, and which part of it.
        windows: where they lie.
        preprocessing: frames, size and normalisation of the model.
        damage: receives, at the end, what is damaged in a video that was read all the same.

    Yields:
        Windows of the same frames, as in a gap, have the same tensor.

    Raises:
        VideoError: the video, or a frame of it, cannot be read.
    """
    with VideoReader(video_source(row.path), threads=1, name=str(row.path)) as reader:
        plan = windows.plan(reader, preprocessing.num_frames, start=row.start, end=row.end)
        frames_of_windows = window_frames(reader, plan.indices, preprocessing)
        former, clip = None, torch.empty(0)
        for start, end, indices, frames in zip(*plan, frames_of_windows, strict=True):
            if former is None or not np.array_equal(indices, former):
                # frames x (3, height, width) -> (3, frames, height, width)
                clip = torch.stack([frames[index] for index in indices], dim=1)
            yield ReadWindow(float(start), float(end), tuple(indices.tolist()), clip)
            former = indices
        if reader.damage:
            damage.append(reader.damage)
