"""Clips of a video, read and cropped: the views that are classified, and windows in one pass of the decoder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.model.config import Preprocessing
from uniformerv2.video.reader import VideoReader
from uniformerv2.video.transforms import test_crops, test_frame
from uniformerv2.video.views import Views, segment_indices


def evaluation_views(
    reader: VideoReader,
    preprocessing: Preprocessing,
    views: Views = Views(),
    *,
    first: int = 0,
    count: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Clips spread over a video, each in one or three crops.

    Args:
        reader: the video; each frame of a view is decoded once.
        preprocessing: frames, size and normalisation of the model.
        views: clips and crops.
        first: the first frame of the interval that the clips are spread over.
        count: frames of the interval; None: all from there.
        out: where to write the result, such as memory that processes share; None: new memory.

    Returns:
        float32 (clips x crops, 3, frames, height, width), normalised: clips in order of time and, for each,
        its crops from left (or top) to right (or bottom).

    Raises:
        VideoError: a wanted frame cannot be decoded.
    """
    count = len(reader) - first if count is None else count
    indices = [first + index for clip in views.frame_indices(count, preprocessing.num_frames) for index in clip]
    clips = reader.frames_at(indices).split(preprocessing.num_frames)
    out = torch.empty((len(views), 3, len(clips[0]), *preprocessing.size)) if out is None else out
    for clip, crops in zip(clips, out.split(views.crops), strict=True):
        test_crops(clip, preprocessing, crops=views.crops, out=crops)
    return out


@dataclass(frozen=True, eq=False)
class SharedClips:
    """Clips that may have frames in common, as those of a short video do; each frame is held once."""

    frames: Tensor  # float32 (3, frames, height, width), normalised; a crop of a frame is a frame of its own
    clips: Tensor  # int64 (clips, frames of a clip): indices into `frames`

    def whole(self) -> Tensor:
        """Each clip with all of its frames, contiguous: (clips, 3, frames of a clip, height, width)."""
        # (3, clips, frames of a clip, height, width) -> (clips, 3, frames of a clip, height, width)
        return self.frames[:, self.clips].transpose(0, 1).contiguous()


def distinct_views(
    reader: VideoReader,
    preprocessing: Preprocessing,
    views: Views = Views(),
    *,
    first: int = 0,
    count: int | None = None,
) -> SharedClips:
    """The clips of `evaluation_views`, with every frame read and resized once.

    Args:
        reader, preprocessing, views, first, count: as of `evaluation_views`.

    Raises:
        VideoError: a wanted frame cannot be decoded.
    """
    count = len(reader) - first if count is None else count
    indices = first + torch.tensor(views.frame_indices(count, preprocessing.num_frames))
    wanted, clips = indices.unique(return_inverse=True)
    frames = torch.empty((3, views.crops, len(wanted), *preprocessing.size))
    test_crops(reader.frames_at(wanted.tolist()), preprocessing, crops=views.crops, out=frames.transpose(0, 1))
    starts = len(wanted) * torch.arange(views.crops)
    # (clips, 1, frames of a clip) + (crops, 1) -> (clips·crops, frames of a clip)
    return SharedClips(frames.flatten(1, 2), (clips[:, None] + starts[:, None]).flatten(0, 1))


def joined(videos: Sequence[SharedClips]) -> SharedClips:
    """The clips of one video after those of the other."""
    starts = accumulate((len(video.frames[0]) for video in videos[:-1]), initial=0)
    clips = [video.clips + start for video, start in zip(videos, starts, strict=True)]
    return SharedClips(torch.cat([video.frames for video in videos], dim=1), torch.cat(clips))


class Window(NamedTuple):
    """A part of a video that is one clip."""

    start: float  # seconds
    end: float
    indices: list[int]  # of its frames in the video


