"""Exact rewrites of a model for inference: the same function by fewer operations.

| folded | into |
|---|---|
| BatchNorm of the local aggregators | the linear layer after it |
| mean, standard deviation and channel order | the stem's weights for uint8 clips |
| the scale of the attention | the rows of the queries in the qkv layer |
| layer scales | the layer before them |
| the constants of QuickGELU | the linear layers around it |
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from uniformerv2.model.attention import Attention
from uniformerv2.model.uniblocks import LocalAggregator
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.model.vit import (
    MLP,
    Block,
    ImageTransformer,
    PatchEmbedding,
    embed_patches,
    split_into_patches,
)

Rewrite = Callable[[nn.Module], object]


@torch.no_grad()
def fold(model: UniFormerV2, *rewrites: Rewrite) -> UniFormerV2:
    """The same function for inference, faster.

    Args:
        model: left as it is.
        rewrites: further changes of the folded model, such as `pack`. Each is called, in this order, on one block after
            the other and at last on the whole model, and must leave alone what it has rewritten before.

    Returns:
        A model in evaluation mode that takes the same clips. It shares the memory of the weights that no rewrite
        changes, cannot be trained, and its tensors are no longer those that a checkpoint holds.
    """
    shared: dict[int, Tensor] = {id(parameter): _frozen(parameter) for parameter in model.parameters()}
    shared |= {id(buffer): buffer for buffer in model.buffers()}
    folded = copy.deepcopy(model, shared).eval()
    # block by block: the intermediate weights between two rewrites are those of a block at a time
    for part in (*folded.backbone.blocks, *folded.global_blocks, folded):
        for rewrite in (_fold, *rewrites):
            rewrite(part)
    return folded


def _fold(part: nn.Module) -> None:
    for module in list(part.modules()):
        if isinstance(module, LocalAggregator) and module.norm is not None:
            module.reduce = linear(*module.folded_norm(module.norm))
            module.norm = None
        elif isinstance(module, Attention):
            _fold_scale(module)
        elif isinstance(module, MLP):
            _fold_quick_gelu(module)
        elif isinstance(module, Block):
            _fold_layer_scales(module)
        elif isinstance(module, ImageTransformer):
            module.patch_embedding = FoldedStem(module.patch_embedding)  # type: ignore[assignment]


class FoldedStem(nn.Module):
    """The stem, with its weights for uint8 clips computed once."""

    def __init__(self, stem: PatchEmbedding):
        super().__init__()
        self.patch_size = stem.patch_size
        self.raw = nn.ModuleList(linear(*tap) for tap in stem.taps(raw=True))
        self.normalised = nn.ModuleList(linear(*tap) for tap in stem.taps(raw=False))

    def forward(self, clip: Tensor) -> Tensor:
        """(batch, 3, frames, height, width) -> (batch, frames after the stem, patches, width)."""
        taps = cast("list[nn.Linear]", list(self.raw if clip.dtype == torch.uint8 else self.normalised))
        return embed_patches(split_into_patches(clip, self.patch_size).to(taps[0].weight.dtype), taps)


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer of given weights, (out, in) and (out,)."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = _frozen(weight)
    if bias is not None:
        layer.bias = _frozen(bias.contiguous())
    return layer.eval()


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)


def _fold_scale(attention: Attention) -> None:
    """The rotation of queries is linear, so the scale may come before it."""
    if attention.scale == 1:
        return
    scale = attention.qkv.weight.new_ones(attention.qkv.out_features)
    scale[: attention.qkv.in_features] = attention.scale
    attention.qkv = _scaled(attention.qkv, scale)
    attention.scale = 1.0


def _fold_quick_gelu(mlp: MLP) -> None:
    """x sigmoid(1.702 x) = silu(1.702 x) / 1.702."""
    if mlp.factor != 1:
        mlp.fc1 = linear(mlp.fc1.weight * mlp.factor, mlp.fc1.bias * mlp.factor)
        mlp.fc2 = linear(mlp.fc2.weight / mlp.factor, mlp.fc2.bias)
        mlp.factor = 1.0


def _fold_layer_scales(block: Block) -> None:
    if block.scale1 is None or block.scale2 is None:
        return
    if block.norm_after:
        _scale_norm(block.norm1, block.scale1)
        _scale_norm(block.norm2, block.scale2)
    else:
        block.attention.proj = _scaled(block.attention.proj, block.scale1)
        block.mlp.fc2 = _scaled(block.mlp.fc2, block.scale2)
    block.scale1 = block.scale2 = None


def _scaled(layer: nn.Linear, scale: Tensor) -> nn.Linear:
    return linear(layer.weight * scale[:, None], layer.bias * scale)


def _scale_norm(norm: nn.LayerNorm, scale: Tensor) -> None:
    norm.weight, norm.bias = _frozen(norm.weight * scale), _frozen(norm.bias * scale)
