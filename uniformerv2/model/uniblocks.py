"""Local and global UniBlocks, which make a video model of an image transformer.

Paper: arXiv:2211.09552, sections 3.2 (local) and 3.3 (global).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniformerv2.model.attention import CrossAttention
from uniformerv2.model.config import ModelConfig
from uniformerv2.model.kernels import depthwise_in_space_time, recomputed
from uniformerv2.model.positions import TokenLayout
from uniformerv2.model.temporal_mixing import TEMPORAL_MIXING
from uniformerv2.model.vit import MLP, Block, DropPath


class LocalAggregator(nn.Module):
    """Local temporal relation aggregator: mixes patches at the same position of neighbouring frames.

    BatchNorm, a linear layer down, a depth-wise convolution in time or what `local_mixing` has in its place, a linear
    layer up.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        channels = int(config.width / config.local_reduction)
        self.norm: nn.BatchNorm1d | None = nn.BatchNorm1d(config.width)  # None once it is folded into `reduce`
        self.reduce = nn.Linear(config.width, channels)
        self.temporal = TEMPORAL_MIXING[config.local_mixing](channels, config.local_kernel)
        self.expand = nn.Linear(channels, config.width)
        # zero at start: the video model begins as the image model
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """(batch, frames, patches, width) -> the residual to add, of the same shape."""
        return recomputed(self._mix_and_expand, self._normalise_and_reduce(patches))

    def _mix_and_expand(self, reduced: Tensor) -> Tensor:
        return self.expand(self.temporal(reduced))

    def _normalise_and_reduce(self, patches: Tensor) -> Tensor:
        if self.norm is None:
            return self.reduce(patches)
        if self.training:
            return self.reduce(self.norm(patches.flatten(0, 2)).unflatten(0, patches.shape[:3]))
        return F.linear(patches, *self.folded_norm(self.norm))

    def folded_norm(self, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
        """Weight and bias of norm and `reduce` together: with fixed statistics they are a linear layer."""
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        return self.reduce.weight * scale, self.reduce.bias + self.reduce.weight @ shift


class LocalUniBlock(Block):
    """An image block with temporal aggregation before its attention and, if asked, before its MLP (equation 2)."""

    def __init__(self, config: ModelConfig, *, drop_path: float = 0.0, recompute: bool = False):
        super().__init__(config, drop_path=drop_path, recompute=recompute)
        self.local1 = LocalAggregator(config)
        self.local2 = LocalAggregator(config) if config.local_blocks == "attention+mlp" else None

    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        # outside of what is recomputed in the backward pass, where BatchNorm would count the batch a second time
        tokens = self.mix_space(self.mix_time(self.local1, tokens, layout), layout)
        if self.local2 is not None:
            tokens = self.mix_time(self.local2, tokens, layout)
        return self.mix_channels(tokens)

    def mix_time(self, aggregator: LocalAggregator, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """Add the aggregator's residual to the patches; class and register tokens stay as they are."""
        first, patches, registers = layout.split(tokens)
        return torch.cat([first, patches + self.drop_path(aggregator(patches)), registers], dim=2)


class DynamicPositionEncoding(nn.Conv3d):
    """Depth-wise 3 x 3 x 3 convolution over (frames, rows, columns) of the patch tokens, as a residual."""

    def __init__(self, width: int):
        super().__init__(width, width, kernel_size=3, padding=1, groups=width)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """(batch, frames, rows, columns, width) -> the same shape."""
        assert self.bias is not None
        return depthwise_in_space_time(patches, self.weight, self.bias)


class GlobalUniBlock(nn.Module):
    """Cross-attention of a few queries to all tokens of a clip, then an MLP (equations 5 to 8)."""

    def __init__(self, config: ModelConfig, *, drop_path: float = 0.0):
        super().__init__()
        width = config.width
        self.position_encoding = DynamicPositionEncoding(width)
        self.query_norm = nn.LayerNorm(width)
        self.context_norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, config.heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, config.global_mlp_ratio, config.activation, dropout=config.global_dropout)
        self.drop_path = DropPath(drop_path)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.xavier_uniform_(self.attention.qkv.weight)
        nn.init.zeros_(self.attention.qkv.bias)
        nn.init.xavier_uniform_(self.mlp.fc1.weight)
        # zero at start: the video model begins as the image model
        for linear in (self.attention.proj, self.mlp.fc2):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        query: Tensor,
        tokens: Tensor,
        layout: TokenLayout,
        *,
        extra: Tensor | None = None,
        weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Update the queries.

        Args:
            query: (batch, queries, width).
            tokens: (batch, frames, tokens, width).
            layout: of the tokens; register tokens are left out of the context.
            extra: (batch, n, width), further context after the tokens (hierarchical KV fusion).
            weights: also return the attention weights.

        Returns:
            (batch, queries, width), and (batch, frames·(class tokens + patches) + n) weights or None.
        """
        context = recomputed(lambda tokens: self._context(tokens, layout), tokens)
        if extra is not None:
            context = torch.cat([context, self.context_norm(extra)], dim=1)
        update, averaged = self.attention.cross(self.query_norm(query), context, weights=weights)
        query = query + self.drop_path(update)
        return query + self.drop_path(self.mlp(self.mlp_norm(query))), averaged

    def _context(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """Class tokens and patches with positions, normalised: (batch, frames·(class tokens + patches), width)."""
        first, patches, _ = layout.split(tokens)
        # (batch, frames, patches, width) -> (batch, frames, rows, columns, width) and back
        encoding = self.position_encoding(patches.unflatten(2, layout.grid)).flatten(2, 3)
        return self.context_norm(torch.cat([first, patches + encoding], dim=2)).flatten(1, 2)
