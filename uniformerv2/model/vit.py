"""The image transformer, applied to every frame of a clip by itself.

Tokens are (batch, frames, 1 + patches, width) throughout, class token first, contiguous.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uniformerv2.model.config import ModelConfig, Preprocessing


def attend(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
    """Softmax attention, the only place of the package that computes it without its weights.

    Args:
        query: (batch, heads, queries, dim).
        key, value: (batch, heads, tokens, dim).
        scale: factor on the dot products.

    Returns:
        (batch, heads, queries, dim).
    """
    if _has_slow_backward(query, key):
        return (query * scale @ key.transpose(-1, -2)).softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


def _has_slow_backward(query: Tensor, key: Tensor) -> bool:
    """Fused attention in bfloat16 on a CPU: its backward takes 2 to 4 times as long as plain products'.

    Seen up to 1024 tokens (benchmarks/attention.py); beyond, the memory for the weights counts for more.
    """
    trains = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    return trains and query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[-2] <= 1024


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        # the same function through silu, whose backward keeps one tensor instead of three
        return F.silu(x * 1.702) * (1 / 1.702)


def activation(name: str) -> nn.Module:
    return QuickGELU() if name == "quick_gelu" else nn.GELU()


class DropPath(nn.Module):
    """Drops a residual branch of whole clips (stochastic depth, arXiv:1603.09382)."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        keep = 1 - self.probability
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep)


