"""Attention within a frame, and to a clip."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from uniformerv2.model.config import ModelConfig
from uniformerv2.model.kernels import AttentionCase, AttentionChoices, attend
from uniformerv2.model.positions import TokenLayout, apply_rotary, interpolate_relative_bias


class Attention(nn.Module):
    """Multi-head self-attention over the tokens of one frame."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.scale = (width // config.heads) ** -0.5
        self.choices: AttentionChoices = {}
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
        mixed = attend(query, key, value, scale=self.scale, bias=self._bias(layout), choices=self.choices)
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
        self.choices: AttentionChoices = {}
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
            summed = attend(absorbed, tokens, tokens, scale=scale, choices=self.choices)
        # (batch, heads, queries, width) @ (heads, width, dim) -> (batch, heads, queries, dim)
        values = summed.view(batch, self.heads, queries, width) @ value_weight.transpose(-1, -2) + value_bias
        return self.proj(values.transpose(1, 2).reshape(batch, queries, width)), averaged


def attention_cases(
    config: ModelConfig, num_frames: int, size: tuple[int, int], *, training: bool
) -> set[AttentionCase]:
    """The kinds of attention in a forward pass for which the faster kernel is worth measuring.

    Args:
        config: of the model.
        num_frames: of a clip.
        size: (height, width) of its frames.
        training: whether there is a backward pass.
    """
    patches = (size[0] // config.patch_size) * (size[1] // config.patch_size)
    tokens = int(config.class_token) + patches
    frames = math.ceil(num_frames / 2) if config.temporal_downsample else num_frames
    shapes = [
        (tokens + config.register_tokens, tokens + config.register_tokens, config.width // config.heads),
        (config.heads * config.num_queries, frames * tokens, config.width),
    ]
    if config.pool == "attention":
        shapes.append((config.pool_heads or config.heads, tokens, config.width))
    cases = {AttentionCase.of(*shape, training=training) for shape in shapes}
    return {case for case in cases if case is not None}


def choose_kernels(model: nn.Module, choices: AttentionChoices) -> None:
    """Let the attentions of a model be computed by these kernels; see `attend`."""
    for module in model.modules():
        if isinstance(module, Attention | CrossAttention):
            module.choices = choices
