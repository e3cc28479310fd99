"""Arming: the weights of an image transformer become the start of a video model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from uniformerv2.model.config import ModelConfig
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.model.vit import interpolate_positions


def inflate_stem(weight: Tensor, temporal_kernel: int) -> Tensor:
    """A 2-D patch embedding as a 3-D one that sees only the middle frame, so that it gives the same tokens.

    Args:
        weight: (width, 3, patch, patch).
        temporal_kernel: frames that the 3-D stem sees; odd.

    Returns:
        (width, 3, temporal_kernel, patch, patch).
    """
    inflated = weight.new_zeros(*weight.shape[:2], temporal_kernel, *weight.shape[2:])
    inflated[:, :, temporal_kernel // 2] = weight
    return inflated


def fit_image_weights(
    state: Mapping[str, Tensor], config: ModelConfig, *, image_grid: tuple[int, int]
) -> dict[str, Tensor]:
    """Image weights under our names, made to fit the stem and the size of a video model.

    Args:
        state: `backbone.*` tensors of the image transformer, its patch embedding still (width, 3, patch, patch).
        config: the video model's.
        image_grid: rows and columns of patches of the image model.
    """
    fitted = dict(state)
    stem, positions = "backbone.patch_embedding.weight", "backbone.position_embedding"
    fitted[stem] = inflate_stem(state[stem], 3 if config.temporal_downsample else 1)
    fitted[positions] = interpolate_positions(state[positions], image_grid, config.grid)
    return fitted


def load_image_weights(model: UniFormerV2, state: Mapping[str, Tensor]) -> None:
    """Copy fitted `backbone.*` image weights into a video model; what the image model lacks keeps its start values.

    The model then begins as the image model: every global UniBlock and local aggregator adds zero.
    """
    with torch.no_grad():
        own = model.state_dict()
        for name, tensor in state.items():
            own[name].copy_(tensor)
