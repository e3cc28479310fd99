"""Fewer tokens: models that compute less, approximately the same.

Token merging averages similar patches of a frame (ToMe, arXiv:2210.09461): the image blocks compute the tokens that are
left, and the global stages see a token at every position again.

A patch that did not change since an earlier frame is not computed again: after run-length tokenization
(arXiv:2411.05222), which drops such patches. Here the latest token of the same position represents them, in the
attention of later frames and in the global stages.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniformerv2.errors import RecipeError
from uniformerv2.inference.sharing import sharing_obstacle
from uniformerv2.model.attention import Attention
from uniformerv2.model.config import ModelConfig, Preprocessing
from uniformerv2.model.kernels import attend
from uniformerv2.model.positions import TokenLayout
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.model.vit import ImageTransformer, split_into_patches


def merging_obstacle(config: ModelConfig) -> str:
    """Why patches of a frame cannot be merged, in a few words; empty where they can."""
    if config.rotary is not None or config.relative_bias:
        return "its attention depends on positions, and an average of patches has none"
    return sharing_obstacle(config)


class MergingTransformer(nn.Module):
    """An image transformer that merges patches in each block, between attention and MLP.

    Every second patch is a candidate. Its partner is the most similar of the other patches, by the cosine of the keys'
    means over heads. The candidates with the most similar partners are merged into them. In the
    attention and in further averages a merged token has the weight of all patches that it represents. Class and
    register tokens stay.

    Args:
        transformer: in eval mode; its attention does not depend on positions, see `merging_obstacle`.
        share: of a frame's patches that are merged into others by the last block, from 0 to 1; the same number in each
            block.
    """

    def __init__(self, transformer: ImageTransformer, share: float):
        super().__init__()
        self.transformer, self.share = transformer, share

    def encode(
        self, clip: Tensor, stages: Container[int], add: Callable[[Tensor, TokenLayout], None]
    ) -> tuple[Tensor, TokenLayout]:
        """As `ImageTransformer.encode`; a position has the token that represents it."""
        tokens, layout = self.transformer.embed(clip)
        merged = Merged.none(tokens, layout)
        patches, depth = merged.sizes.shape[1], len(self.transformer.blocks)
        for number, block in enumerate(self.transformer.image_blocks()):
            attention = MergedAttention(block.attention, merged)
            tokens = tokens + block.attention_branch(tokens, attention)
            left = patches - round(self.share * patches * (number + 1) / depth)
            tokens, merged = merged.merge(tokens, attention.keys, left)
            tokens = block.mix_channels(tokens)
            if number in stages:
                add(merged.unmerge(tokens), layout)
        return self.transformer.frame_embeddings(merged.unmerge(tokens), layout), layout


@dataclass(frozen=True)
class Pairs:
    """Which patches are merged, as indices of the candidates (patches 0, 2, ...) and the others (patches 1, 3, ...)."""

    sources: Tensor  # (batch·frames, pairs): candidates that are merged
    targets: Tensor  # (batch·frames, pairs): the others that they are merged into, with repetitions
    unmerged: Tensor  # (batch·frames, candidates - pairs): candidates that stay


@dataclass(frozen=True)
class Merged:
    """Which positions of a frame its n patch tokens represent. There are class tokens + n + registers tokens."""

    class_tokens: int
    sizes: Tensor  # (batch·frames, n), float32: how many positions a token represents
    representatives: Tensor  # (batch·frames, positions): index of the patch token that represents each

    @classmethod
    def none(cls, tokens: Tensor, layout: TokenLayout) -> Merged:
        """Every patch token represents its own position."""
        count = layout.spatial_tokens - layout.class_tokens
        indices = torch.arange(count, device=tokens.device).expand(tokens.shape[0] * tokens.shape[1], count)
        return cls(layout.class_tokens, torch.ones_like(indices, dtype=torch.float32), indices)

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class tokens, patches and registers of tokens whose first axis is batch·frames."""
        count = self.sizes.shape[1]
        first, patches, registers = tokens.split(
            [self.class_tokens, count, tokens.shape[1] - self.class_tokens - count], dim=1
        )
        return first, patches, registers

    def unmerge(self, tokens: Tensor) -> Tensor:
        """A token for every position: (batch, frames, class tokens + positions + registers, width)."""
        first, patches, registers = self.split(tokens.flatten(0, 1))
        return torch.cat([first, _rows(patches, self.representatives), registers], dim=1).unflatten(0, tokens.shape[:2])

    def merge(self, tokens: Tensor, keys: Tensor, left: int) -> tuple[Tensor, Merged]:
        """Merge patches until `left` are left, or half of them.

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
        merged = Merged(self.class_tokens, sizes, _new_indices(pairs, count).gather(1, self.representatives))
        return torch.cat([first, averaged, registers], dim=1).unflatten(0, tokens.shape[:2]), merged


class MergedAttention:
    """The attention of a block to merged tokens (proportional attention).

    Attributes:
        keys: of the last call, averaged over heads: (batch·frames, tokens, width / heads).
    """

    keys: Tensor

    def __init__(self, attention: Attention, merged: Merged):
        self.attention, self.merged = attention, merged

    def __call__(self, qkv: Tensor) -> Tensor:
        """As `Attention.mix`: (batch, frames, tokens, 3·width) -> (batch, frames, tokens, width)."""
        query, key, value = self.attention.split(qkv)
        self.keys = key.mean(1)
        # exp(score + log size): in the softmax a token counts once for each position that it represents
        first = self.merged.class_tokens
        registers = key.shape[2] - first - self.merged.sizes.shape[1]
        bias = F.pad(self.merged.sizes.log(), (first, registers))[:, None, None].to(query.dtype)
        mixed = attend(query, key, value, scale=self.attention.scale, bias=bias, choices=self.attention.choices)
        return self.attention.join(mixed).unflatten(0, qkv.shape[:2])


def most_similar_pairs(keys: Tensor, number: int) -> Pairs:
    """The candidates with the most similar partners: keys (batch·frames, n, channels), no more than n / 2 pairs."""
    directions = F.normalize(keys.float(), dim=-1)
    similarity, partner = (directions[:, ::2] @ directions[:, 1::2].transpose(1, 2)).max(-1)
    sources, unmerged = similarity.argsort(dim=-1, descending=True).tensor_split([number], dim=1)
    return Pairs(sources, partner.gather(1, sources), unmerged)


def _average(patches: Tensor, sizes: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Patches (batch·frames, n, width) and sizes (batch·frames, n) afterwards: unmerged candidates, then the others."""
    candidates, others = patches[:, ::2], patches[:, 1::2]
    candidate_sizes, other_sizes = sizes[:, ::2], sizes[:, 1::2]
    weight = candidate_sizes.gather(1, pairs.sources)
    total = other_sizes.scatter_add(1, pairs.targets, weight)
    summed = others.float() * other_sizes[..., None]
    # rows of all frames together: index_add_ is fast on the first axis
    rows = pairs.targets + torch.arange(len(summed), device=summed.device)[:, None] * summed.shape[1]
    sources = _rows(candidates, pairs.sources).float() * weight[..., None]
    summed.flatten(0, 1).index_add_(0, rows.flatten(), sources.flatten(0, 1))
    averaged = (summed / total[..., None]).to(patches.dtype)
    left = torch.cat([_rows(candidates, pairs.unmerged), averaged], dim=1)
    return left, torch.cat([candidate_sizes.gather(1, pairs.unmerged), total], dim=1)


