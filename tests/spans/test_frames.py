"""Frames and seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import noise, write_video
from spans.rows import UNEVEN
from uniformerv2.errors import VideoError
from uniformerv2.spans.frames import FrameTimes
from uniformerv2.video.reader import VideoReader

TIMES = [0, 40, 100, 500, 540, 900]  # milliseconds


def test_times_are_those_of_the_video(tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.mkv", noise(6), times=TIMES)
    frames = FrameTimes.of(film)
    assert [frames.seconds(frame) for frame in range(6)] == pytest.approx([time / 1000 for time in TIMES], abs=1e-9)
    assert frames.duration == frames.seconds(6) > 0.9
    assert (len(frames), frames.width, frames.height) == (6, 48, 48)
    with pytest.raises(IndexError):
        frames.seconds(7)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match=r"empty\.mp4"):
        FrameTimes.of(tmp_path / "empty.mp4")


@pytest.mark.parametrize("rate", [7, 10, 24, 30, 60])
def test_readers_show_the_frame_at_its_time(tmp_path: Path, rate: int) -> None:
    """What is rounded off a time must not lead to the frame before."""
    film = write_video(tmp_path / "film.mp4", noise(30), rate=rate)
    frames = FrameTimes.of(film)
    with VideoReader(film) as reader:
        assert [reader.index_at(frames.seconds(frame)) for frame in range(30)] == [*range(30)]


@pytest.mark.parametrize(
    ("start", "end", "frames"),
    [
        (0.0, 1.0, (0, 6)),
        (0.04, 0.5, (1, 3)),
        (0.06, 0.51, (1, 3)),  # the nearest
        (0.08, 0.53, (2, 4)),
        (0.3, 0.3, (2, 3)),  # at least one
        (0.95, 0.99, (5, 6)),
        (7.0, 9.0, (5, 6)),
    ],
)
def test_the_frames_of_a_span(start: float, end: float, frames: tuple[int, int]) -> None:
    assert UNEVEN.span(start, end) == frames
