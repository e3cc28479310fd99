"""How large and how dear an architecture is, without building it."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from uniformerv2.model.config import ModelConfig
from uniformerv2.model.uniformerv2 import UniFormerV2


def count_parameters(config: ModelConfig) -> int:
    """Trainable parameters."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UniFormerV2(config).parameters())


def count_multiply_adds(config: ModelConfig, num_frames: int, size: tuple[int, int] | None = None) -> int:
    """Multiply-adds of all matrix products and convolutions for one clip in eval mode.

    Args:
        config: the architecture.
        num_frames: frames of the clip.
        size: (height, width) of the clip in pixels; default: `config.image_size`.
    """
    with torch.device("meta"):
        model = UniFormerV2(config).eval().requires_grad_(False)
        clip = torch.empty(1, 3, num_frames, *(size or config.image_size))
    with FlopCounterMode(display=False) as counter:
        model(clip)
    return counter.get_total_flops() // 2
