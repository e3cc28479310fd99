"""In which precision a model is trained."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from uniformerv2.errors import RecipeError
from uniformerv2.train.recipe import Precision

BF16_MIN_WIDTH = 192  # of a model on a CPU: below, the casts cost more than the faster products save
BF16_MARGIN = 1.3  # by which a product has to be faster: the casts take some of it


def pick_precision(wanted: Precision, device: torch.device, *, width: int) -> Precision:
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
    gains = device.type == "cpu" and width >= BF16_MIN_WIDTH and _cpu_multiplies_bf16()
    return "bf16" if gains else "fp32"


@cache
def _cpu_multiplies_bf16() -> bool:
    """Whether a product takes so much less time in bfloat16 here that a training step gains too.

    Measured once, in some 50 ms, because no instruction set tells: with AVX512-bf16, PyTorch 2.13 multiplied 2.1 times
    as fast as in float32 on an AMD EPYC, and half as fast on an Intel Xeon without AMX.
    """
    factors = {dtype: torch.ones(768, 768, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    times: dict[torch.dtype, list[float]] = {dtype: [] for dtype in factors}
    for _ in range(5):
        for dtype, factor in factors.items():
            start = time.perf_counter()
            factor @ factor
            times[dtype].append(time.perf_counter() - start)
    return min(times[torch.float32]) > BF16_MARGIN * min(times[torch.bfloat16])


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context of a training forward pass: autocast to the narrow type, or nothing for "fp32" and "tf32"."""
    narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return nullcontext() if narrow is None else torch.autocast(device.type, narrow)


def loss_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """What keeps the gradients of "fp16" from vanishing; does nothing for the others."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def allow_tf32(precision: Precision) -> None:
    """Whether GPUs may round the factors of float32 products to 10 bits: for "tf32", and nothing else."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
