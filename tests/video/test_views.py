"""Which views there can be, and which frames make a clip."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from uniformerv2.errors import RecipeError
from uniformerv2.video.views import Views, random_segment_indices, segment_indices


def test_worked_example() -> None:
    assert segment_indices(300, 8) == [18, 55, 93, 130, 168, 205, 242, 280]


@pytest.mark.parametrize("num_frames", [1, 2, 7, 8, 9, 64, 301])
@pytest.mark.parametrize("num_segments", [1, 3, 8, 16])
def test_clips_stay_inside_and_in_order(num_frames: int, num_segments: int) -> None:
    for count in (1, 2, 5):
        clips = [segment_indices(num_frames, num_segments, clip=k, clips=count) for k in range(count)]
        for clip in clips:
            assert len(clip) == num_segments
            assert clip == sorted(clip)
            assert 0 <= clip[0] <= clip[-1] < num_frames
        assert clips == sorted(clips)  # a later clip never looks at earlier frames


def test_a_short_video_repeats_frames() -> None:
    assert segment_indices(1, 4) == [0, 0, 0, 0]
    assert segment_indices(3, 6) == [0, 0, 1, 1, 1, 2]  # 2/6 of a frame per segment, rounded half to even


def test_clips_of_a_video_differ() -> None:
    first, second = (segment_indices(90, 4, clip=k, clips=2) for k in range(2))
    assert not set(first) & set(second)


@pytest.mark.parametrize("num_frames", [1, 5, 8, 50])
def test_training_frames_lie_in_their_segments(num_frames: int) -> None:
    num_segments = 6
    bounds = [round((num_frames - 1) / num_segments * edge) for edge in range(num_segments + 1)]
    rng = random.Random(0)
    seen: list[set[int]] = [set() for _ in range(num_segments)]
    for _ in range(2000):
        clip = random_segment_indices(num_frames, num_segments, rng)
        assert clip == sorted(clip)
        for segment, index in enumerate(clip):
            seen[segment].add(index)
    # every frame of a segment comes, its two ends included, and no other
    assert seen == [set(range(low, high + 1)) for low, high in pairwise(bounds)]


def test_training_clips_follow_their_generator() -> None:
    draws = [random_segment_indices(500, 8, random.Random(seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(("num_frames", "num_segments"), [(0, 8), (10, 0), (-1, 8)])
def test_counts_below_one_are_refused(num_frames: int, num_segments: int) -> None:
    with pytest.raises(ValueError, match="at least 1, got"):
        segment_indices(num_frames, num_segments)
    with pytest.raises(ValueError, match="at least 1, got"):
        random_segment_indices(num_frames, num_segments, random.Random(0))


@pytest.mark.parametrize(("clip", "count"), [(1, 1), (-1, 2), (0, 0)])
def test_a_clip_that_does_not_exist_is_refused(clip: int, count: int) -> None:
    with pytest.raises(ValueError, match="clip must lie in"):
        segment_indices(30, 8, clip=clip, clips=count)


def test_views_are_clips_times_crops() -> None:
    assert [len(Views()), len(Views(clips=4, crops=3))] == [1, 12]


@pytest.mark.parametrize("values", [{"clips": 0}, {"crops": 2}, {"average": "sum"}])
def test_impossible_views(values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="got"):
        Views(**values)
