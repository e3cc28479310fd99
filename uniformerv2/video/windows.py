"""Windows that slide over a video: where they lie, and their frames in one pass of the decoder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from uniformerv2.errors import RecipeError
from uniformerv2.model.config import Preprocessing
from uniformerv2.video.reader import VideoReader
from uniformerv2.video.transforms import test_frame


@dataclass(frozen=True)
class Windows:
    """Which parts of a video are looked at, each by itself."""

    seconds: float | None = None  # length of a window; None: the whole video is one
    stride: float | None = None  # seconds from one start to the next; None: windows follow each other

    def __post_init__(self) -> None:
        if self.seconds is None and self.stride is not None:
            raise RecipeError(f"a stride of {self.stride:g} s needs a window; give its seconds too")
        for name, value in (("window", self.seconds), ("stride", self.stride)):
            if value is not None and not 0 < value < math.inf:
                raise RecipeError(f"the {name} must be a positive number of seconds, got {value:g}")

    def times(self, start: float, end: float, *, tolerance: float = 0.0) -> list[tuple[float, float]]:
        """Start and end of every window of an interval, in seconds.

        Windows begin at every multiple of the stride, up to the first that reaches the end, where it is cut; what is
        left over is not longer than `tolerance`. A short interval is one window.
        """
        if self.seconds is None:
            return [(start, end)]
        found = [(start, start + self.seconds)]
        while found[-1][1] < end - tolerance:
            first = start + len(found) * (self.stride or self.seconds)
            if first >= end - tolerance:  # strides may be longer than windows
                return found
            found.append((first, first + self.seconds))
        found[-1] = (found[-1][0], end)
        return found

    def __str__(self) -> str:
        return "whole videos" if self.seconds is None else f"{self.seconds:g} s every {self.stride or self.seconds:g} s"


def middle_frames(reader: VideoReader, start: float, end: float, count: int) -> list[int]:
    """The frames shown in the middle of each of `count` equal parts of an interval, in seconds.

    Windows of equal length whose stride is a multiple of such a part have frames in common where they overlap.
    """
    return [reader.index_at(start + (part + 0.5) * (end - start) / count) for part in range(count)]


def window_frames(
    reader: VideoReader, places: Sequence[Sequence[int]], preprocessing: Preprocessing
) -> Iterator[dict[int, Tensor]]:
    """The frames of each window in turn, while the video is decoded once.

    No more frames are held than the windows need that are open at a time.

    Args:
        reader: the video.
        places: indices of each window's frames; windows in the order of their ends.
        preprocessing: size and normalisation of the model.

    Yields:
        float32 (3, height, width) by index, normalised, the centre crop.

    Raises:
        VideoError: a wanted frame cannot be decoded.
    """
    last_use = {index: number for number, indices in enumerate(places) for index in indices}
    decoded = reader.iter_frames(sorted(last_use))
    frames: dict[int, Tensor] = {}  # of those that are still wanted
    for number, indices in enumerate(places):
        while not frames.keys() >= set(indices):
            index, image = next(decoded)
            if last_use[index] >= number:
                frames[index] = test_frame(image, preprocessing)
        yield {index: frames[index] for index in indices}
        frames = {index: frame for index, frame in frames.items() if last_use[index] > number}
