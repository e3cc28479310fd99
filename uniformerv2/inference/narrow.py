"""Weights in bfloat16; norms, softmax and the classifier stay in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uniformerv2.model.uniformerv2 import Head


class InFloat32(nn.Module):
    """Computes a module of float32 weights on a narrower tensor."""

    def __init__(self, module: nn.Module, *, narrow_again: bool):
        super().__init__()
        self.module, self.narrow_again = module, narrow_again

    def forward(self, x: Tensor) -> Tensor:
        out = self.module(x.float())
        return out.to(x.dtype) if self.narrow_again else out


def narrow(module: nn.Module, *, dtype: torch.dtype) -> None:
    """Turn the weights of a folded model, or of a part of it, into `dtype`, in place.

    Clips and logits stay as they are. The softmax of an attention is computed in float32 from scores of `dtype` in
    every kernel of PyTorch.
    """
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(parameter.to(dtype), requires_grad=False))
    for name, child in list(module.named_children()):
        if isinstance(child, Head):
            setattr(module, name, InFloat32(child, narrow_again=False))
        elif isinstance(child, nn.LayerNorm):
            # on a CPU the norm itself takes narrow tokens with float32 weights, in one pass
            if child.weight.device.type != "cpu":
                setattr(module, name, InFloat32(child, narrow_again=True))
        elif not isinstance(child, InFloat32):
            narrow(child, dtype=dtype)
