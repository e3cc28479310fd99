"""Training augmentation: RandAugment, random resized crop, flip, erasing. One draw for all frames of a clip."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from uniformerv2.model.config import Preprocessing
from uniformerv2.video.augmentation import Augmentation
from uniformerv2.video.transforms import check_frames, covering_size, resize, resized_clip


class Augmented(NamedTuple):
    """A training view."""

    clip: Tensor  # float32 (3, frames, H, W), contiguous, normalised, in the model's channel order
    mirrored: bool  # left is right


def augment(
    frames: Tensor,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    rng: random.Random,
    *,
    out: Tensor | None = None,
) -> Augmented:
    """One random training view of a clip: RandAugment, random resized crop, flip, normalisation, erasing.

    Args:
        frames: uint8 (frames, 3, height, width), RGB.
        preprocessing: size, mean, std and channel order of the model.
        augmentation: which operations are drawn, and how strong they are.
        rng: the only source of randomness; an equal state gives an equal view.
        out: where to write the result; None: new memory.

    Raises:
        ValueError: frames of another shape or dtype.
    """
    check_frames(frames)
    if min(frames.shape[-2:]) > augmentation.short_side:
        size = covering_size(frames.shape, (augmentation.short_side, augmentation.short_side))
        frames = resize(frames, size).round_().byte()
    operations = draw_operations(augmentation, rng)
    if operations:
        frames = frames.contiguous()  # decoders leave the channels innermost, where statistics per channel are slow
    for name, amount in operations:
        frames = OPERATIONS[name].apply(frames, amount)
    top, left, height, width = draw_crop(frames.shape, preprocessing.size, augmentation, rng)
    frames = frames[..., top : top + height, left : left + width]
    mirrored = rng.random() < augmentation.flip
    clip = resized_clip(frames, preprocessing.size, preprocessing, mirrored=mirrored, out=out)
    if augmentation.erasing and rng.random() < augmentation.erasing:
        erase(clip, preprocessing, rng)
    return Augmented(clip, mirrored)


def erase(clip: Tensor, preprocessing: Preprocessing, rng: random.Random) -> None:
    """Fill a rectangle, the same in all frames, with random colours of its own in each (random erasing, Zhong et al.,
    arXiv:1708.04896).

    Args:
        clip: normalised, (3, frames, height, width); changed in place.
        preprocessing: that it was normalised with.
        rng: the source of randomness.
    """
    rectangle = draw_erased(clip.shape, rng)
    if rectangle is None:
        return
    noise = torch.Generator().manual_seed(rng.getrandbits(63))
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    rows, columns = rectangle
    part = clip[..., rows, columns]
    part.copy_(torch.rand(part.shape, generator=noise).sub_(mean).div_(std))


def draw_erased(shape: tuple[int, ...], rng: random.Random) -> tuple[slice, slice] | None:
    """Rows and columns to erase: 2 to 40 % of the frame, height / width 0.3 to 1 / 0.3, as in the paper.

    A rectangle that does not fit is drawn again, a hundred times at most; None after that.
    """
    height, width = shape[-2:]
    for _ in range(100):
        area, aspect = rng.uniform(0.02, 0.4) * height * width, rng.uniform(0.3, 1 / 0.3)
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < rows < height and 0 < columns < width:
            top, left = rng.randint(0, height - rows), rng.randint(0, width - columns)
            return slice(top, top + rows), slice(left, left + columns)
    return None


def draw_operations(augmentation: Augmentation, rng: random.Random) -> list[tuple[str, float]]:
    """The (name, amount) of the RandAugment operations to apply, in order (Cubuk et al. 2020, as in timm)."""
    chosen = []
    for name in rng.choices(list(OPERATIONS), k=augmentation.num_ops):
        operation = OPERATIONS[name]
        applied = rng.random() < augmentation.op_probability
        magnitude = min(max(rng.gauss(augmentation.magnitude, augmentation.magnitude_std), 0.0), 10.0)
        sign = rng.choice((-1, 1)) if operation.signed else 1
        if applied:
            chosen.append((name, sign * magnitude / 10 * operation.strongest))
    return chosen


def draw_crop(
    shape: tuple[int, ...], target: tuple[int, int], augmentation: Augmentation, rng: random.Random
) -> tuple[int, int, int, int]:
    """A random part of the frame, as (top, left, height, width) in pixels.

    Ten tries at a random area and aspect; if none fits into the frame, the largest centred part whose
    aspect is allowed.

    Args:
        shape: of the frames; the last two are height and width.
        target: (height, width) that the crop will be resized to.
        augmentation: gives `crop_area` and `crop_aspect`.
        rng: the source of randomness.
    """
    frame_height, frame_width = shape[-2:]
    smallest, largest = (ratio * target[1] / target[0] for ratio in augmentation.crop_aspect)
    for _ in range(10):
        area = rng.uniform(*augmentation.crop_area) * frame_height * frame_width
        aspect = math.exp(rng.uniform(math.log(smallest), math.log(largest)))
        height, width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < height <= frame_height and 0 < width <= frame_width:
            return rng.randint(0, frame_height - height), rng.randint(0, frame_width - width), height, width
    height = max(1, min(frame_height, round(frame_width / smallest)))
    width = max(1, min(frame_width, round(frame_height * largest)))
    return (frame_height - height) // 2, (frame_width - width) // 2, height, width


# The operations of RandAugment. Each takes uint8 (frames, 3, height, width) and an amount, and gives the same
# shape and dtype; the arithmetic is that of the Python Imaging Library, for which the recipe was written.

GREY = 128  # fills the area beyond the edge of a moved frame, as in the reference


def autocontrast(frames: Tensor, _: float) -> Tensor:
    """Stretch every channel of every frame to the full range."""
    low, high = frames.amin((2, 3), keepdim=True).float(), frames.amax((2, 3), keepdim=True).float()
    scale = 255 / (high - low)
    flat = high == low  # nothing to stretch
    return _to_bytes((frames - low.where(~flat, 0)).mul_(scale.where(~flat, 1)))


def equalize(frames: Tensor, _: float) -> Tensor:
    """Spread the values of every channel of every frame evenly over the range."""
    channels = frames.flatten(2).flatten(0, 1)  # (frames·3, pixels)
    counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels])
    highest = counts.gather(1, channels.amax(1, keepdim=True).long())  # how many pixels have the largest value
    step = (channels.shape[1] - highest) // 255
    below = counts.cumsum(1) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256)).byte()  # too few values to spread: unchanged
    return table.gather(1, channels.long()).view(frames.shape)


def invert(frames: Tensor, _: float) -> Tensor:
    """The negative."""
    return ~frames


def posterize(frames: Tensor, amount: float) -> Tensor:
    """Keep the highest 4 - amount bits of every value, at least one."""
    kept = max(1, 4 - int(amount))
    return frames & (0xFF00 >> kept & 0xFF)


def solarize(frames: Tensor, amount: float) -> Tensor:
    """Invert the values from 256 - amount upwards."""
    return frames ^ (frames.short() >= 256 - int(amount)).byte().mul_(255)  # short, because 256 is no byte


def solarize_add(frames: Tensor, amount: float) -> Tensor:
    """Add the amount to the values below 128."""
    return frames + (frames < 128).byte().mul_(int(amount))  # at most 127 + 110, so no byte overflows


def color(frames: Tensor, amount: float) -> Tensor:
    """Saturation times 1 + amount."""
    return _blend(_luma(frames), frames, 1 + amount)


def contrast(frames: Tensor, amount: float) -> Tensor:
    """Distance from the frame's mean grey times 1 + amount."""
    return _blend(_luma(frames).mean((1, 2, 3), keepdim=True).add_(0.5).floor_(), frames, 1 + amount)


