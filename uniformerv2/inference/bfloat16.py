"""Weights in bfloat16; norms, softmax and the classifier stay in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uniformerv2.model.uniformerv2 import Head


class InFloat32(nn.Module):
    """A module of float32 weights on bfloat16 tensors.

    Args:
        cast_back: whether the output is bfloat16 again.
    """

    def __init__(self, module: nn.Module, *, cast_back: bool):
        super().__init__()
        self.module, self.cast_back = module, cast_back

    def forward(self, x: Tensor) -> Tensor:
        out = self.module(x.float())
        return out.to(x.dtype) if self.cast_back else out


def to_bfloat16(module: nn.Module) -> None:
    """Cast the weights of a folded model, or of a part of it, in place.

    Clips and logits keep their types. Every kernel of PyTorch computes the softmax of an attention in float32, from
    scores in bfloat16.
    """
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(parameter.to(torch.bfloat16), requires_grad=False))
    for name, child in list(module.named_children()):
        if isinstance(child, Head):
            setattr(module, name, InFloat32(child, cast_back=False))
        elif isinstance(child, nn.LayerNorm):
            # on a CPU the norm takes bfloat16 tokens and float32 weights, in one pass
            if child.weight.device.type != "cpu":
                setattr(module, name, InFloat32(child, cast_back=True))
        elif not isinstance(child, InFloat32):
            to_bfloat16(child)
