"""Linear layers as products of 8-bit floats (e4m3), whose factors have a scale for each row. Not run on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uniformerv2.model.attention import Attention
from uniformerv2.model.uniblocks import GlobalUniBlock, LocalAggregator
from uniformerv2.model.vit import MLP

LARGEST = 448.0  # e4m3: three bits of mantissa, normal from 2^-6 to 448, subnormal in steps of 2^-9
MULTIPLE = 16  # of both sizes of a layer
LAYERS = {Attention: ("qkv", "proj"), LocalAggregator: ("reduce", "expand"), MLP: ("fc1", "fc2")}


class Float8Linear(nn.Module):
    """An `nn.Linear` whose weight and input are rounded to e4m3: (..., in) -> (..., out), of the dtype of the input.

    Every row of the weight, and every token, is multiplied so that its largest value is 448; the products are summed in
    float32 and divided again. A value is off by at most 2^-4 of itself, or 2^-10 / 448 of the largest in its row.
    """

    weight: Tensor  # float8_e4m3fn (out, in)
    scale: Tensor  # float32 (out, 1)

    def __init__(self, layer: nn.Linear):
        super().__init__()
        weight, scale = quantised(layer.weight.detach())
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantised(x.flatten(0, -2))
        product = scaled_product if x.device.type == "cuda" else plain_product
        return product(rows, scale, self.weight, self.scale, self.bias, x.dtype).unflatten(0, x.shape[:-1])


def quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (n, channels) in float8_e4m3fn, and the float32 scales (n, 1) that they are to be multiplied with."""
    wide = rows.float()
    scale = (wide.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return (wide / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def scaled_product(
    rows: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """rows @ weight' + bias by the tensor cores: (n, in), (n, 1), (out, in), (out, 1), (out,) -> (n, out)."""
    # sums that stay in the tensor core, at twice the speed; the error of the factors is far larger
    fast = rows.device.type == "cuda"
    return torch._scaled_mm(
        rows, weight.t(), scale_a=scale, scale_b=weight_scale.t(), bias=bias, out_dtype=dtype, use_fast_accum=fast
    )


def plain_product(
    rows: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The same by a product in float32."""
    out = (rows.float() * scale) @ (weight.float() * weight_scale).t()
    return (out if bias is None else out + bias).to(dtype)


def to_float8(module: nn.Module) -> None:
    """Replace the layers of a folded model, or of a part of it, that compute every patch, in place.

    The stem, the global stages and the head, a few hundredths of the work, stay as they are, and so do layers whose
    sizes are no multiples of 16.
    """
    if isinstance(module, GlobalUniBlock):
        return
    for name in LAYERS.get(type(module), ()):
        layer = getattr(module, name)
        if isinstance(layer, nn.Linear) and not (layer.in_features % MULTIPLE or layer.out_features % MULTIPLE):
            setattr(module, name, Float8Linear(layer))
    for child in module.children():
        to_float8(child)