def _new_indices(pairs: Pairs, count: int) -> Tensor:
    """The index that each of `count` patches has afterwards: (batch·frames, count)."""
    unmerged = pairs.unmerged.shape[1]
    indices = torch.arange(count, device=pairs.targets.device)
    new = pairs.targets.new_empty(len(pairs.targets), count)
    new[:, 1::2] = unmerged + indices[: count // 2]
    new[:, ::2].scatter_(1, pairs.unmerged, indices[:unmerged].expand_as(pairs.unmerged))
    new[:, ::2].scatter_(1, pairs.sources, unmerged + pairs.targets)
    return new


def _rows(patches: Tensor, indices: Tensor) -> Tensor:
    """Patches of each frame by their indices: (frames, n, width), (frames, m) -> (frames, m, width)."""
    return patches[torch.arange(len(patches), device=patches.device)[:, None], indices]


@dataclass(frozen=True)
class ComputedTokens:
    """Which tokens of a clip are computed, and which of them represents each token of (batch, frames, tokens)."""

    positions: Tensor  # (computed,): of the computed tokens among all, (batch, frames, tokens) flattened
    representatives: Tensor  # (batch, frames, tokens): index of the computed token that represents each

    def expand(self, tokens: Tensor) -> Tensor:
        """(computed, width) -> (batch, frames, tokens, width)."""
        return tokens.index_select(0, self.representatives.flatten()).unflatten(0, self.representatives.shape)

    def select(self, tokens: Tensor) -> Tensor:
        """(batch, frames, tokens, width) -> (computed, width)."""
        return tokens.flatten(0, 2).index_select(0, self.positions)


class SkippingTransformer(nn.Module):
    """An image transformer that skips patches which did not change since the last frame in which they were computed.

    Class and register tokens of every frame are computed.

    Args:
        transformer: encodes every frame by itself, see `sharing_obstacle`.
        preprocessing: of the model.
        threshold: mean absolute difference of a patch's pixels, in [0, 1], up to which it counts as unchanged.
    """

    std: Tensor

    def __init__(self, transformer: ImageTransformer, preprocessing: Preprocessing, threshold: float):
        super().__init__()
        self.transformer, self.threshold = transformer, threshold
        self.register_buffer("std", torch.tensor(preprocessing.std), persistent=False)

    def encode(
        self, clip: Tensor, stages: Container[int], add: Callable[[Tensor, TokenLayout], None]
    ) -> tuple[Tensor, TokenLayout]:
        """As `ImageTransformer.encode`; a patch has the token of the frame in which it last changed."""
        tokens, layout = self.transformer.embed(clip)
        computed = computed_tokens(self.changed(clip), layout.class_tokens, tokens.shape[2])
        x = computed.select(tokens)
        for number, block in enumerate(self.transformer.image_blocks()):
            x = x + block.attention_branch(x, partial(_mix, block.attention, computed, layout))
            x = block.mix_channels(x)
            if number in stages:
                add(computed.expand(x), layout)
        return self.transformer.frame_embeddings(computed.expand(x), layout), layout

    def changed(self, clip: Tensor) -> Tensor:
        """Which patches are computed, all of the first frame among them: (batch, frames, patches), bool."""
        # in the units of [0, 1], for both kinds of clips
        unit = torch.full_like(self.std, 1 / 255) if clip.dtype == torch.uint8 else self.std
        pixels = split_into_patches(clip * unit.view(3, 1, 1, 1), self.transformer.config.patch_size)
        # compared with the frame that was computed, not with the frame before: slow changes would never be noticed
        latest, found = pixels[:, 0], [pixels.new_ones(pixels.shape[:1] + pixels.shape[2:3], dtype=torch.bool)]
        for frame in pixels.unbind(1)[1:]:
            found.append((frame - latest).abs().mean(-1) > self.threshold)
            latest = torch.where(found[-1][..., None], frame, latest)
        return torch.stack(found, dim=1)


def computed_tokens(changed: Tensor, class_tokens: int, count: int) -> ComputedTokens:
    """The tokens to compute, of `count` in each frame, given the patches that changed (batch, frames, patches)."""
    batch, frames, patches = changed.shape
    own = changed.new_ones(batch, frames, count)
    own[:, :, class_tokens : class_tokens + patches] = changed
    # the frame in which the token at each position was last computed
    latest = (own * torch.arange(frames, device=own.device).view(frames, 1)).cummax(1).values
    indices = own.flatten().cumsum(0).view(own.shape) - 1
    return ComputedTokens(own.flatten().nonzero()[:, 0], indices.gather(1, latest))


def _mix(attention: Attention, computed: ComputedTokens, layout: TokenLayout, qkv: Tensor) -> Tensor:
    """The attention of computed tokens to all tokens of their frame: (computed, 3·width) -> (computed, width)."""
    return computed.select(attention.mix(computed.expand(qkv), layout))


Method = Literal["merge", "unchanged"]


@dataclass(frozen=True)
class Reduction:
    """How the image blocks compute fewer tokens.

    "merge" averages similar patches of a frame; `amount` is the share of them that is merged into others by the last
    block, between 0 and 1. "unchanged" keeps the tokens of a patch until its pixels change; `amount` is the mean
    absolute difference of the pixels, in [0, 1], up to which it counts as unchanged.

    Raises:
        RecipeError: another method, or an amount that is out of range.
    """

    method: Method
    amount: float

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise RecipeError(f"the tokens can be reduced by {' or '.join(get_args(Method))}, got {self.method!r}")
        inside = 0 < self.amount < 1 if self.method == "merge" else 0 <= self.amount < 1
        if not inside:
            raise RecipeError(f"the amount of {self.method} must be between 0 and 1, got {self.amount:g}")

    @classmethod
    def parse(cls, text: str) -> Reduction:
        """From METHOD:AMOUNT, such as "merge:0.5". Raises RecipeError for anything else."""
        method, _, amount = text.partition(":")
        try:
            number = float(amount)
        except ValueError:
            raise RecipeError(f"a reduction is METHOD:AMOUNT, such as merge:0.5, got {text!r}") from None
        return cls(cast(Method, method), number)  # checked by the constructor

    def __str__(self) -> str:
        return f"{self.method}:{self.amount:g}"


def reduce_tokens(model: UniFormerV2, reduction: Reduction) -> UniFormerV2:
    """A model that computes fewer tokens, with the same weights in memory.

    Raises:
        RecipeError: this architecture does not allow it.
    """
    merging = reduction.method == "merge"
    obstacle = merging_obstacle(model.config) if merging else sharing_obstacle(model.config)
    if obstacle:
        raise RecipeError(f"this model cannot reduce its tokens by {reduction.method}: {obstacle}")
    reduced = copy.copy(model)
    reduced._modules = dict(model._modules)
    if merging:
        backbone: nn.Module = MergingTransformer(model.backbone, reduction.amount)
    else:
        backbone = SkippingTransformer(model.backbone, model.preprocessing, reduction.amount)
    reduced.backbone = backbone  # type: ignore[assignment]  # only its `encode` is called
    return reduced.eval()
