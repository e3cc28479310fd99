"""From decoded frames to the clip that a model is tested on: resize, crop, normalise."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from uniformerv2.model.config import Preprocessing


def test_crops(frames: Tensor, preprocessing: Preprocessing, *, num_crops: int = 1) -> Tensor:  # noqa: PT028 - not a test
    """The crops that one clip is tested on, equal to the official implementation.

    The frames are resized so that they just cover `preprocessing.size`; what is too long is cropped.

    Args:
        frames: uint8 (frames, 3, height, width), RGB.
        preprocessing: size, mean, std and channel order of the model.
        num_crops: 1 for the centre, 3 for start, centre and end along the longer side.

    Returns:
        float32 (num_crops, 3, frames, H, W), normalised, in the model's channel order.

    Raises:
        ValueError: frames of another shape or dtype, or `num_crops` other than 1 or 3.
    """
    check_frames(frames)
    if num_crops not in (1, 3):
        raise ValueError(f"num_crops must be 1 (centre) or 3 (start, centre, end), got {num_crops}")
    height, width = preprocessing.size
    clip = normalise(resize(frames, covering_size(frames.shape, preprocessing.size)), preprocessing)
    excess = clip.shape[-2] - height, clip.shape[-1] - width  # pixels; one of the two is 0
    crops = []
    for share in (0.5,) if num_crops == 1 else (0.0, 0.5, 1.0):
        top, left = (math.ceil(share * pixels) for pixels in excess)
        crops.append(clip[..., top : top + height, left : left + width])
    return torch.stack(crops)


def check_frames(frames: Tensor) -> None:
    """Raise ValueError unless `frames` is uint8 (frames, 3, height, width)."""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
        raise ValueError(f"frames must be uint8 (frames, 3, height, width), got {frames.dtype} {tuple(frames.shape)}")


def covering_size(shape: tuple[int, ...], target: tuple[int, int]) -> tuple[int, int]:
    """The smallest size that covers `target` and keeps the proportions, rounded down as in the reference.

    Args:
        shape: of the frames; the last two are height and width.
        target: (height, width).

    Returns:
        (height, width), one of them equal to the target's, the other not below it.
    """
    (height, width), (target_height, target_width) = shape[-2:], target
    if width * target_height >= height * target_width:  # wider than the target, in proportion
        return target_height, max(target_width, math.floor(width / height * target_height))
    return max(target_height, math.floor(height / width * target_width)), target_width


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear in floats, without antialiasing: the one resize of training and test.

    Args:
        frames: uint8 (frames, 3, height, width).
        size: (height, width) wanted.

    Returns:
        float32 (frames, 3, *size), 0 to 255.
    """
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames.float()
    # One frame at a time: the float copy of all frames of a large video is four times slower.
    return torch.cat(
        [F.interpolate(frame.float(), size=size, mode="bilinear", align_corners=False) for frame in frames.split(1)]
    )


def normalise(frames: Tensor, preprocessing: Preprocessing) -> Tensor:
    """What the model sees: float32 RGB (frames, 3, H, W), 0 to 255 -> (3, frames, H, W), contiguous, in its order.

    Resizing first and normalising last gives the reference's result up to float rounding.
    """
    if preprocessing.channel_order == "bgr":
        frames = frames.flip(1)
    mean = frames.new_tensor(preprocessing.mean).view(3, 1, 1, 1)
    std = frames.new_tensor(preprocessing.std).view(3, 1, 1, 1)
    clip = frames.transpose(0, 1).clone(memory_format=torch.contiguous_format)
    return clip.sub_(255 * mean).div_(255 * std)
