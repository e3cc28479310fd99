"""Clips of a video, read and cropped: the views that are classified, and windows in one pass of the decoder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
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


class WindowPlan(NamedTuple):
    """The windows of a video, each of which is one clip; in order of time."""

    start: np.ndarray  # float64 (windows): seconds
    end: np.ndarray  # float64 (windows): seconds
    indices: np.ndarray  # int64 (windows, frames of a window): frames of the video


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
    ) -> WindowPlan:
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
            VideoError: the video ends before `start`, or windows of some seconds are to divide an interval that is
                longer than the limit of the reader.
            RecipeError: more windows than the reader may decode frames.
        """
        first, count = interval_frames(reader, start, end)
        begin, stop = start or 0.0, reader.duration if end is None else min(end, reader.duration)
        if self.seconds is None:
            indices = [first + index for index in segment_indices(count, num_frames)]
            return WindowPlan(np.array([begin]), np.array([stop]), np.array([indices]))
        if stop - begin > reader.limits.duration_seconds:
            raise reader.limits.exceeded("duration_seconds", stop - begin, reader.name)
        if (windows := (stop - begin) / (self.stride_seconds or self.seconds)) > reader.limits.frames:
            raise RecipeError(f"{reader.name}: {windows:.3g} windows of {self} are too many; make the stride longer")
        # half a frame, but of a video with gaps that may be hours
        starts, ends = self.times(begin, stop, tolerance=min(0.5 / reader.rate, 0.5 * self.seconds))
        return WindowPlan(starts, ends, reader.indices_at(window_moments(starts, ends, num_frames)))

    def times(self, start: float, end: float, *, tolerance: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Start and end of every window of an interval, in seconds: two arrays, float64 (windows).

        Windows begin at every multiple of the stride, up to the first that reaches the end, where it is cut; what is
        left over is not longer than `tolerance`. A short interval is one window.
        """
        if self.seconds is None:
            return np.array([start], dtype=np.float64), np.array([end], dtype=np.float64)
        stride = self.stride_seconds or self.seconds
        starts = start + stride * np.arange(max(0.0, (end - start) / stride) + 2)
        last = end - tolerance
        follows = (starts[:-1] + self.seconds < last) & (starts[1:] < last)  # strides may be longer than windows
        starts = starts[: 1 + int(follows.sum())]
        ends = starts + self.seconds
        if ends[-1] >= last:
            ends[-1] = end
        return starts, ends

    def __str__(self) -> str:
        if self.seconds is None:
            return "whole videos"
        return f"{self.seconds:g} s every {self.stride_seconds or self.seconds:g} s"


def window_moments(starts: np.ndarray, ends: np.ndarray, num_frames: int) -> np.ndarray:
    """The middles of the equal parts of windows, float64 (windows, frames of a window): seconds."""
    middles = np.arange(num_frames) + 0.5
    return starts[:, None] + middles * (ends - starts)[:, None] / num_frames


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
    reader: VideoReader, windows: np.ndarray, preprocessing: Preprocessing
) -> Iterator[dict[int, Tensor]]:
    """The frames of each window in turn, while the video is decoded once.

    Only the frames of those windows are held that are open at a time.

    Args:
        reader: the video.
        windows: int64 (windows, frames of a window), `WindowPlan.indices`; windows in the order of their ends.
        preprocessing: size and normalisation of the model.

    Yields:
        float32 (3, height, width) by index, normalised, the centre crop.

    Raises:
        VideoError: a wanted frame cannot be decoded.
    """
    wanted, places = np.unique(windows, return_inverse=True)
    last_use = np.zeros(len(wanted), dtype=np.int64)  # number of a window
    np.maximum.at(last_use, places.reshape(windows.shape), np.arange(len(windows))[:, None])
    decoded = reader.iter_frames(wanted.tolist())
    frames: dict[int, tuple[Tensor, int]] = {}  # those that are still wanted, and their last use
    for number, indices in enumerate(map(np.ndarray.tolist, windows)):
        while not frames.keys() >= set(indices):
            index, image = next(decoded)
            last = last_use[np.searchsorted(wanted, index)]
            if last >= number:
                frames[index] = test_frame(image, preprocessing), last
        yield {index: frames[index][0] for index in indices}
        frames = {index: (frame, last) for index, (frame, last) in frames.items() if last > number}
