"""In which precision a model runs, and what the processor has."""

from __future__ import annotations

import platform
import statistics
import time
from typing import Literal

import torch

from uniformerv2.errors import RecipeError

Precision = Literal["fp32", "bf16", "int8"]

GAIN = 0.8  # "auto" takes bf16 where a product takes less than this share of the time in fp32


def pick_precision(wanted: Precision | Literal["auto"], device: torch.device) -> tuple[Precision, str]:
    """The precision to run in, and why, in a line; the line is empty where it was told.

    "auto" is bf16 where the processor multiplies it in hardware and that was measured to be faster, else fp32. It never
    is int8, which needs videos to calibrate on.

    Raises:
        RecipeError: bf16 is wanted on a processor that lacks it.
    """
    if wanted == "bf16" and not has_bf16(device):
        raise RecipeError(f"{_processor(device)} does not multiply bf16 in hardware; take fp32 or auto")
    if wanted != "auto":
        return wanted, ""
    if not has_bf16(device):
        return "fp32", f"precision auto is fp32: {_processor(device)} does not multiply bf16 in hardware"
    share = _product_time(torch.bfloat16, device) / _product_time(torch.float32, device)
    measured = f"a product in bf16 takes {share:.2f} of the time in fp32"
    return ("bf16" if share < GAIN else "fp32"), f"precision auto is {'bf16' if share < GAIN else 'fp32'}: {measured}"


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _processor(device: torch.device) -> str:
    return "this processor" if device.type == "cpu" else f"device {device}"


def _product_time(dtype: torch.dtype, device: torch.device, *, side: int = 1024, repeats: int = 5) -> float:
    """Seconds that a square matrix product takes: the median."""
    factor = torch.ones(side, side, dtype=dtype, device=device)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        (factor @ factor)[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
