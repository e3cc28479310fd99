"""Which views of a video are classified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from uniformerv2.errors import RecipeError
from uniformerv2.video.sampling import segment_indices

Average = Literal["probabilities", "logits"]


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
    """What is averaged over the views: their probabilities, as in the reference, or their logits."""

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
