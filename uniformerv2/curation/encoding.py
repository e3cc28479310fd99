"""A video encoded again for training: small, upright, every frame at its time, and each soon decoded alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, count
from math import lcm
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.video.reader import VideoReader

ENCODER = "libx264"

_FINEST = 10**4  # parts of a tick; ticks are whole where packets state them, and else halves and the like
_MOST_TICKS = 2**31 - 1  # of a second, and from one frame to the next, as FFmpeg writes MP4
_PRECISE = 1e-6  # of a tick, as frames are looked up by `VideoReader.index_at`


@dataclass(frozen=True, slots=True)
class Encoding:
    """How videos are encoded: H.264 without B-frames, 4:2:0, in MP4.

    Raises:
        RecipeError: a value that makes no video.
    """

    short_side: int = 256  # pixels at most; a larger video is resized, a smaller one is not
    keyframe_every: int = 1  # frames at most from one key frame to the next
    crf: int = 23  # quality as x264 counts it, from 0 (best) to 51

    def __post_init__(self) -> None:
        if self.short_side < 16 or self.short_side % 2:
            raise RecipeError(f"the short side must be an even number of at least 16 pixels, got {self.short_side}")
        if self.keyframe_every < 1:
            raise RecipeError(f"there must be 1 or more frames from key frame to key frame, got {self.keyframe_every}")
        if not 0 <= self.crf <= 51:
            raise RecipeError(f"crf must lie between 0 and 51, got {self.crf}")
        if ENCODER not in av.codecs_available:
            raise RecipeError(f"this PyAV cannot encode H.264 ({ENCODER}); install one from PyPI: pip install av")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in the encoded video, both even, as 4:2:0 needs it: one pixel more, or the nearest."""
        short = min(height, width)
        if short <= self.short_side:
            return height + height % 2, width + width % 2
        height, width = (2 * round(side * self.short_side / short / 2) for side in (height, width))
        return height, width

    @property
    def options(self) -> dict[str, str]:
        """Those of the encoder."""
        frames = {"g": self.keyframe_every, "crf": self.crf, "bf": 0}
        # without CABAC and the deblocking filter, which take most of the time that decoding needs
        return {name: str(value) for name, value in frames.items()} | {"preset": "veryfast", "tune": "fastdecode"}


class _BeginAgain(Exception):
    """Frames came once more, since the packets of the video proved wrong."""


def encode_video(reader: VideoReader, target: Path, encoding: Encoding) -> None:
    """Encode all frames of a video, and check that the result has them at the same times.

    Args:
        reader: the video.
        target: MP4 file to write; half of one may stand there after an error.
        encoding: how.

    Raises:
        VideoError: a frame cannot be decoded or encoded, or MP4 cannot hold its time.
        OSError: the file cannot be written.
    """
    times, unit = _clock(reader)
    try:
        with target.open("wb") as file:
            try:
                _encode(reader, file, encoding, times, unit)
            except _BeginAgain:
                for _ in reader.iter_frames(range(len(reader))):  # after which the reader knows what is wrong
                    pass
                file.seek(0)
                file.truncate()
                _encode(reader, file, encoding, times, unit)
    except (av.FFmpegError, _BeginAgain, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"{reader.name}: cannot be encoded again ({reason})") from None
    with closing(VideoReader(target, threads=1)) as encoded:
        found, given = encoded.ticks * encoded.tick, reader.ticks * reader.tick
        if len(found) != len(given) or not np.allclose(found, given, rtol=1e-12, atol=_PRECISE * reader.tick):
            raise VideoError(f"{reader.name}: cannot be encoded again with every frame at its time")


def _clock(reader: VideoReader) -> tuple[list[int], Fraction]:
    """When each frame is shown and when the last one ends, in whole units, and the unit in seconds: 1/n, as in MP4.

    The unit is the tick of the video where that is 1/n, so that moments between two frames are rounded alike.
    """
    ticks, tick = reader.ticks, Fraction(reader.tick).limit_denominator(10**9)
    if len(ticks) == 1:  # lasts as long as the file states its rate
        tick = 1 / Fraction(reader.rate).limit_denominator(10**6)
    steps = (Fraction(step).limit_denominator(_FINEST) for step in np.unique(np.diff(ticks).round(6)).tolist())
    finer = lcm(*(step.denominator for step in steps))
    unit = Fraction(1, tick.denominator * finer)
    if unit.denominator > _MOST_TICKS:
        raise VideoError(f"{reader.name}: cannot be encoded again (MP4 cannot tell times of {reader.tick:g} s)")
    times = np.rint(ticks * (tick.numerator * finer)).astype(np.int64).tolist()
    if max(np.diff(times), default=0) >= _MOST_TICKS:
        gap = np.diff(ticks).max() * reader.tick
        raise VideoError(f"{reader.name}: cannot be encoded again (MP4 cannot hold {gap:.6g} s between two frames)")
    usual = tick.numerator if len(times) == 1 else max(round(times[-1] / (len(times) - 1)), 1)
    return [*times, times[-1] + usual], unit


def _encode(reader: VideoReader, file: BinaryIO, encoding: Encoding, times: list[int], unit: Fraction) -> None:
    height, width = encoding.size(reader.height, reader.width)
    rate = max(Fraction(reader.rate).limit_denominator(1001), Fraction(1, 1001))
    numbers = count()
    with av.open(file, "w", format="mp4", options={"video_track_timescale": str(unit.denominator)}) as container:
        stream = container.add_stream(ENCODER, rate=rate, options=encoding.options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base, stream.codec_context.thread_count = unit, 1
        for frame in chain(_frames(reader, height, width), [None]):  # None: flush
            if frame is not None:
                frame.pts, frame.time_base = times[frame.pts or 0], unit
            for packet in stream.encode(frame):
                number = next(numbers)  # of its frame, since without B-frames none overtakes another
                packet.duration = times[number + 1] - times[number]
                container.mux(packet)


def _frames(reader: VideoReader, height: int, width: int) -> Iterator[av.VideoFrame]:
    """Every frame in this size, with its number as its time. Raises _BeginAgain."""
    resize = VideoReformatter()
    padding = (height - reader.height, width - reader.width)
    for number, (index, image) in enumerate(reader.iter_frames(range(len(reader)))):
        if index != number:
            raise _BeginAgain("its frames differ from pass to pass")
        pixels = image.permute(1, 2, 0).numpy()
        if min(padding) >= 0 and max(padding) == 1:  # a side is odd: its last row or column comes twice
            pixels = np.pad(pixels, ((0, padding[0]), (0, padding[1]), (0, 0)), "edge")
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame = resize.reformat(frame, width, height, format="yuv420p", interpolation="BICUBIC", threads=1)
        frame.pts = number
        yield frame
