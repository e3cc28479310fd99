"""What a CPU computes fastest: blocks in chunks that fit into its cache, linear layers in the layout of oneDNN.

32 frames of B/16 at once took 7 % longer than in four chunks, in bfloat16 12 %: activations left the cache between two
layers. The packed linear layers, with the activation fused, are the operators that torch.compile calls (PyTorch 2.13);
`nn.Linear` in eager mode does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from uniformerv2.inference.fold import FoldedStem
from uniformerv2.model.attention import Attention
from uniformerv2.model.positions import TokenLayout
from uniformerv2.model.uniblocks import GlobalUniBlock, LocalAggregator, LocalUniBlock
from uniformerv2.model.vit import MLP, Block

CHUNK_BYTES = 20 * 2**20  # of the widest activation: that of 8 frames of B/16 in float32


class ChunkedBlock(Block):
    """A block that computes a few frames, then a few tokens, at a time."""

    widening: float  # channels of the widest activation, in widths of a token

    def mix_space(self, x: Tensor, layout: TokenLayout) -> Tensor:
        frames = [Block.mix_space(self, chunk[None], layout) for chunk in self._chunks(x.flatten(0, 1))]
        return torch.cat(frames, dim=1).view_as(x)

    def mix_channels(self, x: Tensor) -> Tensor:
        return torch.cat([Block.mix_channels(self, chunk) for chunk in self._chunks(x.flatten(0, -2))]).view_as(x)

    def _chunks(self, x: Tensor) -> Sequence[Tensor]:
        return x.chunk(max(1, math.ceil(x.nbytes * self.widening / CHUNK_BYTES)))


class ChunkedLocalUniBlock(ChunkedBlock, LocalUniBlock):
    """The same for a block that also mixes frames, which it does for all of them together."""


def compute_in_chunks(part: nn.Module) -> None:
    """Turn a block of a folded model into one that computes in chunks, in place, before its layers are packed."""
    if isinstance(part, Block) and not isinstance(part, ChunkedBlock):
        widening = part.mlp.fc1.out_features / part.mlp.fc1.in_features
        part.__class__ = ChunkedLocalUniBlock if isinstance(part, LocalUniBlock) else ChunkedBlock
        cast(ChunkedBlock, part).widening = widening


class PackedLinear(nn.Module):
    """An `nn.Linear`, with or without an activation: (..., in) -> (..., out)."""

    weight: Tensor  # in oneDNN's layout

    def __init__(self, layer: nn.Linear, activation: nn.Module | None = None):
        super().__init__()
        self.register_buffer("weight", torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach()), persistent=False)
        # the operator reads the bias as if it were contiguous
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().contiguous(), requires_grad=False)
        self.activation = _fused(activation)

    def forward(self, x: Tensor) -> Tensor:
        name, algorithm = self.activation or ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], algorithm)


def can_pack(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this build of PyTorch has oneDNN and the operators, and the processor packs weights of this type."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(module: nn.Module) -> None:
    """Pack the layers of a folded model, or of a part of it, that compute every patch, in place."""
    if isinstance(module, GlobalUniBlock):
        return  # its layers compute a few tokens of each clip
    if isinstance(module, Attention):
        module.qkv, module.proj = _packed(module.qkv), _packed(module.proj)
    elif isinstance(module, LocalAggregator):
        module.reduce, module.expand = _packed(module.reduce), _packed(module.expand)
    elif isinstance(module, MLP):
        fuses = not module.gated and _fused(module.activation) is not None
        module.fc1 = _packed(module.fc1, module.activation if fuses else None)
        module.fc2 = _packed(module.fc2)
        if fuses:
            module.activation = nn.Identity()
    elif isinstance(module, FoldedStem):
        module.raw, module.normalised = (
            nn.ModuleList(_packed(tap) for tap in taps) for taps in (module.raw, module.normalised)
        )
    for child in module.children():
        pack(child)


def _fused(activation: nn.Module | None) -> tuple[str, str] | None:
    """oneDNN's name of an activation, and of its algorithm; None where it has none."""
    if isinstance(activation, nn.SiLU):
        return "swish", ""
    if isinstance(activation, nn.GELU):
        return "gelu", activation.approximate
    return None


def _packed(layer: nn.Module, activation: nn.Module | None = None) -> nn.Linear:
    if isinstance(layer, PackedLinear):
        return layer  # type: ignore[return-value]
    assert isinstance(layer, nn.Linear)
    return PackedLinear(layer, activation)  # type: ignore[return-value]  # it is only called
