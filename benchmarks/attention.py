"""Fused attention against plain products, for the sequence lengths of this package, forward and backward.

    python benchmarks/attention.py

`spatial` is one frame's self-attention, (batch·frames, heads, tokens, dim); `global` the absorbed query of a global
stage, (batch, 1, heads, width) on (batch, 1, frames·tokens, width). In bfloat16 a CPU takes what
`uniformerv2/attention_choice.py` measures; that choice is printed, too.
"""

from __future__ import annotations

import torch
from timing import alternate, machine
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from uniformerv2.attention_choice import measure
from uniformerv2.model.kernels import AttentionCase, plain_attention


def compare(title: str, query: Tensor, context: Tensor) -> None:
    query, context = query.requires_grad_(), context.requires_grad_()
    scale = query.shape[-1] ** -0.5
    ways = {
        "fused": lambda: scaled_dot_product_attention(query, context, context, scale=scale),
        "plain": lambda: plain_attention(query, context, context, scale=scale),
    }
    gradient = torch.randn_like(query)
    with torch.no_grad():
        only = alternate(ways)
    both = alternate({name: (lambda way=way: way().backward(gradient)) for name, way in ways.items()})
    for name in ways:
        print(f"  {title:28} {name} forward {only[name]:8.2f} ms   forward and backward {both[name]:8.2f} ms")
    if query.dtype == torch.bfloat16:
        cases = [
            AttentionCase.of(query.shape[-2], context.shape[-2], query.shape[-1], training=training)
            for training in (False, True)
        ]
        chosen = [measure(case) if case else "plain, not measured" for case in cases]
        print(f"  {title:28} chosen: {chosen[0]}, with a backward pass {chosen[1]}")


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
