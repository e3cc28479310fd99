"""Arming: the weights of an image transformer become the start of a video model, at any size. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from uniformerv2.model.config import ModelConfig
from uniformerv2.model.positions import interpolate_position_embedding, interpolate_relative_bias
from uniformerv2.model.uniformerv2 import UniFormerV2

STEM, POSITIONS, DISTANCES = (
    "backbone.patch_embedding.weight",
    "backbone.position_embedding",
    "attention.relative_bias",  # one in every block
)


def inflate_stem(weight: Tensor, temporal_kernel: int) -> Tensor:
    """A 2-D patch embedding as a 3-D one that sees only the middle frame, so that it gives the same tokens.

    Args:
        weight: (width, 3, patch, patch).
        temporal_kernel: frames that the 3-D stem sees; odd.

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

    The new weights w' are those whose products with resized patches come nearest to the old ones with the patches
    themselves: with B the matrix that resizes a patch, w' = pinv(B') w. For larger patches the products are equal.

    Args:
        weight: (..., patch, patch).
        patch_size: pixels of the new patch's side.

    Returns:
        (..., patch_size, patch_size).
    """
    old = weight.shape[-1]
    if old == patch_size:
        return weight
    # every pixel of a patch as an image of its own: (old·old, 1, old, old) -> (old·old, new·new), B transposed
    pixels = torch.eye(old * old, dtype=torch.float64, device=weight.device).view(-1, 1, old, old)
    resize = F.interpolate(pixels, size=(patch_size, patch_size), mode="bilinear", antialias=True).flatten(1)
    inverse = torch.linalg.pinv(resize)  # (new·new, old·old)
    resampled = weight.double().flatten(-2) @ inverse.T
    return resampled.to(weight.dtype).unflatten(-1, (patch_size, patch_size))


def fit_weights(
    state: Mapping[str, Tensor], source: ModelConfig, target: ModelConfig
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of one architecture made to fit the same one at another size, patch size or frame rate of the stem.

    Args:
        state: tensors under our names; the stem may be an image model's, (width, 3, patch, patch).
        source: what they were made for.
        target: what they shall fit; fields that no tensor here depends on are not compared.

    Returns:
        The tensors, those that nothing changes as they are; and what was changed, a line each.

    Raises:
        ValueError: `source` downsamples in time and `target` does not, which no weights can make up for.
    """
    fitted = dict(state)
    changes: list[str] = []
    if STEM in state:
        fitted[STEM] = _fit_stem(state[STEM], source, target, changes)
    if source.grid != target.grid:
        if POSITIONS in state:
            fitted[POSITIONS] = interpolate_position_embedding(state[POSITIONS], source.grid, target.grid)
            changes.append(_resized("position embedding", source.grid, target.grid))
        tables = [name for name in state if name.endswith(DISTANCES)]
        for name in tables:
            fitted[name] = interpolate_relative_bias(state[name], source.grid, target.grid)
        if tables:
            changes.append(_resized("relative biases", source.grid, target.grid))
    return fitted, changes


def _fit_stem(weight: Tensor, source: ModelConfig, target: ModelConfig, changes: list[str]) -> Tensor:
    if source.temporal_downsample and not target.temporal_downsample:
        raise ValueError("the stem sees three frames and cannot be made to see one: keep temporal_downsample")
    if weight.shape[-1] != target.patch_size:
        changes.append(f"patch embedding resampled from {weight.shape[-1]} to {target.patch_size} pixels (FlexiViT)")
        weight = resample_patches(weight, target.patch_size)
    if weight.ndim == 5 and weight.shape[2] == 1:
        weight = weight.squeeze(2)
    if weight.ndim == 4:
        if target.temporal_downsample:
            changes.append("patch embedding inflated to three frames, of which it sees the middle one")
        weight = inflate_stem(weight, 3 if target.temporal_downsample else 1)
    return weight


def _resized(what: str, old: tuple[int, int], new: tuple[int, int]) -> str:
    return f"{what} interpolated from {old[0]}x{old[1]} to {new[0]}x{new[1]} patches (bicubic)"


def load_image_weights(model: UniFormerV2, state: Mapping[str, Tensor]) -> None:
    """Copy fitted `backbone.*` image weights into a video model; what the image model lacks keeps its start values.

    The model then begins as the image model: every global UniBlock and local aggregator adds zero.
    """
    with torch.no_grad():
        own = model.state_dict()
        for name, tensor in state.items():
            own[name].copy_(tensor)
