"""Models as their users hold them: wrapped by torch, in training, in another precision."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn

from uniformerv2.model.uniformerv2 import UniFormerV2

INNER = ("module", "_orig_mod")  # of DataParallel, DistributedDataParallel and AveragedModel; of torch.compile


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that wrappers of torch hold, one in the other; any other module as it is."""
    while [name for name, _ in module.named_children()] in [[name] for name in INNER]:
        [module] = module.children()
    return module


def plain_model(model: nn.Module) -> UniFormerV2:
    """The model itself, wrapped or not. Raises TypeError for a module of another kind."""
    plain = unwrapped(model)
    if not isinstance(plain, UniFormerV2):
        raise TypeError(f"expected a UniFormerV2, got {type(plain).__name__}; arm() makes one of an image transformer")
    return plain


def inference_copy(model: UniFormerV2) -> UniFormerV2:
    """The model in eval mode and float32; it shares the memory of weights that are float32 already."""
    shared: dict[int, Tensor] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        kept = tensor
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kept = tensor.detach().float()
            if isinstance(tensor, nn.Parameter):
                kept = nn.Parameter(kept, requires_grad=tensor.requires_grad)
        shared[id(tensor)] = kept
    return copy.deepcopy(model, shared).eval()
