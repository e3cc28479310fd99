"""Linear layers as oneDNN multiplies them fastest on a CPU: weights in its own layout, the activation in the same pass.

In PyTorch 2.13 these are the operators that torch.compile calls; in eager mode `nn.Linear` does not.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uniformerv2.inference.fold import FoldedStem
from uniformerv2.model.attention import Attention
from uniformerv2.model.uniblocks import GlobalUniBlock, LocalAggregator
from uniformerv2.model.vit import MLP


class PackedLinear(nn.Module):
    """An `nn.Linear`, and an activation where it is given: (..., in) -> (..., out)."""

    weight: Tensor  # in oneDNN's layout

    def __init__(self, layer: nn.Linear, activation: nn.Module | None = None):
        super().__init__()
        self.register_buffer("weight", torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach()), persistent=False)
        # the operator reads the bias as if it were contiguous
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().contiguous(), requires_grad=False)
        self.activation = _names(activation)

    def forward(self, x: Tensor) -> Tensor:
        name, algorithm = self.activation
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], algorithm)


def can_pack(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this build of PyTorch has oneDNN and the operators, and the processor packs weights of this type."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(module: nn.Module) -> None:
    """Pack the layers of a folded model, or of a part of it, that see every patch, in place."""
    if isinstance(module, GlobalUniBlock):
        return  # its layers see a token a clip
    if isinstance(module, Attention):
        module.qkv, module.proj = _packed(module.qkv), _packed(module.proj)
    elif isinstance(module, LocalAggregator):
        module.reduce, module.expand = _packed(module.reduce), _packed(module.expand)
    elif isinstance(module, MLP):
        _pack_mlp(module)
    elif isinstance(module, FoldedStem):
        module.raw, module.normalised = (
            nn.ModuleList(_packed(tap) for tap in taps) for taps in (module.raw, module.normalised)
        )
    for child in module.children():
        pack(child)


def _pack_mlp(mlp: MLP) -> None:
    fuses = not mlp.gated and _names(mlp.activation) != PLAIN
    mlp.fc1 = _packed(mlp.fc1, mlp.activation if fuses else None)
    mlp.fc2 = _packed(mlp.fc2)
    if fuses:
        mlp.activation = nn.Identity()


PLAIN = ("none", "")


def _names(activation: nn.Module | None) -> tuple[str, str]:
    """What oneDNN calls an activation, and its algorithm; PLAIN for one that it does not know."""
    if isinstance(activation, nn.SiLU):
        return "swish", ""
    if isinstance(activation, nn.GELU):
        return "gelu", activation.approximate
    return PLAIN


def _packed(layer: nn.Module, activation: nn.Module | None = None) -> nn.Linear:
    if isinstance(layer, PackedLinear):
        return layer  # type: ignore[return-value]
    assert isinstance(layer, nn.Linear)
    return PackedLinear(layer, activation)  # type: ignore[return-value]  # what else a Linear has, nobody asks for
