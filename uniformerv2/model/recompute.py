"""Memory saving in training: activations that are cheaper to compute twice than to keep for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), of which only the inputs are kept; the backward pass computes it again.

    A checkpoint stops before its last operation, as only the inputs of that are needed. Where it is a product, as in
    most uses here, only the cheap operations before it are computed twice.
    """
    return checkpoint(function, *inputs, use_reentrant=False) if torch.is_grad_enabled() else function(*inputs)
