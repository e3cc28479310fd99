"""The precision of inference, and what the processor supports."""

from __future__ import annotations

import platform
from typing import Literal

import torch

from uniformerv2.device import bf16_gain
from uniformerv2.errors import RecipeError

InferencePrecision = Literal["fp32", "bf16", "int8"]

MIN_GAIN = 1.25  # "auto" takes bf16 where products are this many times as fast


def pick_inference_precision(
    wanted: InferencePrecision | Literal["auto"], device: torch.device
) -> tuple[InferencePrecision, str]:
    """The precision to run in, and why "auto" is that, in a line; empty for any other precision.

    "auto" is bf16 where the processor multiplies it in hardware and measurably faster, else fp32; never int8, which
    needs calibration.

    Raises:
        RecipeError: bf16 is wanted on a processor that lacks it.
    """
    if wanted == "bf16" and not has_bf16(device):
        raise RecipeError(f"{_processor(device)} does not multiply bf16 in hardware; take fp32 or auto")
    if wanted != "auto":
        return wanted, ""
    if not has_bf16(device):
        return "fp32", f"precision auto is fp32: {_processor(device)} does not multiply bf16 in hardware"
    gain = bf16_gain(device)
    chosen: InferencePrecision = "bf16" if gain > MIN_GAIN else "fp32"
    return chosen, f"precision auto is {chosen}: a product in bf16 is {gain:.2f} times as fast as in fp32"


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _processor(device: torch.device) -> str:
    return "this processor" if device.type == "cpu" else f"device {device}"
