"""Fewer tokens inside each frame: patches that look alike are averaged (ToMe, arXiv:2210.09461).

The image blocks work on what is left. What the global stages see has a token at every place again, so that nothing else
of a model knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniformerv2.inference.sharing import sharing_obstacle
from uniformerv2.model.attention import Attention, attend
from uniformerv2.model.config import ModelConfig
from uniformerv2.model.positions import TokenLayout
from uniformerv2.model.vit import ImageTransformer


def merging_obstacle(config: ModelConfig) -> str:
    """Why patches of a frame cannot be averaged, in a few words; empty where they can."""
    if config.rotary is not None or config.relative_bias:
        return "its attention depends on positions, and an average of patches has none"
    return sharing_obstacle(config)


class MergingTransformer(nn.Module):
    """An image transformer that averages some of a frame's patches in each block, between attention and MLP.

    Every second patch is a candidate: it may join the one among the others whose key is likest to its own, by the
    cosine of the mean over heads. Those with the likest partners do. A patch counts in the attention and in further
    averages as often as it stands for a place. Class and register tokens stay.

    Args:
        transformer: in eval mode; its attention does not depend on positions, see `merging_obstacle`.
        share: of a frame's patches, how many are gone behind the last block, from 0 to 1; each block takes as many.
    """

    def __init__(self, transformer: ImageTransformer, share: float):
        super().__init__()
        self.transformer, self.share = transformer, share

    def encode(
        self, clip: Tensor, stages: Container[int], add: Callable[[Tensor, TokenLayout], None]
    ) -> tuple[Tensor, TokenLayout]:
        """As `ImageTransformer.encode`; a place has the token of the patch that stands for it."""
        tokens, layout = self.transformer.embed(clip)
        merged = Merged.nothing(tokens, layout)
        patches, depth = merged.sizes.shape[1], len(self.transformer.blocks)
        for number, block in enumerate(self.transformer.image_blocks()):
            attention = MergedAttention(block.attention, merged)
            tokens = tokens + block.attention_branch(tokens, attention)
            left = patches - round(self.share * patches * (number + 1) / depth)
            tokens, merged = merged.further(tokens, attention.keys, left)
            tokens = block.mix_channels(tokens)
            if number in stages:
                add(merged.everywhere(tokens), layout)
        return self.transformer.frame_embeddings(merged.everywhere(tokens), layout), layout


@dataclass(frozen=True)
class Pairs:
    """Who joins whom, in numbers of the candidates (patches 0, 2, ...) and of the others (patches 1, 3, ...)."""

    joining: Tensor  # (batch·frames, pairs), candidates
    staying: Tensor  # (batch·frames, candidates - pairs), candidates
    goal: Tensor  # (batch·frames, pairs): whom each of `joining` joins; several may join one


@dataclass(frozen=True)
class Merged:
    """Which of a frame's n patches stands for which places. It has class tokens + n + registers tokens."""

    class_tokens: int
    sizes: Tensor  # (batch·frames, n), float32: positions that a token represents
    standing: Tensor  # (batch·frames, positions): index of the token that represents a position

    @classmethod
    def nothing(cls, tokens: Tensor, layout: TokenLayout) -> Merged:
        """Every patch stands for its own place."""
        count = layout.spatial_tokens - layout.class_tokens
        numbers = torch.arange(count, device=tokens.device).expand(tokens.shape[0] * tokens.shape[1], count)
        return cls(layout.class_tokens, torch.ones_like(numbers, dtype=torch.float32), numbers)

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class tokens, patches and registers of tokens whose first axis is batch·frames."""
        count = self.sizes.shape[1]
        first, patches, registers = tokens.split(
            [self.class_tokens, count, tokens.shape[1] - self.class_tokens - count], dim=1
        )
        return first, patches, registers

    def everywhere(self, tokens: Tensor) -> Tensor:
        """A token at every position: (batch, frames, class tokens + positions + registers, width)."""
        first, patches, registers = self.split(tokens.flatten(0, 1))
        return torch.cat([first, _rows(patches, self.standing), registers], dim=1).unflatten(0, tokens.shape[:2])

    def further(self, tokens: Tensor, keys: Tensor, left: int) -> tuple[Tensor, Merged]:
        """Average patches until `left` are left, or half of them.

        Args:
            tokens: (batch, frames, class tokens + n + registers, width).
            keys: (batch·frames, class tokens + n + registers, channels), by which patches are compared.
        """
        count = self.sizes.shape[1]
        number = min(count - left, count // 2)
        if number <= 0:
            return tokens, self
        first, patches, registers = self.split(tokens.flatten(0, 1))
        pairs = most_similar_pairs(self.split(keys)[1], number)
        averaged, sizes = _average(patches, self.sizes, pairs)
        now = Merged(self.class_tokens, sizes, _new_numbers(pairs, count).gather(1, self.standing))
        return torch.cat([first, averaged, registers], dim=1).unflatten(0, tokens.shape[:2]), now


class MergedAttention:
    """The attention of a block among tokens that represent several positions.

    Attributes:
        keys: what it compared with last, averaged over heads: (batch·frames, tokens, width / heads).
    """

    keys: Tensor

    def __init__(self, attention: Attention, merged: Merged):
        self.attention, self.merged = attention, merged

    def __call__(self, qkv: Tensor) -> Tensor:
        """(batch, frames, tokens, 3·width) -> (batch, frames, tokens, width)."""
        query, key, value = self.attention.split(qkv)
        self.keys = key.mean(1)
        # exp(score + log size): a token weighs as much in the softmax as all the positions that it represents
        first = self.merged.class_tokens
        registers = key.shape[2] - first - self.merged.sizes.shape[1]
        bias = F.pad(self.merged.sizes.log(), (first, registers))[:, None, None].to(query.dtype)
        mixed = attend(query, key, value, scale=self.attention.scale, bias=bias)
        return self.attention.join(mixed).unflatten(0, qkv.shape[:2])


def most_similar_pairs(keys: Tensor, number: int) -> Pairs:
    """The candidates that have the likest partners: keys (batch·frames, n, channels), no more than n / 2 pairs."""
    directions = F.normalize(keys.float(), dim=-1)
    likeness, partner = (directions[:, ::2] @ directions[:, 1::2].transpose(1, 2)).max(-1)
    joining, staying = likeness.argsort(dim=-1, descending=True).tensor_split([number], dim=1)
    return Pairs(joining, staying, partner.gather(1, joining))


def _average(patches: Tensor, sizes: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Patches (batch·frames, n, width) and sizes (batch·frames, n) afterwards: those that stay, then the others."""
    candidates, others = patches[:, ::2], patches[:, 1::2]
    candidate_sizes, other_sizes = sizes[:, ::2], sizes[:, 1::2]
    weight = candidate_sizes.gather(1, pairs.joining)
    total = other_sizes.scatter_add(1, pairs.goal, weight)
    summed = others.float() * other_sizes[..., None]
    # numbers of rows in all frames together, which is how index_add_ is fast
    rows = pairs.goal + torch.arange(len(summed), device=summed.device)[:, None] * summed.shape[1]
    joining = _rows(candidates, pairs.joining).float() * weight[..., None]
    summed.flatten(0, 1).index_add_(0, rows.flatten(), joining.flatten(0, 1))
    averaged = (summed / total[..., None]).to(patches.dtype)
    left = torch.cat([_rows(candidates, pairs.staying), averaged], dim=1)
    return left, torch.cat([candidate_sizes.gather(1, pairs.staying), total], dim=1)


def _new_numbers(pairs: Pairs, count: int) -> Tensor:
    """The number that each of `count` patches has afterwards: (batch·frames, count)."""
    staying = pairs.staying.shape[1]
    numbers = torch.arange(count, device=pairs.goal.device)
    new = pairs.goal.new_empty(len(pairs.goal), count)
    new[:, 1::2] = staying + numbers[: count // 2]
    new[:, ::2].scatter_(1, pairs.staying, numbers[:staying].expand_as(pairs.staying))
    new[:, ::2].scatter_(1, pairs.joining, staying + pairs.goal)
    return new


def _rows(patches: Tensor, numbers: Tensor) -> Tensor:
    """Patches of each frame by their numbers: (frames, n, width), (frames, m) -> (frames, m, width)."""
    return patches[torch.arange(len(patches), device=patches.device)[:, None], numbers]