@dataclass(frozen=True)
class Windows:
    """How a video is divided into windows.

    Raises:
        RecipeError: seconds that are not possible.
    """

    seconds: float | None = None  # length of a window; None: the whole video
    stride_seconds: float | None = None  # from the start of a window to that of the next; None: as its length

    def __post_init__(self) -> None:
        if self.seconds is None and self.stride_seconds is not None:
            raise RecipeError(f"a stride of {self.stride_seconds:g} s needs the length of a window too")
        for name, value in (("window", self.seconds), ("stride", self.stride_seconds)):
            if value is not None and not 0 < value < math.inf:
                raise RecipeError(f"the {name} must be a positive number of seconds, got {value:g}")

    def plan(
        self, reader: VideoReader, num_frames: int, *, start: float | None = None, end: float | None = None
    ) -> list[Window]:
        """The windows of an interval and their frames.

        An interval that is one window as a whole (`seconds` None) has the frames of a test clip, as in evaluation.
        A window of some seconds has the frame that is shown in the middle of each of `num_frames` equal parts. That is
        the same up to rounding, but in time instead of in frame numbers: windows whose stride is a multiple of
        such a part have frames in common where they overlap, at any frame rate.

        Args:
            reader: the video.
            num_frames: frames of a window.
            start, end: seconds; None: the beginning and the end of the video.

        Raises:
            VideoError: the video ends before `start`.
        """
        first, count = interval_frames(reader, start, end)
        begin, stop = start or 0.0, reader.duration if end is None else min(end, reader.duration)
        if self.seconds is None:
            return [Window(begin, stop, [first + index for index in segment_indices(count, num_frames)])]
        times = self.times(begin, stop, tolerance=0.5 / reader.rate)
        return [Window(*time, _middle_frames(reader, *time, num_frames)) for time in times]

    def times(self, start: float, end: float, *, tolerance: float = 0.0) -> list[tuple[float, float]]:
        """Start and end of every window of an interval, in seconds.

        Windows begin at every multiple of the stride, up to the first that reaches the end, where it is cut; what is
        left over is not longer than `tolerance`. A short interval is one window.
        """
        if self.seconds is None:
            return [(start, end)]
        found = [(start, start + self.seconds)]
        while found[-1][1] < end - tolerance:
            first = start + len(found) * (self.stride_seconds or self.seconds)
            if first >= end - tolerance:  # strides may be longer than windows
                return found
            found.append((first, first + self.seconds))
        found[-1] = (found[-1][0], end)
        return found

    def __str__(self) -> str:
        if self.seconds is None:
            return "whole videos"
        return f"{self.seconds:g} s every {self.stride_seconds or self.seconds:g} s"


def interval_frames(reader: VideoReader, start: float | None, end: float | None) -> tuple[int, int]:
    """First frame and number of frames of an annotated interval, at least one; see `VideoReader.frames_between`.

    Raises:
        VideoError: the video ends before `start`.
    """
    first, count = reader.frames_between(start, end)
    if not count:
        raise VideoError(
            f"{reader.name}: the annotation starts at {start:g} s, but the video lasts {reader.duration:g} s"
        )
    return first, count


def window_frames(
    reader: VideoReader, windows: Sequence[Sequence[int]], preprocessing: Preprocessing
) -> Iterator[dict[int, Tensor]]:
    """The frames of each window in turn, while the video is decoded once.

    Only the frames of those windows are held that are open at a time.

    Args:
        reader: the video.
        windows: indices of each window's frames; windows in the order of their ends.
        preprocessing: size and normalisation of the model.

    Yields:
        float32 (3, height, width) by index, normalised, the centre crop.

    Raises:
        VideoError: a wanted frame cannot be decoded.
    """
    last_use = {index: number for number, indices in enumerate(windows) for index in indices}
    decoded = reader.iter_frames(sorted(last_use))
    frames: dict[int, Tensor] = {}  # of those that are still wanted
    for number, indices in enumerate(windows):
        while not frames.keys() >= set(indices):
            index, image = next(decoded)
            if last_use[index] >= number:
                frames[index] = test_frame(image, preprocessing)
        yield {index: frames[index] for index in indices}
        frames = {index: frame for index, frame in frames.items() if last_use[index] > number}


def _middle_frames(reader: VideoReader, start: float, end: float, count: int) -> list[int]:
    return [reader.index_at(start + (part + 0.5) * (end - start) / count) for part in range(count)]