class PatchEmbedding(nn.Module):
    """The stem: patches of each frame, or of three frames at every second one, to tokens.

    The same numbers as a strided Conv3d, computed as linear layers so that tokens come out directly.
    uint8 clips are RGB in [0, 255]; the mean and standard deviation of the preprocessing are folded into
    the weights. Float clips are taken as normalised, in the channel order of the preprocessing.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, preprocessing: Preprocessing):
        super().__init__()
        self.patch_size = config.patch_size
        self.temporal_kernel = 3 if config.temporal_downsample else 1
        self.channel_order = preprocessing.channel_order
        self.weight = nn.Parameter(
            torch.empty(config.width, 3, self.temporal_kernel, config.patch_size, config.patch_size)
        )
        self.bias = nn.Parameter(torch.empty(config.width)) if config.patch_bias else None
        # explicit device: they are no part of the weights, so a model built on "meta" must have them too
        self.register_buffer("mean", torch.tensor(preprocessing.mean, device="cpu"), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std, device="cpu"), persistent=False)

    def forward(self, clip: Tensor) -> Tensor:
        """(batch, 3, frames, height, width) -> (batch, frames after the stem, patches, width)."""
        raw = clip.dtype == torch.uint8
        weight, shift = self._folded_normalisation() if raw else (self.weight, None)
        # (batch, frames, patches, 3·patch·patch)
        patches = self._patches(clip).to(weight.dtype)
        # one matrix per frame that the kernel sees: (taps, width, 3·patch·patch)
        taps = weight.permute(2, 0, 1, 3, 4).flatten(2)
        if self.temporal_kernel == 1:
            tokens = F.linear(patches, taps[0], None if shift is None else shift[0])
        else:
            tokens = self._downsampled(patches, taps, shift)
        return tokens if self.bias is None else tokens + self.bias

    def _patches(self, clip: Tensor) -> Tensor:
        batch, channels, frames, height, width = clip.shape
        size = self.patch_size
        # (batch, channels, frames, rows, size, columns, size) -> (batch, frames, rows, columns, channels, size, size)
        grid = clip.view(batch, channels, frames, height // size, size, width // size, size)
        return grid.permute(0, 2, 3, 5, 1, 4, 6).reshape(batch, frames, -1, channels * size * size)

    def _downsampled(self, patches: Tensor, taps: Tensor, shift: Tensor | None) -> Tensor:
        """Kernel 3, stride 2, padding 1 in time: output t sees the frames 2t-1, 2t and 2t+1 that exist.

        Taps outside the clip are left out instead of padded, which is the padding with zeros after
        normalisation for uint8 clips too.
        """
        before, centre, after = (None, None, None) if shift is None else shift.unbind()
        even, odd = patches[:, 0::2], patches[:, 1::2]
        tokens = F.linear(even, taps[1], centre)
        if odd.shape[1]:
            tokens[:, : odd.shape[1]] += F.linear(odd, taps[2], after)
            tokens[:, 1:] += F.linear(odd[:, : even.shape[1] - 1], taps[0], before)
        return tokens

    def _folded_normalisation(self) -> tuple[Tensor, Tensor]:
        """Weights for values in [0, 255] and RGB order, and what the mean takes away: (taps, width)."""
        std, mean = self.std.view(3, 1, 1, 1), self.mean.view(3, 1, 1, 1)
        shift = -(self.weight * (mean / std)).sum((1, 3, 4)).T
        weight = self.weight / (255 * std)
        if self.channel_order == "bgr":
            weight = weight.flip(1)
        return weight.to(self.weight.dtype), shift.to(self.weight.dtype)


class Attention(nn.Module):
    """Multi-head self-attention over the tokens of one frame."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, frames, tokens, width = x.shape
        # (batch, frames, tokens, 3·width) -> three of (batch·frames, heads, tokens, width / heads), as views
        qkv = self.qkv(x).view(batch * frames, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(query, key, value, scale=(width // self.heads) ** -0.5)
        # (batch·frames, heads, tokens, width / heads) -> (batch, frames, tokens, width)
        return self.proj(mixed.transpose(1, 2).reshape(batch, frames, tokens, width))


class MLP(nn.Module):
    def __init__(self, width: int, ratio: float, activation_name: str, dropout: float = 0.0):
        super().__init__()
        hidden = round(width * ratio)
        self.fc1 = nn.Linear(width, hidden)
        self.activation = activation(activation_name)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dropout(self.activation(self.fc1(x))))


class Block(nn.Module):
    """One block of the image transformer: spatial attention and MLP, each a residual behind its norm."""

    def __init__(self, config: ModelConfig, *, drop_path: float = 0.0, recompute: bool = False):
        super().__init__()
        self.recompute = recompute
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config.width, config.mlp_ratio, config.activation)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mix_channels(self.mix_space(tokens))

    def mix_space(self, tokens: Tensor) -> Tensor:
        return tokens + self.drop_path(self._run(self._attention, tokens))

    def mix_channels(self, tokens: Tensor) -> Tensor:
        return tokens + self.drop_path(self._run(self._mlp, tokens))

    def _attention(self, tokens: Tensor) -> Tensor:
        return self.attention(self.norm1(tokens))

    def _mlp(self, tokens: Tensor) -> Tensor:
        return self.mlp(self.norm2(tokens))

    def _run(self, branch, tokens: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(branch, tokens, use_reentrant=False)
        return branch(tokens)


def interpolate_positions(positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Position embedding for another grid, bicubically; the class token's is untouched.

    Args:
        positions: (1 + old patches, width), class token first.
        old_grid, new_grid: patches per column and per row.

    Returns:
        (1 + new patches, width).
    """
    if old_grid == new_grid:
        return positions
    # (patches, width) -> (1, width, rows, columns)
    grid = positions[1:].unflatten(0, old_grid).permute(2, 0, 1)[None]
    grid = F.interpolate(grid.float(), size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], grid[0].permute(1, 2, 0).flatten(0, 1).to(positions.dtype)])


class ImageTransformer(nn.Module):
    """A vision transformer for images. The video model owns one, and may put other blocks in place of `blocks`."""

    def __init__(self, config: ModelConfig, preprocessing: Preprocessing, blocks: list[Block]):
        super().__init__()
        self.grid = config.grid
        self.patch_embedding = PatchEmbedding(config, preprocessing)
        self.class_token = nn.Parameter(torch.empty(config.width))
        self.position_embedding = nn.Parameter(torch.empty(1 + self.grid[0] * self.grid[1], config.width))
        self.pre_norm = nn.LayerNorm(config.width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(blocks)
        self.post_norm = nn.LayerNorm(config.width, eps=config.norm_eps) if config.post_norm else nn.Identity()
        self._initialise()

    def _initialise(self) -> None:
        scale = self.class_token.shape[0] ** -0.5
        nn.init.trunc_normal_(self.class_token, std=scale)
        nn.init.trunc_normal_(self.position_embedding, std=scale)
        nn.init.trunc_normal_(self.patch_embedding.weight, std=0.02)
        if self.patch_embedding.bias is not None:
            nn.init.zeros_(self.patch_embedding.bias)
        for block in self.blocks:
            assert isinstance(block, Block)
            for linear in (block.attention.qkv, block.attention.proj, block.mlp.fc1, block.mlp.fc2):
                nn.init.trunc_normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)

    def embed(self, clip: Tensor) -> Tensor:
        """(batch, 3, frames, height, width) -> tokens that enter the first block."""
        patches = self.patch_embedding(clip)
        batch, frames, _, width = patches.shape
        grid = clip.shape[-2] // self.patch_embedding.patch_size, clip.shape[-1] // self.patch_embedding.patch_size
        class_tokens = self.class_token.to(patches.dtype).expand(batch, frames, 1, width)
        positions = interpolate_positions(self.position_embedding, self.grid, grid)
        return self.pre_norm(torch.cat([class_tokens, patches], dim=2) + positions)