def brightness(frames: Tensor, amount: float) -> Tensor:
    """Every value times 1 + amount."""
    return _to_bytes(frames * (1 + amount))


def sharpness(frames: Tensor, amount: float) -> Tensor:
    """Difference from a 3x3 smoothed frame times 1 + amount; the outermost pixels stay."""
    values = frames.short()
    rows = values[..., :-2, :] + values[..., 1:-1, :] + values[..., 2:, :]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = frames.float()
    smooth[..., 1:-1, 1:-1] = (box + 4 * values[..., 1:-1, 1:-1]).float().div_(13).round_()
    return _blend(smooth, frames, 1 + amount)


def rotate(frames: Tensor, amount: float) -> Tensor:
    """Turn by `amount` degrees counter-clockwise about the centre."""
    height, width = frames.shape[-2:]
    cos, sin = math.cos(math.radians(amount)), math.sin(math.radians(amount))
    x, y = width / 2, height / 2
    return _warp(frames, (cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y))


def shear_x(frames: Tensor, amount: float) -> Tensor:
    """Shift every row to the left by `amount` times its distance from the top."""
    return _warp(frames, (1, amount, 0), (0, 1, 0))


def shear_y(frames: Tensor, amount: float) -> Tensor:
    """Shift every column upwards by `amount` times its distance from the left."""
    return _warp(frames, (1, 0, 0), (amount, 1, 0))


