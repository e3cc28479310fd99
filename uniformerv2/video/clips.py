"""The clips of a video that are classified: its views, read and cropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from uniformerv2.model.config import Preprocessing
from uniformerv2.video.reader import VideoReader
from uniformerv2.video.transforms import test_crops
from uniformerv2.video.views import Views


def evaluation_views(
    reader: VideoReader,
    preprocessing: Preprocessing,
    views: Views = Views(),
    *,
    first: int = 0,
    count: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Clips spread over a video, each in one or three crops.

    Args:
        reader: the video; each frame of a view is decoded once.
        preprocessing: frames, size and normalisation of the model.
        views: clips and crops.
        first: the first frame of the interval that the clips are spread over.
        count: frames of the interval; None: all from there.
        out: where to write the result, such as memory that processes share; None: new memory.

    Returns:
        float32 (clips x crops, 3, frames, height, width), normalised: clips in order of time and, for each,
        its crops from left (or top) to right (or bottom).

    Raises:
        VideoError: a wanted frame cannot be decoded.
    """
    count = len(reader) - first if count is None else count
    indices = [first + index for clip in views.frame_indices(count, preprocessing.num_frames) for index in clip]
    clips = reader.frames_at(indices).split(preprocessing.num_frames)
    out = torch.empty((len(views), 3, len(clips[0]), *preprocessing.size)) if out is None else out
    for clip, crops in zip(clips, out.split(views.crops), strict=True):
        test_crops(clip, preprocessing, crops=views.crops, out=crops)
    return out


@dataclass(frozen=True, eq=False)
class SharedClips:
    """Clips that may have frames in common, as those of a short video do; each frame is held once."""

    frames: Tensor  # float32 (3, frames, height, width), normalised; a crop of a frame is a frame of its own
    clips: Tensor  # int64 (clips, frames of a clip): indices into `frames`

    def whole(self) -> Tensor:
        """Each clip with all of its frames, contiguous: (clips, 3, frames of a clip, height, width)."""
        # (3, clips, frames of a clip, height, width) -> (clips, 3, frames of a clip, height, width)
        return self.frames[:, self.clips].transpose(0, 1).contiguous()


def distinct_views(reader: VideoReader, preprocessing: Preprocessing, views: Views = Views()) -> SharedClips:
    """The clips of `evaluation_views`, with every frame read and resized once.

    Args:
        reader, preprocessing, views: as of `evaluation_views`.

    Raises:
        VideoError: a wanted frame cannot be decoded.
    """
    indices = torch.tensor(views.frame_indices(len(reader), preprocessing.num_frames))
    wanted, clips = indices.unique(return_inverse=True)
    frames = torch.empty((3, views.crops, len(wanted), *preprocessing.size))
    test_crops(reader.frames_at(wanted.tolist()), preprocessing, crops=views.crops, out=frames.transpose(0, 1))
    starts = len(wanted) * torch.arange(views.crops)
    # (clips, 1, frames of a clip) + (crops, 1) -> (clips·crops, frames of a clip)
    return SharedClips(frames.flatten(1, 2), (clips[:, None] + starts[:, None]).flatten(0, 1))


def joined(videos: Sequence[SharedClips]) -> SharedClips:
    """The clips of one video after those of the other."""
    starts = accumulate((len(video.frames[0]) for video in videos[:-1]), initial=0)
    clips = [video.clips + start for video, start in zip(videos, starts, strict=True)]
    return SharedClips(torch.cat([video.frames for video in videos], dim=1), torch.cat(clips))
