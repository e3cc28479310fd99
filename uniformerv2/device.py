"""Which device computes."""

from __future__ import annotations

import torch
from torch import nn

from uniformerv2.errors import RecipeError


def pick_device(name: str) -> torch.device:
    """The named device; "auto" is the GPU where there is one. Raises RecipeError for a device that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()  # a device without kernels, such as "meta", fails here
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise RecipeError(f"device {name!r} cannot be used here: {reason}") from error
    return device


def model_device(model: nn.Module) -> torch.device:
    """The device that a model's parameters are on."""
    return next(model.parameters()).device
