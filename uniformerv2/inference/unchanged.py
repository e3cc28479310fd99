"""Fewer tokens through time: a patch that did not change is not computed again.

After run-length tokenization (arXiv:2411.05222), which drops such patches. Here the token that was computed last at a
place stands for them: in the attention of later frames, which lose nothing of their picture, and in what the global
stages see, so that nothing else of a model knows of it.
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
class Kept:
    """The tokens of a clip that are computed. Positions count the tokens of (batch, frames, tokens)."""

    positions: Tensor  # (rows,): where each stands first
    rows: Tensor  # (batch, frames, tokens): which one stands at a position

    def everywhere(self, tokens: Tensor) -> Tensor:
        """(rows, width) -> (batch, frames, tokens, width)."""
        return tokens.index_select(0, self.rows.flatten()).unflatten(0, self.rows.shape)

    def computed(self, tokens: Tensor) -> Tensor:
        """(batch, frames, tokens, width) -> (rows, width)."""
        return tokens.flatten(0, 2).index_select(0, self.positions)


class UnchangedTransformer(nn.Module):
    """An image transformer that skips patches which did not change since the last frame that they were computed in.

    Class and register tokens of every frame are computed.

    Args:
        transformer: sees every frame by itself, see `sharing_obstacle`.
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
        """As `ImageTransformer.encode`; a place has the tokens of the frame in which it last changed."""
        tokens, layout = self.transformer.embed(clip)
        kept = kept_tokens(self.changed(clip), layout.class_tokens, tokens.shape[2])
        rows = kept.computed(tokens)
        for number, block in enumerate(self.transformer.image_blocks()):
            rows = rows + block.attention_branch(rows, partial(_mix, block.attention, kept, layout))
            rows = block.mix_channels(rows)
            if number in stages:
                add(kept.everywhere(rows), layout)
        return self.transformer.frame_embeddings(kept.everywhere(rows), layout), layout

    def changed(self, clip: Tensor) -> Tensor:
        """Which patches are to be computed, all of the first frame among them: (batch, frames, patches), bool."""
        # in the units of [0, 1], for both kinds of clips
        unit = torch.full_like(self.std, 1 / 255) if clip.dtype == torch.uint8 else self.std
        pixels = split_into_patches(clip * unit.view(3, 1, 1, 1), self.transformer.config.patch_size)
        # compared with what was computed, not with the frame before: slow changes would never be seen
        latest, found = pixels[:, 0], [pixels.new_ones(pixels.shape[:1] + pixels.shape[2:3], dtype=torch.bool)]
        for frame in pixels.unbind(1)[1:]:
            found.append((frame - latest).abs().mean(-1) > self.threshold)
            latest = torch.where(found[-1][..., None], frame, latest)
        return torch.stack(found, dim=1)


def kept_tokens(changed: Tensor, class_tokens: int, count: int) -> Kept:
    """What is computed where `changed` (batch, frames, patches) says which patches of `count` tokens a frame are."""
    batch, frames, patches = changed.shape
    own = changed.new_ones(batch, frames, count)
    own[:, :, class_tokens : class_tokens + patches] = changed
    # the frame in which the token at each position was last computed
    latest = (own * torch.arange(frames, device=own.device).view(frames, 1)).cummax(1).values
    numbers = own.flatten().cumsum(0).view(own.shape) - 1
    return Kept(own.flatten().nonzero()[:, 0], numbers.gather(1, latest))


def _mix(attention: Attention, kept: Kept, layout: TokenLayout, qkv: Tensor) -> Tensor:
    """The attention of the tokens that are computed to all of their frame, (rows, 3·width) -> (rows, width)."""
    return kept.computed(attention.mix(kept.everywhere(qkv), layout))
