"""Which way of computing the two depth-wise convolutions is the fastest here (`uniformerv2/model/kernels.py`).

    python benchmarks/depthwise.py [bfloat16]

On the GPU where there is one, else on the CPU. The temporal convolution of the local UniBlock, on tokens (batch,
frames, patches, channels):
  conv2d    a Conv2d over (frames, patches) on a channels_last view: what is done on a CPU
  conv3d    a Conv3d on a channels_last_3d view
  shifts    the sum of shifted products, compiled: what is done on a GPU

The 3 x 3 x 3 dynamic position encoding of the global UniBlock, on (batch, frames, rows, columns, width):
  conv3d    one Conv3d on a channels_last_3d view: what is done for inference on a CPU
  planes    one Conv2d for each of the three frames: what is done in training on a CPU
  shifts    as above; compiling its 27 taps takes a minute on a CPU
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import alternate, machine
from torch import Tensor

from uniformerv2.device import pick_device
from uniformerv2.model.kernels import convolution_by, depthwise_by_frames, depthwise_in_time, shifted_products

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with convolution_by("convolution"):
        return depthwise_in_time(x.squeeze(3), weight[..., 0, 0], bias).unsqueeze(3)


def conv3d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    padding = tuple(count // 2 for count in weight.shape[2:])
    return F.conv3d(x.permute(0, 4, 1, 2, 3), weight, bias, padding=padding, groups=len(bias)).permute(0, 2, 3, 4, 1)


TEMPORAL: dict[str, Way] = {"conv2d": conv2d, "conv3d": conv3d, "shifts": shifted_products}
POSITION_ENCODING: dict[str, Way] = {"conv3d": conv3d, "planes": depthwise_by_frames, "shifts": shifted_products}


def report(title: str, ways: dict[str, Way], shape: tuple[int, ...], taps: tuple[int, ...], dtype: torch.dtype) -> None:
    """Time the ways on (batch, frames, rows, columns, channels), forward alone, and forward and backward."""
    device = pick_device("auto")
    x, weight, bias = (
        torch.randn(size, dtype=dtype, device=device, requires_grad=True)
        for size in (shape, (shape[-1], 1, *taps), shape[-1:])
    )
    gradient = torch.randn_like(x)
    expected = conv3d(x.float(), weight.float(), bias.float())
    for way in ways.values():
        torch.testing.assert_close(way(x, weight, bias).float(), expected, atol=0.2, rtol=0.05)

    def forward(way: Way) -> None:
        with torch.no_grad():
            way(x, weight, bias)
        wait()

    def both(way: Way) -> None:
        way(x, weight, bias).backward(gradient)
        wait()

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    only, with_gradients = (
        alternate({name: (lambda run=run, way=way: run(way)) for name, way in ways.items()}) for run in (forward, both)
    )
    print(f"{title} {shape}")
    for name in ways:
        print(f"  {name:8} forward {only[name]:8.2f} ms   forward and backward {with_gradients[name]:8.2f} ms")


if __name__ == "__main__":
    dtype = torch.bfloat16 if "bfloat16" in sys.argv[1:] else torch.float32
    print(f"{machine()}, {pick_device('auto')}, {dtype}, median of 7, alternating")
    for batch, frames, patches, channels in [(1, 8, 196, 512), (4, 8, 196, 512), (10, 4, 81, 128), (32, 8, 16, 64)]:
        report("temporal", TEMPORAL, (batch, frames, patches, 1, channels), (3, 1, 1), dtype)
    for shape in [(1, 8, 14, 14, 768), (4, 8, 14, 14, 768), (10, 4, 9, 9, 192), (32, 8, 4, 4, 96)]:
        report("position encoding", POSITION_ENCODING, shape, (3, 3, 3), dtype)
