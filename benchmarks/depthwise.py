"""Which way of computing the two depth-wise convolutions is the fastest.

    python benchmarks/depthwise.py [bfloat16]

The temporal convolution of the local UniBlock, on tokens (batch, frames, patches, channels):
  shifts    one multiply-add for each tap on shifted frames
  conv3d    a Conv3d on a channels_last_3d view
  conv2d    a Conv2d over (frames, patches) on a channels_last view: what LocalAggregator does

The 3 x 3 x 3 dynamic position encoding of the global UniBlock, on (batch, frames, rows, columns, width):
  conv3d    one Conv3d on a channels_last_3d view: what DynamicPositionEncoding does for inference
  planes    one Conv2d for each of the three frames: what it does in training on a CPU
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from timing import alternate, machine
from torch import Tensor

from uniformerv2.model.uniblocks import DynamicPositionEncoding


def shifts(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out = torch.addcmul(bias, x, weight[:, 1])
    out[:, 1:].addcmul_(x[:, :-1], weight[:, 0])
    out[:, :-1].addcmul_(x[:, 1:], weight[:, 2])
    return out


def conv3d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    volume = x.unsqueeze(3).permute(0, 4, 1, 2, 3)
    out = F.conv3d(volume, weight[:, None, :, None, None], bias, padding=(1, 0, 0), groups=len(bias))
    return out.permute(0, 2, 3, 4, 1).flatten(3)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    plane = x.permute(0, 3, 1, 2)
    return F.conv2d(plane, weight[:, None, :, None], bias, padding=(1, 0), groups=len(bias)).permute(0, 2, 3, 1)


def temporal(batch: int, frames: int, patches: int, channels: int, dtype: torch.dtype) -> None:
    x = torch.randn(batch, frames, patches, channels, dtype=dtype, requires_grad=True)
    weight = torch.randn(channels, 3, dtype=dtype, requires_grad=True)
    bias = torch.randn(channels, dtype=dtype, requires_grad=True)
    ways = {"shifts": shifts, "conv3d": conv3d, "conv2d": conv2d}
    report(f"temporal {tuple(x.shape)}", {name: (lambda way=way: way(x, weight, bias)) for name, way in ways.items()})


def position_encoding(batch: int, frames: int, side: int, width: int, dtype: torch.dtype) -> None:
    module = DynamicPositionEncoding(width).to(dtype)
    x = torch.randn(batch, frames, side, side, width, dtype=dtype, requires_grad=True)
    one = super(DynamicPositionEncoding, module).forward
    ways = {
        "conv3d": lambda: one(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1),
        "planes": lambda: module(x),
    }
    report(f"position encoding {tuple(x.shape)}", ways)


def report(title: str, ways: dict) -> None:  # type: ignore[type-arg]
    outputs = [way() for way in ways.values()]
    gradient = torch.randn_like(outputs[0])
    tolerance = 1e-4 if gradient.dtype == torch.float32 else 0.5
    assert all(torch.allclose(out.float(), outputs[0].float(), atol=tolerance) for out in outputs)

    def forward(way):  # type: ignore[no-untyped-def]
        with torch.no_grad():
            way()

    only = alternate({name: (lambda way=way: forward(way)) for name, way in ways.items()})
    both = alternate({name: (lambda way=way: way().backward(gradient)) for name, way in ways.items()})
    print(title)
    for name in ways:
        print(f"  {name:8} forward {only[name]:8.2f} ms   forward and backward {both[name]:8.2f} ms")


if __name__ == "__main__":
    dtype = torch.bfloat16 if "bfloat16" in sys.argv[1:] else torch.float32
    print(f"{machine()}, {dtype}, median of 7, alternating")
    for shape in [(1, 8, 196, 512), (4, 8, 196, 512), (10, 4, 81, 128), (32, 8, 16, 64)]:
        temporal(*shape, dtype)
    for shape in [(1, 8, 14, 768), (4, 8, 14, 768), (10, 4, 9, 192), (32, 8, 4, 96)]:
        position_encoding(*shape, dtype)
