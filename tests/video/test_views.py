"""Views of shared frames are the views that evaluation looks at."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from uniformerv2.model.config import Preprocessing
from uniformerv2.video.reader import VideoReader
from uniformerv2.video.sampling import segment_indices
from uniformerv2.video.views import distinct_views, evaluation_views, joined

PREPROCESSING = Preprocessing(num_frames=4, size=(32, 32))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames of noise, wider than high, so that the three crops differ."""
    path = tmp_path_factory.mktemp("wide") / "wide.mp4"
    noise = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        for _ in range(12):
            frame = noise.integers(0, 255, (48, 80, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("num_clips", "num_crops"), [(1, 1), (4, 1), (1, 3), (4, 3)])
def test_every_frame_is_there_once_and_the_clips_are_those_of_evaluation(
    wide: Path, num_clips: int, num_crops: int
) -> None:
    with VideoReader(wide) as reader:
        views = distinct_views(reader, PREPROCESSING, num_clips=num_clips, num_crops=num_crops)
        expected = evaluation_views(reader, PREPROCESSING, num_clips=num_clips, num_crops=num_crops)
    clips = [segment_indices(12, 4, clip=clip, num_clips=num_clips) for clip in range(num_clips)]
    assert views.frames.shape == (3, num_crops * len({index for clip in clips for index in clip}), 32, 32)
    assert torch.equal(views.whole(), expected)
    assert views.whole().is_contiguous()


def test_the_clips_of_several_videos_follow_each_other(wide: Path, colours: Path) -> None:
    videos = []
    for path, num_clips in ((wide, 3), (colours / "red" / "red0.mp4", 1), (wide, 2)):
        with VideoReader(path) as reader:
            videos.append(distinct_views(reader, PREPROCESSING, num_clips=num_clips))
    assert torch.equal(joined(videos).whole(), torch.cat([video.whole() for video in videos]))
