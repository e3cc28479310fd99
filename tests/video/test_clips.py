"""The clips of a video that are looked at: views that share frames, and windows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import noise, write_video
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.model.config import Preprocessing
from uniformerv2.video.clips import Windows, distinct_views, evaluation_views, joined, window_frames
from uniformerv2.video.limits import Limits
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
    times = Windows(seconds, stride).times(*interval, tolerance=0.05)
    assert list(zip(*map(np.ndarray.tolist, times), strict=True)) == expected


def test_windows_do_not_drift() -> None:
    starts, _ = Windows(0.1, 0.1).times(0, 7200, tolerance=0.02)
    assert len(starts) == 72000
    assert starts[-1] == 71999 * 0.1


@pytest.mark.parametrize(("seconds", "stride"), [(None, 1.0), (0.0, None), (-1.0, 1.0), (2.0, 0.0), (float("nan"), 1)])
def test_windows_that_make_no_sense(seconds: float | None, stride: float | None) -> None:
    with pytest.raises(RecipeError, match=r"window|stride"):
        Windows(seconds, stride)


@pytest.fixture
def reader(video: Path) -> Iterator[VideoReader]:
    with VideoReader(video) as reader:
        yield reader


def planned(windows: Windows, reader: VideoReader, **interval: float) -> list[tuple[float, float, list[int]]]:
    """Start, end and frames of the windows of four frames."""
    return list(zip(*map(np.ndarray.tolist, windows.plan(reader, 4, **interval)), strict=True))


def test_a_window_has_the_middle_frames_of_its_parts(reader: VideoReader) -> None:
    assert Windows(1.2).plan(reader, 4).indices.tolist() == [[1, 4, 7, 10]]
    assert planned(Windows(0.4, 0.6), reader) == [(0, 0.4, [0, 1, 2, 3]), (0.6, 1.0, [6, 7, 8, 9])]
    assert planned(Windows(0.2), reader, start=0.4, end=0.6) == [(0.4, 0.6, [4, 4, 5, 5])]


def test_windows_share_frames_where_the_stride_is_a_multiple_of_a_part(reader: VideoReader) -> None:
    first, second, third = Windows(0.8, 0.2).plan(reader, 4).indices.tolist()
    assert first[1:] == second[:-1]
    assert second[1:] == third[:-1]


def test_an_interval_that_is_one_window_has_the_frames_of_a_test_clip(reader: VideoReader) -> None:
    assert planned(Windows(), reader) == [(0.0, pytest.approx(1.2), segment_indices(12, 4))]
    part = [3 + index for index in segment_indices(6, 4)]  # frames 3 to 8
    assert planned(Windows(), reader, start=0.3, end=0.85) == [(0.3, 0.85, part)]
    with pytest.raises(VideoError, match=r"red0\.mp4: the annotation starts at 2 s, but the video lasts 1\.2 s"):
        Windows(1.0).plan(reader, 4, start=2.0)


def test_the_frames_of_each_window(reader: VideoReader) -> None:
    preprocessing = Preprocessing(num_frames=4, size=(32, 32))
    plan = np.array([[0, 2, 4], [1, 3, 5], [4, 4, 6]])
    clips = [crops_of(reader.frames_at(indices), preprocessing)[0] for indices in plan]
    for indices, expected, frames in zip(plan.tolist(), clips, window_frames(reader, plan, preprocessing), strict=True):
        assert torch.equal(torch.stack([frames[index] for index in indices], dim=1), expected)


def test_no_more_frames_are_held_than_open_windows_need(reader: VideoReader) -> None:
    plan = np.array([[start, start + 1, start + 2, start + 3] for start in range(0, 9, 2)])  # two are open at a time
    reading = window_frames(reader, plan, Preprocessing(size=(32, 32)))
    held = [len(reading.gi_frame.f_locals["frames"]) for _ in reading]  # type: ignore[attr-defined]
    assert held == [4] * 5


# --- gaps

YEAR = 365 * 86400


def with_gap(path: Path, seconds: int) -> Path:
    """Twenty frames in two seconds, and one so many seconds after the first."""
    return write_video(path, noise(21), times=[*range(0, 2000, 100), 1000 * seconds])


def test_a_video_is_not_divided_by_time_beyond_the_limit(tmp_path: Path) -> None:
    with VideoReader(with_gap(tmp_path / "gap.mkv", 30 * YEAR)) as reader:
        with pytest.raises(VideoError, match=r"gap\.mkv: duration_seconds is 9.*--limit duration_seconds=VALUE"):
            Windows(2.0).plan(reader, 8)
        assert planned(Windows(), reader) == [(0, reader.duration, [2, 7, 12, 17])]
        assert planned(Windows(2.0), reader, end=4.0) == [(0, 2, [2, 7, 12, 17]), (2, 4, [19] * 4)]
        assert len(reader.frames_at([0, 19, 20])) == 3
    with VideoReader(tmp_path / "gap.mkv", limits=Limits(duration_seconds=50 * YEAR)) as reader:
        assert len(Windows(YEAR).plan(reader, 8).start) == 31
        with pytest.raises(RecipeError, match=r"gap\.mkv: 9\.\d+e\+08 windows of 1 s every 1 s are too many"):
            Windows(1.0).plan(reader, 8)


def test_windows_of_a_gap_have_the_frame_before_it(tmp_path: Path) -> None:
    with VideoReader(with_gap(tmp_path / "gap.mkv", 3600)) as reader:
        plan = Windows(2.0).plan(reader, 4)
        assert plan.indices[[0, 1, -1]].tolist() == [[2, 7, 12, 17], [19] * 4, [20] * 4]
        frames = window_frames(reader, plan.indices, Preprocessing(num_frames=4, size=(32, 32)))
        assert sum(map(len, frames)) == 4 + len(plan.start) - 1
