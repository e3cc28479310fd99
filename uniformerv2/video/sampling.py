"""Which frames make a clip: counts in, indices out. Pure; knows no file and no tensor."""

from __future__ import annotations

import random


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
