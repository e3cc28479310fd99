"""The clips of a video that are looked at: views that share frames, and windows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers import noise, write_video
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.model.config import Preprocessing
from uniformerv2.video.clips import Window, Windows, distinct_views, evaluation_views, joined, window_frames
from uniformerv2.video.reader import VideoReader
from uniformerv2.video.transforms import test_crops as crops_of
from uniformerv2.video.views import Views, segment_indices

PREPROCESSING = Preprocessing(num_frames=4, size=(32, 32))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames of noise, wider than high, so that the three crops differ."""
    return write_video(tmp_path_factory.mktemp("wide") / "wide.mp4", noise(12, 48, 80))


@pytest.mark.parametrize("views", [Views(), Views(4), Views(1, 3), Views(4, 3)], ids=str)
def test_every_frame_is_there_once_and_the_clips_are_those_of_evaluation(wide: Path, views: Views) -> None:
    with VideoReader(wide) as reader:
        shared = distinct_views(reader, PREPROCESSING, views)
        expected = evaluation_views(reader, PREPROCESSING, views)
    distinct = {index for clip in range(views.clips) for index in segment_indices(12, 4, clip=clip, clips=views.clips)}
    assert shared.frames.shape == (3, views.crops * len(distinct), 32, 32)
    assert torch.equal(shared.whole(), expected)
    assert shared.whole().is_contiguous()


def test_the_clips_of_several_videos_follow_each_other(wide: Path, video: Path) -> None:
    videos = []
    for path, clips in ((wide, 3), (video, 1), (wide, 2)):
        with VideoReader(path) as reader:
            videos.append(distinct_views(reader, PREPROCESSING, Views(clips)))
    assert torch.equal(joined(videos).whole(), torch.cat([each.whole() for each in videos]))


@pytest.mark.parametrize(
    ("seconds", "stride", "interval", "expected"),
    [
        (None, None, (0, 9), [(0, 9)]),
        (3, None, (0, 9), [(0, 3), (3, 6), (6, 9)]),
        (4, 2, (0, 9), [(0, 4), (2, 6), (4, 8), (6, 9)]),  # the last is cut at the end
        (4, None, (0, 9), [(0, 4), (4, 8), (8, 9)]),
        (4, None, (10, 13), [(10, 13)]),  # shorter than a window
        (1, 4, (0, 9), [(0, 1), (4, 5), (8, 9)]),
        (1, 5, (0, 9), [(0, 1), (5, 6)]),  # the next would begin behind the end
        (3, 3, (0, 9.04), [(0, 3), (3, 6), (6, 9.04)]),  # what is left over is not worth a window
    ],
)
def test_windows(
    seconds: float | None, stride: float | None, interval: tuple[float, float], expected: list[tuple[float, float]]
) -> None:
    assert Windows(seconds, stride).times(*interval, tolerance=0.05) == expected


def test_windows_do_not_drift() -> None:
    times = Windows(0.1, 0.1).times(0, 7200, tolerance=0.02)
    assert len(times) == 72000
    assert times[-1][0] == 71999 * 0.1


@pytest.mark.parametrize(("seconds", "stride"), [(None, 1.0), (0.0, None), (-1.0, 1.0), (2.0, 0.0), (float("nan"), 1)])
def test_windows_that_make_no_sense(seconds: float | None, stride: float | None) -> None:
    with pytest.raises(RecipeError, match=r"window|stride"):
        Windows(seconds, stride)


@pytest.fixture
def reader(video: Path) -> Iterator[VideoReader]:
    with VideoReader(video) as reader:
        yield reader


def test_a_window_has_the_middle_frames_of_its_parts(reader: VideoReader) -> None:
    assert [window.indices for window in Windows(1.2).plan(reader, 4)] == [[1, 4, 7, 10]]
    assert Windows(0.4, 0.6).plan(reader, 4) == [Window(0, 0.4, [0, 1, 2, 3]), Window(0.6, 1.0, [6, 7, 8, 9])]
    assert Windows(0.2).plan(reader, 4, start=0.4, end=0.6) == [Window(0.4, 0.6, [4, 4, 5, 5])]


def test_windows_share_frames_where_the_stride_is_a_multiple_of_a_part(reader: VideoReader) -> None:
    first, second, third = (window.indices for window in Windows(0.8, 0.2).plan(reader, 4))
    assert first[1:] == second[:-1]
    assert second[1:] == third[:-1]


def test_an_interval_that_is_one_window_has_the_frames_of_a_test_clip(reader: VideoReader) -> None:
    assert Windows().plan(reader, 4) == [Window(0.0, pytest.approx(1.2), segment_indices(12, 4))]
    part = [3 + index for index in segment_indices(6, 4)]  # frames 3 to 8
    assert Windows().plan(reader, 4, start=0.3, end=0.85) == [Window(0.3, 0.85, part)]
    with pytest.raises(VideoError, match=r"red0\.mp4: the annotation starts at 2 s, but the video lasts 1\.2 s"):
        Windows(1.0).plan(reader, 4, start=2.0)


def test_the_frames_of_each_window(reader: VideoReader) -> None:
    preprocessing = Preprocessing(num_frames=4, size=(32, 32))
    plan = [[0, 2, 4], [1, 3, 5], [4, 4, 6]]
    clips = [crops_of(reader.frames_at(indices), preprocessing)[0] for indices in plan]
    for indices, expected, frames in zip(plan, clips, window_frames(reader, plan, preprocessing), strict=True):
        assert torch.equal(torch.stack([frames[index] for index in indices], dim=1), expected)


def test_no_more_frames_are_held_than_open_windows_need(reader: VideoReader) -> None:
    plan = [[start, start + 1, start + 2, start + 3] for start in range(0, 9, 2)]  # two are open at a time
    reading = window_frames(reader, plan, Preprocessing(size=(32, 32)))
    held = [len(reading.gi_frame.f_locals["frames"]) for _ in reading]  # type: ignore[attr-defined]
    assert held == [4] * 5
