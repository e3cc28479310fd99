"""Fused attention against plain products, for the sequence lengths of this package, forward and backward.

    python benchmarks/attention.py

`spatial` is one frame's self-attention, (batch·frames, heads, tokens, dim); `global` the absorbed query of a global
stage, (batch, 1, heads, width) on (batch, 1, frames·tokens, width). `model.attention.attend` follows this.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timing import alternate, machine
from torch import Tensor


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).softmax(-1) @ value


def compare(title: str, query: Tensor, context: Tensor) -> None:
    query, context = query.requires_grad_(), context.requires_grad_()
    ways = {"fused": F.scaled_dot_product_attention, "plain": plain}
    gradient = torch.randn_like(query)

    def forward(way) -> None:  # type: ignore[no-untyped-def]
        with torch.no_grad():
            way(query, context, context)

    only = alternate({name: (lambda way=way: forward(way)) for name, way in ways.items()})
    both = alternate(
        {name: (lambda way=way: way(query, context, context).backward(gradient)) for name, way in ways.items()}
    )
    for name in ways:
        print(f"  {title:28} {name} forward {only[name]:8.2f} ms   forward and backward {both[name]:8.2f} ms")


if __name__ == "__main__":
    print(f"{machine()}, median of 7, alternating")
    for dtype in (torch.float32, torch.bfloat16):
        print(dtype)
        for batch, heads, tokens, dim in [(256, 4, 17, 24), (40, 3, 82, 64), (16, 12, 197, 64), (8, 16, 577, 64)]:
            shape = (batch, heads, tokens, dim)
            compare(f"spatial {shape}", torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype))
        for batch, heads, tokens, width in [(32, 4, 136, 96), (10, 3, 328, 192), (4, 12, 1576, 768)]:
            query = torch.randn(batch, 1, heads, width, dtype=dtype)
            compare(f"global {(batch, heads, tokens, width)}", query, torch.randn(batch, 1, tokens, width, dtype=dtype))
