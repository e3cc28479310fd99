"""Attention within a frame and to a clip, its kernels, and activations that training computes twice to keep fewer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uniformerv2.model.config import ModelConfig
from uniformerv2.model.positions import TokenLayout, apply_rotary, interpolate_relative_bias


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), of which only the inputs are kept; the backward pass computes it again.

    A checkpoint stops before its last operation, as only the inputs of that are needed. Where it is a product, as in
    most uses here, only the cheap operations before it are computed twice.
    """
    return checkpoint(function, *inputs, use_reentrant=False) if torch.is_grad_enabled() else function(*inputs)


def attend(query: Tensor, key: Tensor, value: Tensor, *, scale: float, bias: Tensor | None = None) -> Tensor:
    """Softmax attention by the fastest kernel for device, dtype and length.

    Args:
        query: (batch, heads, queries, dim).
        key, value: (batch, heads, tokens, dim).
        scale: factor on the dot products.
        bias: added to the scaled dot products; broadcast to (batch, heads, queries, tokens).

    Returns:
        (batch, heads, queries, dim).
    """
    if _plain_is_faster(query, key):
        inputs = (query, key, value) if bias is None else (query, key, value, bias)
        return recomputed(partial(_plain_attention, scale=scale), *inputs)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, *, scale: float) -> Tensor:
    scaled = query if scale == 1 else query * scale
    scores = scaled @ key.transpose(-1, -2)
    return (scores if bias is None else scores + bias).softmax(-1) @ value


def _plain_is_faster(query: Tensor, key: Tensor) -> bool:
    """Fused attention in bfloat16 on a CPU takes 1.5 to 2 times as long as plain products, its backward 2 to 4 times.

    Measured up to 1024 tokens (benchmarks/attention.py); beyond, the attention weights take too much memory.
    """
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[-2] <= 1024


class Attention(nn.Module):
    """Multi-head self-attention over the tokens of one frame."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.scale = (width // config.heads) ** -0.5
        self.grid = config.grid
        self.rotary = config.rotary
        self.qkv = nn.Linear(width, 3 * width)
        rows, columns = self.grid
        table = torch.zeros((2 * rows - 1) * (2 * columns - 1) + 3, self.heads) if config.relative_bias else None
        self.relative_bias = nn.Parameter(table) if table is not None else None
        self.norm = nn.LayerNorm(width, eps=config.norm_eps) if config.attention_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """(batch, frames, tokens, width) -> the same shape."""
        return self.output(self.mix(self.qkv(x), layout))

    def mix(self, qkv: Tensor, layout: TokenLayout) -> Tensor:
        """Attention from queries, keys and values: (batch, frames, tokens, 3·width) -> (..., width)."""
        query, key, value = self.split(qkv)
        if self.rotary is not None:
            query, key = (apply_rotary(x, layout, halves=self.rotary.halves) for x in (query, key))
        mixed = attend(query, key, value, scale=self.scale, bias=self._bias(layout))
        return self.join(mixed).unflatten(0, qkv.shape[:2])

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, frames, tokens, 3·width) -> three of (batch·frames, heads, tokens, width / heads), as views."""
        heads = qkv.flatten(0, 1).unflatten(-1, (3, self.heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    @staticmethod
    def join(mixed: Tensor) -> Tensor:
        """(batch·frames, heads, tokens, width / heads) -> (batch·frames, tokens, width)."""
        return mixed.transpose(1, 2).flatten(2)

    def output(self, mixed: Tensor) -> Tensor:
        """The output projection, (..., width) -> the same shape."""
        return self.proj(self.norm(mixed))

    def _bias(self, layout: TokenLayout) -> Tensor | None:
        """(heads, tokens, tokens), or None without a relative bias."""
        if self.relative_bias is None:
            return None
        assert layout.relative_index is not None
        table = interpolate_relative_bias(self.relative_bias, self.grid, layout.grid)
        return table[layout.relative_index].permute(2, 0, 1)


class CrossAttention(nn.Module):
    """Attention of a few queries to all tokens of a clip; keys and values are never computed.

    (q Wq)(x Wk)' = ((q Wq) Wk') x': the key projection moves to the query side, and the value projection behind the
    weighted sum. For Q queries this takes 2·Q·heads multiply-adds per token channel instead of 2·(width + Q), which is
    less while Q is below width / heads. The bias of the keys adds the same number to all scores of a query, which
    changes no softmax.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def cross(self, query: Tensor, context: Tensor, *, weights: bool) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            query: (batch, queries, width), normalised.
            context: (batch, tokens, width), normalised.
            weights: also return the attention weights.

        Returns:
            (batch, queries, width), and (batch, tokens) weights averaged over heads and queries or None.
        """
        batch, queries, width = query.shape
        dim = width // self.heads
        # (3·width, width) -> three of (heads, dim, width)
        query_weight, key_weight, value_weight = self.qkv.weight.view(3, self.heads, dim, width).unbind(0)
        query_bias, _, value_bias = self.qkv.bias.view(3, self.heads, 1, dim).unbind(0)
        # (batch, 1, queries, width) @ (heads, width, dim) -> (batch, heads, queries, dim)
        projected = query[:, None] @ query_weight.transpose(-1, -2) + query_bias
        # -> (batch, 1, heads·queries, width): the query of each head, in the space of the tokens
        absorbed = (projected @ key_weight).view(batch, 1, self.heads * queries, width)
        tokens = context[:, None]
        scale = dim**-0.5
        averaged = None
        if weights:
            scores = (absorbed * scale @ tokens.transpose(-1, -2)).softmax(-1)
            averaged = scores.mean((1, 2))
            summed = scores @ tokens
        else:
            summed = attend(absorbed, tokens, tokens, scale=scale)
        # (batch, heads, queries, width) @ (heads, width, dim) -> (batch, heads, queries, dim)
        values = summed.view(batch, self.heads, queries, width) @ value_weight.transpose(-1, -2) + value_bias
        return self.proj(values.transpose(1, 2).reshape(batch, queries, width)), averaged
