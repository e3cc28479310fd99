"""From decoded frames to the clip that a model is tested on: resize, crop, normalise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from uniformerv2.model.config import Preprocessing

_WHOLE = slice(None)


def test_crops(
    frames: Tensor,
    preprocessing: Preprocessing,
    *,
    crops: int = 1,  # noqa: PT028 - not a test
    out: Tensor | None = None,  # noqa: PT028
) -> Tensor:
    """The crops that one clip is tested on, equal to the official implementation.

    The frames are resized so that they just cover `preprocessing.size`; the longer side is cropped.

    Args:
        frames: uint8 (frames, 3, height, width), RGB.
        preprocessing: size, mean, std and channel order of the model.
        crops: 1 for the centre, 3 for start, centre and end along the longer side.
        out: where to write the result; None: new memory.

    Returns:
        float32 (crops, 3, frames, H, W), normalised, in the model's channel order.

    Raises:
        ValueError: frames of another shape or dtype.
    """
    check_frames(frames)
    size = covering_size(frames.shape, preprocessing.size)
    excess = [large - small for large, small in zip(size, preprocessing.size, strict=True)]  # pixels; one of them is 0
    if crops == 1:
        centre = _window([math.ceil(pixels / 2) for pixels in excess], preprocessing.size)
        clip = resized_clip(frames, size, preprocessing, window=centre, out=None if out is None else out[0])
        return clip[None]
    clip = resized_clip(frames, size, preprocessing)
    starts = ([math.ceil(share * pixels) for pixels in excess] for share in (0.0, 0.5, 1.0))
    windows = [_window(start, preprocessing.size) for start in starts]
    return torch.stack([clip[..., rows, columns] for rows, columns in windows], out=out)


def test_frame(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """One frame of the centre crop that `test_crops` makes of a clip.

    Args:
        image: uint8 (3, height, width), RGB.
        preprocessing: as of `test_crops`.

    Returns:
        float32 (3, H, W).
    """
    return test_crops(image[None], preprocessing)[0, :, 0]


def _window(start: list[int], shape: tuple[int, int]) -> tuple[slice, slice]:
    rows, columns = (slice(first, first + pixels) for first, pixels in zip(start, shape, strict=True))
    return rows, columns


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
    rows, columns = (_taps(*pixels) for pixels in zip(frames.shape[-2:], size, strict=True))
    resized = torch.empty((len(frames), 3, *size))
    for _ in _interpolate(frames, rows, columns, resized):
        pass
    return resized


def resized_clip(
    frames: Tensor,
    size: tuple[int, int],
    preprocessing: Preprocessing,
    *,
    window: tuple[slice, slice] = (_WHOLE, _WHOLE),
    mirrored: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """The model's input: frames resized, cropped, mirrored and normalised, without computing pixels that are cropped.

    Args:
        frames: uint8 (frames, 3, height, width), RGB.
        size: (height, width) that whole frames are resized to, as by `resize`.
        preprocessing: mean, std and channel order of the model.
        window: rows and columns of the resized frames that are wanted.
        mirrored: swap left and right of the result.
        out: where to write the result; None: new memory.

    Returns:
        float32 (3, frames, rows, columns), contiguous, normalised, in the model's channel order. Resizing first and
        normalising last gives the reference's result up to float rounding.
    """
    rows, columns = (_taps(*axis) for axis in zip(frames.shape[-2:], size, window, strict=True))
    if mirrored:
        columns = _Taps(*(tap.flip(0) for tap in columns))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    if preprocessing.channel_order == "bgr":
        frames = frames.flip(1)
    clip = torch.empty((3, len(frames), len(rows.weight), len(columns.weight))) if out is None else out
    for image in _interpolate(frames, rows, columns, clip.transpose(0, 1)):
        image.sub_(255 * mean).div_(255 * std)
    return clip


class _Taps(NamedTuple):
    """The two pixels of a line that each pixel of the result lies between, and its distance from them."""

    before: Tensor  # int64 (n)
    after: Tensor  # int64 (n)
    weight: Tensor  # float32 (n), of the pixel after


def _taps(pixels: int, wanted: int, window: slice = _WHOLE) -> _Taps:
    """Where `wanted` pixels, or a window of them, lie on a line of `pixels`; pixels are areas, not points."""
    return _Taps(*(tap[window] for tap in _line(pixels, wanted)))


@lru_cache(maxsize=256)  # of small frames, these tensors cost as much as their interpolation
def _line(pixels: int, wanted: int) -> _Taps:
    scale = torch.tensor(float(pixels)).div(wanted).double()  # a float32 as in torch's own kernels
    centres = torch.arange(wanted, dtype=torch.float64) + 0.5
    positions = (centres * scale - 0.5).float().clamp_(min=0)  # rounded once, as by a fused multiply-add
    before = positions.long().clamp_(max=pixels - 1)
    return _Taps(before, (before + 1).clamp_(max=pixels - 1), positions - before)


def _interpolate(frames: Tensor, rows: _Taps, columns: _Taps, out: Tensor) -> Iterator[Tensor]:
    """Write interpolated frames to `out`, float32 (frames, 3, rows, columns), and yield each when it is ready.

    One frame at a time, so that it stays in the processor's cache. Along rows first: whole lines are read then, while
    the channels of a pixel are still interleaved.
    """
    read, inverse = torch.cat((rows.before, rows.after)).unique(return_inverse=True)
    above, below = inverse.split(len(rows.weight))
    left, right = int(columns.before.min()), int(columns.after.max()) + 1
    before, after = columns.before - left, columns.after - left
    # memory that is used again for every frame; (3·rows, columns), as picking columns is fastest on two axes
    upper, lower = torch.empty((2, 3, len(above), right - left))
    first, second = torch.empty((2, 3 * len(above), len(before)))
    for frame, image in zip(frames, out, strict=True):
        lines = frame if len(read) == frame.shape[1] else frame.index_select(1, read)
        # twice as fast as torch's own copy from channels last to planes
        planes = torch.from_numpy(np.ascontiguousarray(lines[..., left:right].numpy()))
        upper.copy_(planes.index_select(1, above)).lerp_(
            lower.copy_(planes.index_select(1, below)), rows.weight[:, None]
        )
        torch.index_select(upper.flatten(0, 1), 1, before, out=first)
        torch.index_select(upper.flatten(0, 1), 1, after, out=second)
        yield torch.lerp(first.view(image.shape), second.view(image.shape), columns.weight, out=image)
