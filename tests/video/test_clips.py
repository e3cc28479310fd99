"""Which views there can be; those of shared frames are the views that evaluation looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import noise, write_video
from uniformerv2.errors import RecipeError
from uniformerv2.model.config import Preprocessing
from uniformerv2.video.clips import distinct_views, evaluation_views, joined
from uniformerv2.video.reader import VideoReader
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


def test_views_are_clips_times_crops() -> None:
    assert [len(Views()), len(Views(clips=4, crops=3))] == [1, 12]


@pytest.mark.parametrize("values", [{"clips": 0}, {"crops": 2}, {"average": "sum"}])
def test_impossible_views(values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="got"):
        Views(**values)
