"""Weights in bfloat16; norms, softmax and the classifier stay in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uniformerv2.model.uniformerv2 import UniFormerV2


class InFloat32(nn.Module):
    """Computes a module of float32 weights on a narrower tensor."""

    def __init__(self, module: nn.Module, *, narrow_again: bool):
        super().__init__()
        self.module, self.narrow_again = module, narrow_again

    def forward(self, x: Tensor) -> Tensor:
        out = self.module(x.float())
        return out.to(x.dtype) if self.narrow_again else out


def narrow(model: UniFormerV2, dtype: torch.dtype) -> UniFormerV2:
    """Turn the weights of a folded model into `dtype`, in place; its clips and logits stay as they are.

    The softmax of an attention is computed in float32 from scores of `dtype` in every kernel of PyTorch.
    """
    head = model.head
    del model.head
    for parent in list(model.modules()):
        for name, parameter in list(parent.named_parameters(recurse=False)):
            if not isinstance(parent, nn.LayerNorm):
                setattr(parent, name, nn.Parameter(parameter.to(dtype), requires_grad=False))
        for name, child in list(parent.named_children()):
            # on a CPU the norm itself takes narrow tokens with float32 weights, in one pass
            if isinstance(child, nn.LayerNorm) and child.weight.device.type != "cpu":
                setattr(parent, name, InFloat32(child, narrow_again=True))
    model.head = InFloat32(head, narrow_again=False)  # type: ignore[assignment]
    return model
