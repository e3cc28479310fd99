"""Training clips mixed with each other: mixup and CutMix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from uniformerv2.device import upload


@dataclass(frozen=True)
class Mixing:
    """How clips are mixed. Where both are asked for, each batch is mixed in one of the two ways, by chance.

    The share of the other clip is drawn from Beta(alpha, alpha), once for a batch, from torch's generator.
    """

    mixup: float = 0.0  # alpha: clips are blended (Zhang et al., arXiv:1710.09412); 0: never
    cutmix: float = 0.0  # alpha: a part of a clip is replaced (Yun et al., arXiv:1905.04899); 0: never

    def __bool__(self) -> bool:
        return bool(self.mixup or self.cutmix)


class Mixed(NamedTuple):
    """Clips, each of which is partly another clip of the batch."""

    clips: Tensor  # of the shape that they had
    others: Tensor  # int64 (batch): the other clip
    kept: float  # the share of a clip's own label; that of the other's is 1 - kept


def mix(clips: Tensor, mixing: Mixing) -> Mixed:
    """Mix every clip with another clip of the batch, drawn as a permutation, if it is asked for.

    CutMix replaces the same rectangle in all frames. Its share is that of the rectangle's area within the frame.

    Args:
        clips: float, normalised (batch, 3, frames, height, width).
        mixing: how.
    """
    if not mixing:
        return Mixed(clips, torch.arange(len(clips), device=clips.device), 1.0)
    cuts = bool(mixing.cutmix) and (not mixing.mixup or torch.rand(()).item() < 0.5)
    alpha = mixing.cutmix if cuts else mixing.mixup
    kept = torch.distributions.Beta(alpha, alpha).sample().item()
    others = upload(torch.randperm(len(clips)), clips.device)
    if not cuts:
        return Mixed(clips.lerp(clips[others], 1 - kept), others, kept)
    rows, columns = draw_rectangle(clips.shape[-2:], 1 - kept)
    mixed = clips.clone()
    mixed[..., rows, columns] = clips[..., rows, columns][others]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return Mixed(mixed, others, 1 - area / (clips.shape[-2] * clips.shape[-1]))


def draw_rectangle(shape: tuple[int, ...], share: float) -> tuple[slice, slice]:
    """Rows and columns of CutMix: of the frame's aspect and this share of its area, around a random pixel.

    What lies outside the frame is cut off.
    """
    sides = []
    for length in shape:
        half = int(length * share**0.5) // 2
        centre = int(torch.randint(length, ()))
        sides.append(slice(max(centre - half, 0), min(centre + half, length)))
    rows, columns = sides
    return rows, columns
