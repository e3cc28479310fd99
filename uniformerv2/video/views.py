"""The views of a video that evaluation and prediction look at."""

from __future__ import annotations

import torch
from torch import Tensor

from uniformerv2.model.config import Preprocessing
from uniformerv2.video.reader import VideoReader
from uniformerv2.video.sampling import segment_indices
from uniformerv2.video.transforms import test_crops


def evaluation_views(
    reader: VideoReader,
    preprocessing: Preprocessing,
    *,
    num_clips: int = 1,
    num_crops: int = 1,
    first: int = 0,
    count: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Clips spread over a video, each in one or three crops.

    Args:
        reader: the video; every frame that a view needs is decoded once.
        preprocessing: frames, size and normalisation of the model.
        num_clips: clips per video, at least 1.
        num_crops: 1 (centre) or 3 (along the longer side) of each clip.
        first: the first frame that may be seen.
        count: how many frames from there may be seen; None: all.
        out: where to write the result; None: new memory.

    Returns:
        float32 (num_clips x num_crops, 3, frames, height, width), normalised: clips in order of time and, for each,
        its crops from left (or top) to right (or bottom).

    Raises:
        VideoError: a wanted frame cannot be decoded.
    """
    count = len(reader) - first if count is None else count
    indices = [
        first + index
        for clip in range(num_clips)
        for index in segment_indices(count, preprocessing.num_frames, clip=clip, num_clips=num_clips)
    ]
    clips = reader.frames_at(indices).split(preprocessing.num_frames)
    views = torch.empty((num_clips * num_crops, 3, len(clips[0]), *preprocessing.size)) if out is None else out
    for clip, crops in zip(clips, views.split(num_crops), strict=True):
        test_crops(clip, preprocessing, num_crops=num_crops, out=crops)
    return views
