"""In which precision a model is trained, and whether it is compiled."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from uniformerv2.device import bf16_gain
from uniformerv2.errors import RecipeError
from uniformerv2.model.kernels import can_compile
from uniformerv2.train.recipe import TrainingPrecision

BF16_MIN_WIDTH = 192  # of a model on a CPU: below, the casts cost more than the faster products save
BF16_MARGIN = 1.3  # by which a product has to be faster: the casts take some of it


def pick_training_precision(wanted: TrainingPrecision, device: torch.device, *, width: int) -> TrainingPrecision:
    """What "auto" means: "bf16" on a device that multiplies faster in bfloat16, if the model is wide enough to gain.

    Args:
        wanted: "auto", or what is returned unchanged.
        device: where the model is trained.
        width: channels of a token.

    Raises:
        RecipeError: "fp16" or "tf32" where there is no GPU that computes with them.
    """
    if wanted in ("fp16", "tf32") and device.type != "cuda":
        raise RecipeError(f"precision {wanted} needs a GPU of NVIDIA's, got device {device}; take fp32, bf16 or auto")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    gains = device.type == "cpu" and width >= BF16_MIN_WIDTH and bf16_gain(device) > BF16_MARGIN
    return "bf16" if gains else "fp32"


def pick_compile(wanted: Literal["auto"] | bool, device: torch.device) -> bool:
    """What "auto" means: compiled on a GPU where torch.compile works. On a CPU it costs a minute and gains little."""
    return wanted if wanted != "auto" else device.type == "cuda" and can_compile(device)


def autocast(precision: TrainingPrecision, device: torch.device) -> AbstractContextManager[object]:
    """The context of a training forward pass: autocast to the narrow type, or nothing for "fp32" and "tf32"."""
    narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return nullcontext() if narrow is None else torch.autocast(device.type, narrow)


def loss_scaler(precision: TrainingPrecision, device: torch.device) -> torch.amp.GradScaler:
    """What keeps the gradients of "fp16" from vanishing; does nothing for the others."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def allow_tf32(precision: TrainingPrecision) -> None:
    """Whether GPUs may round the factors of float32 products to 10 bits: for "tf32", and nothing else."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
