"""Which frames make a clip, and which clips and crops of a video are classified. Knows no file and no tensor."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, get_args

from uniformerv2.errors import RecipeError


def segment_indices(num_frames: int, num_segments: int, *, clip: int = 0, clips: int = 1) -> list[int]:
    """Frame indices of one evenly spread clip, for testing (sparse sampling, TSN).

    The video is cut into `num_segments` equal segments and one frame is taken from each. The clips
    of one video have different offsets inside the segments:

        video       |------------|------------|------------|------------|
        clip 0 of 2     ^            ^            ^            ^
        clip 1 of 2         ^            ^            ^            ^

    Args:
        num_frames: frames in the video, at least 1.
        num_segments: frames in the clip, at least 1; may exceed `num_frames`, then frames repeat.
        clip: which of the `clips` clips, from 0.
        clips: clips per video, at least 1.

    Returns:
        `num_segments` indices in [0, num_frames), never decreasing. Equal to the official implementation.

    Raises:
        ValueError: a count below 1, or `clip` outside [0, clips).
    """
    _check_counts(num_frames, num_segments)
    if not 0 <= clip < clips:
        raise ValueError(f"clip must lie in [0, clips={clips}), got {clip}")
    length = (num_frames - 1) / num_segments  # of a segment, in frames
    offset = int(length / (clips + 1) * (clip + 1))
    return [min(round(length * segment) + offset, num_frames - 1) for segment in range(num_segments)]


def random_segment_indices(num_frames: int, num_segments: int, rng: random.Random) -> list[int]:
    """Frame indices of one training clip: a random frame of every segment.

    Args:
        num_frames: frames in the video, at least 1.
        num_segments: frames in the clip, at least 1; may exceed `num_frames`, then frames repeat.
        rng: the source of all randomness here.

    Returns:
        `num_segments` indices in [0, num_frames), never decreasing. As in the official implementation,
        a segment includes the first frame of the next one.

    Raises:
        ValueError: a count below 1.
    """
    _check_counts(num_frames, num_segments)
    length = (num_frames - 1) / num_segments  # of a segment, in frames
    return [
        min(rng.randint(round(length * segment), round(length * (segment + 1))), num_frames - 1)
        for segment in range(num_segments)
    ]


def _check_counts(num_frames: int, num_segments: int) -> None:
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    if num_segments < 1:
        raise ValueError(f"num_segments must be at least 1, got {num_segments}")


Average = Literal["probabilities", "logits", "maximum"]


@dataclass(frozen=True)
class Views:
    """Clips x crops of a video, and what is averaged over them.

    Raises:
        RecipeError: a value that is not possible.
    """

    clips: int = 1
    """Clips evenly spread over each video."""
    crops: int = 1
    """Crops of each clip: 1 (centre) or 3 (along the longer side)."""
    average: Average = "probabilities"
    """What is averaged over the views: their probabilities, as in the reference, or their logits. maximum: of a model
    that names several labels, the largest probability of each class over the views."""

    def __post_init__(self) -> None:
        if self.clips < 1 or self.crops not in (1, 3):
            raise RecipeError(f"need at least 1 clip and 1 or 3 crops, got {self.clips} clips and {self.crops} crops")
        if self.average not in get_args(Average):
            raise RecipeError(f"average must be {' or '.join(get_args(Average))}, got {self.average!r}")

    def __len__(self) -> int:
        return self.clips * self.crops

    def frame_indices(self, length: int, num_frames: int) -> list[list[int]]:
        """The frames of each clip in a video of `length` frames, see `segment_indices`."""
        return [segment_indices(length, num_frames, clip=clip, clips=self.clips) for clip in range(self.clips)]
