"""Activations that are cheaper to compute twice than to keep for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), which keeps its inputs alone for the backward pass and is computed again there.

    For what is cheap beside the memory that it would take. A checkpoint stops at the inputs of the last operation:
    where that is a product, as in most uses here, only what comes before is done twice.
    """
    return checkpoint(function, *inputs, use_reentrant=False) if torch.is_grad_enabled() else function(*inputs)
