"""Arming: weights as the start of a video model of another size, patch size, frame rate of the stem or mixing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from uniformerv2.model.config import ModelConfig
from uniformerv2.model.positions import interpolate_position_embedding, interpolate_relative_bias
from uniformerv2.model.temporal_mixing import TEMPORAL_MIXING, TemporalConvolution
from uniformerv2.model.uniformerv2 import UniFormerV2

STEM = "backbone.patch_embedding.weight"
POSITION_EMBEDDING = "backbone.position_embedding"
RELATIVE_BIAS = "attention.relative_bias"  # of every block


def inflate_stem(weight: Tensor, temporal_kernel: int) -> Tensor:
    """A 2-D patch embedding as a 3-D kernel with weights for the middle frame only, which gives the same tokens.

    Args:
        weight: (width, 3, patch, patch).
        temporal_kernel: frames of the kernel; odd.

    Returns:
        (width, 3, temporal_kernel, patch, patch).
    """
    if temporal_kernel == 1:
        return weight.unsqueeze(2)
    inflated = weight.new_zeros(*weight.shape[:2], temporal_kernel, *weight.shape[2:])
    inflated[:, :, temporal_kernel // 2] = weight
    return inflated


def resample_patches(weight: Tensor, patch_size: int) -> Tensor:
    """A patch embedding for patches of another size (FlexiViT, arXiv:2212.08013, section 3.4).

    The new weights w' minimise the squared difference between their products with resized patches and those of w with
    the patches: with B the matrix that resizes a patch, w' = pinv(B') w. For larger patches the products are equal.

    Args:
        weight: (..., patch, patch).
        patch_size: pixels of the new patch's side.

    Returns:
        (..., patch_size, patch_size).
    """
    old = weight.shape[-1]
    if old == patch_size:
        return weight
    # an image for each pixel of a patch: (old·old, 1, old, old) -> (old·old, new·new), B transposed
    pixels = torch.eye(old * old, dtype=torch.float64, device=weight.device).view(-1, 1, old, old)
    resize = F.interpolate(pixels, size=(patch_size, patch_size), mode="bilinear", antialias=True).flatten(1)
    inverse = torch.linalg.pinv(resize)  # (new·new, old·old)
    resampled = weight.double().flatten(-2) @ inverse.T
    return resampled.to(weight.dtype).unflatten(-1, (patch_size, patch_size))


def fit_weights(
    state: Mapping[str, Tensor], source: ModelConfig, target: ModelConfig
) -> tuple[dict[str, Tensor], list[str]]:
    """Adapt weights to the same architecture at another size, patch size, frame rate of the stem or local mixing.

    Args:
        state: tensors under our names; the stem may be an image model's, (width, 3, patch, patch).
        source: their architecture.
        target: the architecture to fit; fields that no tensor depends on are not compared.

    Returns:
        The tensors, unchanged ones without a copy; and what was changed, a line each.

    Raises:
        ValueError: `source` downsamples in time and `target` does not; its local mixing cannot become the target's.
    """
    fitted = dict(state)
    changes: list[str] = []
    if STEM in state:
        fitted[STEM] = _fit_stem(state[STEM], source, target, changes)
    if source.grid != target.grid:
        if POSITION_EMBEDDING in state:
            fitted[POSITION_EMBEDDING] = interpolate_position_embedding(
                state[POSITION_EMBEDDING], source.grid, target.grid
            )
            changes.append(_resized("position embedding", source.grid, target.grid))
        tables = [name for name in state if name.endswith(RELATIVE_BIAS)]
        for name in tables:
            fitted[name] = interpolate_relative_bias(state[name], source.grid, target.grid)
        if tables:
            changes.append(_resized("relative biases", source.grid, target.grid))
    if source.local_blocks != "none" and source.local_mixing != target.local_mixing:
        fitted |= _start_mixing(state, source, target)
        changes.append(f"local mixing {target.local_mixing}: new weights, without effect until they are trained")
    return fitted, changes


def _start_mixing(state: Mapping[str, Tensor], source: ModelConfig, target: ModelConfig) -> dict[str, Tensor]:
    """What the convolutions in time lack of an option that begins as the convolution."""
    mixing = TEMPORAL_MIXING[target.local_mixing]
    if source.local_mixing != "convolution" or not issubclass(mixing, TemporalConvolution):
        raise ValueError(
            f"local_mixing {source.local_mixing} cannot become {target.local_mixing}: only convolution can become "
            "calibrated or differences"
        )
    started: dict[str, Tensor] = {}
    for name in (name for name in state if name.endswith(".temporal.bias")):
        new = mixing(len(state[name]), source.local_kernel).state_dict()
        started |= {name.removesuffix("bias") + part: tensor for part, tensor in new.items()}
    return {name: tensor for name, tensor in started.items() if name not in state}


def _fit_stem(weight: Tensor, source: ModelConfig, target: ModelConfig, changes: list[str]) -> Tensor:
    if source.temporal_downsample and not target.temporal_downsample:
        raise ValueError("a stem of three frames cannot become a stem of one: keep temporal_downsample")
    if weight.shape[-1] != target.patch_size:
        changes.append(f"patch embedding resampled from {weight.shape[-1]} to {target.patch_size} pixels (FlexiViT)")
        weight = resample_patches(weight, target.patch_size)
    if weight.ndim == 5 and weight.shape[2] == 1:
        weight = weight.squeeze(2)
    if weight.ndim == 4:
        if target.temporal_downsample:
            changes.append("patch embedding inflated to three frames, with weights for the middle frame")
        weight = inflate_stem(weight, 3 if target.temporal_downsample else 1)
    return weight


def _resized(what: str, old: tuple[int, int], new: tuple[int, int]) -> str:
    return f"{what} interpolated from {old[0]}x{old[1]} to {new[0]}x{new[1]} patches (bicubic)"


def load_image_weights(model: UniFormerV2, state: Mapping[str, Tensor]) -> None:
    """Copy fitted `backbone.*` image weights into a video model; all other parameters keep their initial values.

    The model then computes what the image model does: every global UniBlock and local aggregator adds zero.
    """
    with torch.no_grad():
        own = model.state_dict()
        for name, tensor in state.items():
            own[name].copy_(tensor)
