"""A patch that did not change since an earlier frame is not computed again.

After run-length tokenization (arXiv:2411.05222), which drops such patches. Here the latest token of the same position
represents them, in the attention of later frames and in the global stages.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from uniformerv2.model.attention import Attention
from uniformerv2.model.config import Preprocessing
from uniformerv2.model.positions import TokenLayout
from uniformerv2.model.vit import ImageTransformer, split_into_patches


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
