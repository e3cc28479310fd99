"""Frames of a video <-> seconds, through the video's own timestamps: exact at any frame rate, also one that changes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FrameTimes:
    """When each frame of a video begins, and what else formats say of a video."""

    starts: Sequence[float]  # seconds after the first frame, rising
    duration: float  # seconds
    rate: float  # frames/s, on average
    width: int  # pixels
    height: int  # pixels

    @classmethod
    def of(cls, video: str | Path) -> FrameTimes:
        """Those of a video file or a folder of frame images. Raises VideoError."""
        from uniformerv2.video.reader import VideoReader  # brings torch, which most formats do not need

        with VideoReader(video, threads=1) as reader:
            # a manifest has 0.7 and not 0.7000000000000001; what is cut off is below what readers take for rounding
            starts = (reader.ticks * reader.tick).round(12).tolist()
            # a last frame that begins behind the average end still lasts for a moment
            duration = round(max(reader.duration, starts[-1] + reader.tick), 12)
            return cls(starts, duration, reader.rate, reader.width, reader.height)

    def __len__(self) -> int:
        return len(self.starts)

    def seconds(self, frame: int) -> float:
        """When a frame begins; of the number of frames: when the last one ends. Raises IndexError beyond that."""
        if not 0 <= frame <= len(self):
            raise IndexError(frame)
        return self.starts[frame] if frame < len(self) else self.duration

    def span(self, start: float, end: float) -> tuple[int, int]:
        """The first frame of a span and the one after its last: those that begin nearest to its ends, at least one."""
        first = min(self._nearest(start), len(self) - 1)
        return first, max(self._nearest(end), first + 1)

    def _nearest(self, seconds: float) -> int:
        if seconds >= self.duration:
            return len(self)
        after = bisect_left(self.starts, seconds)
        if after == 0:
            return 0
        return after if self.seconds(after) - seconds <= seconds - self.starts[after - 1] else after - 1