def translate_x(frames: Tensor, amount: float) -> Tensor:
    """Shift to the left by `amount` times the width."""
    return _warp(frames, (1, 0, amount * frames.shape[-1]), (0, 1, 0))


def translate_y(frames: Tensor, amount: float) -> Tensor:
    """Shift upwards by `amount` times the height."""
    return _warp(frames, (1, 0, 0), (0, 1, amount * frames.shape[-2]))


def _to_bytes(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).byte()  # truncates, as the reference does


def _blend(other: Tensor, frames: Tensor, factor: float) -> Tensor:
    """`other` at factor 0, `frames` at 1, beyond them outside."""
    return _to_bytes((frames - other).mul_(factor).add_(other))


def _luma(frames: Tensor) -> Tensor:
    """Grey of ITU-R 601, whole numbers as float32 (frames, 1, height, width)."""
    red, green, blue = frames.split(1, dim=1)
    return (red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114).round_()


def _warp(frames: Tensor, to_x: tuple[float, float, float], to_y: tuple[float, float, float]) -> Tensor:
    """Fetch every pixel (x, y) from (to_x · (x, y, 1), to_y · (x, y, 1)), bilinear; coordinates in pixels.

    The reference interpolates bicubically, which costs three times as much and changes less than the
    resize that follows.
    """
    height, width = frames.shape[-2:]
    y = torch.arange(height).add(0.5)[:, None]
    x = torch.arange(width).add(0.5)[None, :]
    source_x, source_y = (a * x + b * y + c for a, b, c in (to_x, to_y))
    grid = torch.stack((source_x.mul_(2 / width).sub_(1), source_y.mul_(2 / height).sub_(1)), dim=-1)
    planes = frames.flatten(0, 1)[None].float().sub_(GREY)  # zero beyond the edge is then grey
    warped = F.grid_sample(planes, grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)
    return warped.add_(GREY).round_().byte().view(frames.shape)


@dataclass(frozen=True)
class Operation:
    """An operation of RandAugment and its range."""

    apply: Callable[[Tensor, float], Tensor]
    strongest: float = 0.0  # the amount at magnitude 10; it grows with the magnitude
    signed: bool = False  # whether the amount is negative half of the time


OPERATIONS = {  # the fifteen of timm's increasing set ("inc1")
    "autocontrast": Operation(autocontrast),
    "equalize": Operation(equalize),
    "invert": Operation(invert),
    "rotate": Operation(rotate, 30.0, signed=True),
    "posterize": Operation(posterize, 4.0),
    "solarize": Operation(solarize, 256.0),
    "solarize_add": Operation(solarize_add, 110.0),
    "color": Operation(color, 0.9, signed=True),
    "contrast": Operation(contrast, 0.9, signed=True),
    "brightness": Operation(brightness, 0.9, signed=True),
    "sharpness": Operation(sharpness, 0.9, signed=True),
    "shear_x": Operation(shear_x, 0.3, signed=True),
    "shear_y": Operation(shear_y, 0.3, signed=True),
    "translate_x": Operation(translate_x, 0.45, signed=True),
    "translate_y": Operation(translate_y, 0.45, signed=True),
}
