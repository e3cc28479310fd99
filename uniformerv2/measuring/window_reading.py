"""Windows of videos, read in batches, in this process or in others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from uniformerv2.data.annotations import Annotation
from uniformerv2.data.processes import ATTEMPTS, Crash, run_tasks
from uniformerv2.data.shards import video_source
from uniformerv2.errors import AnnotationError, VideoError
from uniformerv2.measuring.shared_work import WorkItem
from uniformerv2.model.config import Preprocessing
from uniformerv2.video.clips import Windows, window_frames
from uniformerv2.video.reader import VideoReader

LAST = -1  # number of the last batch of a group
_MOST_WINDOWS = 4096  # of a batch, however few clips they have

Group = tuple[int, range]  # its number and its videos, which are read one after the other
_Task = tuple[int, range, dict[int, str]]  # and those of its videos that must not be opened, and why


@dataclass
class WindowBatch:
    """Windows that are computed together; a group of videos is a sequence of batches."""

    item: WorkItem  # (group, number of the batch)
    windows: list[tuple[int, float, float]] = field(default_factory=list)  # video, start and end in seconds
    clips: list[np.ndarray] = field(default_factory=list)  # float32 (3, frames, height, width)
    clip_of: list[int] = field(default_factory=list)  # of each window; in a gap of a video, windows are alike
    skipped: list[tuple[int, str]] = field(default_factory=list)  # video, reason
    damaged: list[tuple[str, str]] = field(default_factory=list)  # path, what is damaged


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

    def read(self, groups: Sequence[Group], *, workers: int) -> Iterator[WindowBatch]:
        """The batches of the groups that are not done yet; those of a group in order."""
        tasks: list[_Task] = [(*group, {}) for group in groups]
        current: dict[int, int] = {}  # the video that is being read, by group
        crashes: Counter[int] = Counter()  # by video
        while tasks:
            again: list[_Task] = []
            for (number, videos, deadly), result in run_tasks(self._batches, tasks, workers=workers, attempts=1):
                if isinstance(result, int):
                    current[number] = result
                elif isinstance(result, Crash):
                    video = current.get(number, videos[0])
                    crashes[video] += 1
                    if crashes[video] == ATTEMPTS:
                        reason = f"{self.rows[video].path}: reading it ended a process ({result.cause})"
                        deadly = deadly | {video: reason}
                    again.append((number, videos, deadly))
                elif result.item not in self.done:
                    yield result
            tasks = again

    def _batches(self, task: _Task) -> Iterator[int | WindowBatch]:
        """The number of each video, before it is opened, and the batches."""
        # A group that was begun is decoded from its beginning: of a damaged video, other ways of reading could give
        # other frames. What is in the journal is only not computed again.
        group, videos, deadly = task
        batch, number = WindowBatch((group, 0)), 0
        for video in videos:
            yield video
            if video in deadly:
                batch.skipped.append((video, deadly[video]))
                continue
            damage: list[str] = []
            try:
                former = None
                for start, end, clip in read_windows(self.rows[video], self.windows, self.preprocessing, damage):
                    if clip is not former or len(batch.windows) == _MOST_WINDOWS:
                        if len(batch.clips) == self.batch_size or len(batch.windows) == _MOST_WINDOWS:
                            yield batch
                            number += 1
                            batch = WindowBatch((group, number))
                        batch.clips.append(clip.numpy())
                    batch.windows.append((video, start, end))
                    batch.clip_of.append(len(batch.clips) - 1)
                    former = clip
            except VideoError as error:
                batch.skipped.append((video, str(error)))
            except (AnnotationError, OSError) as error:  # a shard that has changed
                batch.skipped.append((video, f"{self.rows[video].path}: {error}"))
            else:
                batch.damaged += [(str(self.rows[video].path), what) for what in damage]
        batch.item = (group, LAST)
        yield batch


def read_windows(
    row: Annotation, windows: Windows, preprocessing: Preprocessing, damage: list[str]
) -> Iterator[tuple[float, float, Tensor]]:
    """The windows of a video one after the other, while it is decoded once.

    Args:
        row: which video, and which part of it.
        windows: where they lie.
        preprocessing: frames, size and normalisation of the model.
        damage: receives, at the end, what is damaged in a video that was read all the same.

    Yields:
        (start and end in seconds, float32 (3, frames, height, width), normalised, the centre crop). Windows of the same
        frames, as in a gap, have the same tensor.

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
            yield float(start), float(end), clip
            former = indices
        if reader.damage:
            damage.append(reader.damage)
