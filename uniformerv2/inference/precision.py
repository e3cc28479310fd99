"""The precision of inference: what the processor supports, and weights in bfloat16."""

from __future__ import annotations

import platform
from typing import Literal

import torch
from torch import Tensor, nn

from uniformerv2.device import bf16_gain
from uniformerv2.errors import RecipeError
from uniformerv2.model.uniformerv2 import Head

InferencePrecision = Literal["fp32", "bf16", "fp8", "int8"]

MIN_GAIN = 1.25  # "auto" takes bf16 where products are this many times as fast


def pick_inference_precision(
    wanted: InferencePrecision | Literal["auto"], device: torch.device
) -> tuple[InferencePrecision, str]:
    """The precision to run in, and why "auto" is that, in a line; empty for any other precision.

    "auto" is bf16 where the processor multiplies it in hardware and measurably faster, else fp32; never fp8 or int8,
    which change more.

    Raises:
        RecipeError: bf16 or fp8 is wanted on a processor that lacks it.
    """
    if wanted == "bf16" and not has_bf16(device):
        raise RecipeError(f"{_processor(device)} does not multiply bf16 in hardware; take fp32 or auto")
    if wanted == "fp8" and not has_fp8(device):
        raise RecipeError(f"{_processor(device)} does not multiply fp8 in hardware; take bf16, fp32 or auto")
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


def has_fp8(device: torch.device) -> bool:
    """Whether a device multiplies float8_e4m3fn in hardware: NVIDIA's from Ada and Hopper on (capability 8.9)."""
    return device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) >= (8, 9)


def _processor(device: torch.device) -> str:
    return "this processor" if device.type == "cpu" else f"device {device}"


class InFloat32(nn.Module):
    """A module of float32 weights on bfloat16 tensors.

    Args:
        cast_back: whether the output is bfloat16 again.
    """

    def __init__(self, module: nn.Module, *, cast_back: bool):
        super().__init__()
        self.module, self.cast_back = module, cast_back

    def forward(self, x: Tensor) -> Tensor:
        out = self.module(x.float())
        return out.to(x.dtype) if self.cast_back else out


def to_bfloat16(module: nn.Module) -> None:
    """Cast the weights of a folded model, or of a part of it, in place.

    Clips and logits keep their types. Every kernel of PyTorch computes the softmax of an attention in float32, from
    scores in bfloat16.
    """
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(parameter.to(torch.bfloat16), requires_grad=False))
    for name, child in list(module.named_children()):
        if isinstance(child, Head):
            setattr(module, name, InFloat32(child, cast_back=False))
        elif isinstance(child, nn.LayerNorm):
            # on a CPU the norm takes bfloat16 tokens and float32 weights, in one pass
            if child.weight.device.type != "cpu":
                setattr(module, name, InFloat32(child, cast_back=True))
        elif not isinstance(child, InFloat32):
            to_bfloat16(child)
