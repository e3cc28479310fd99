"""The image transformer, applied to every frame of a clip by itself.

One class for all families: what a family adds is a field of `ModelConfig`. Tokens are (batch, frames, tokens, width),
contiguous, in the order of `TokenLayout`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uniformerv2.model.attention import Attention, CrossAttention
from uniformerv2.model.config import ModelConfig, Preprocessing
from uniformerv2.model.kernels import recomputed
from uniformerv2.model.positions import (
    TokenLayout,
    interpolate_position_embedding,
    relative_position_index,
    rotary_table,
)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of CLIP."""

    factor = 1.702

    def forward(self, x: Tensor) -> Tensor:
        # by silu, whose backward keeps one tensor instead of three
        return F.silu(x * self.factor) * (1 / self.factor)


def activation(name: str) -> nn.Module:
    return QuickGELU() if name == "quick_gelu" else nn.GELU("tanh" if name == "gelu_tanh" else "none")


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
    """The stem: tokens from the patches of each frame, or with stride 2 from those of three frames.

    A strided Conv3d, computed as linear layers on patches. uint8 clips are RGB in [0, 255]; the mean and standard
    deviation of the preprocessing are folded into the weights. Float clips are normalised already, in the channel order
    of the preprocessing.
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
        # on the CPU also when the model is built on "meta": no weights replace them
        self.register_buffer("mean", torch.tensor(preprocessing.mean, device="cpu"), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std, device="cpu"), persistent=False)

    def forward(self, clip: Tensor) -> Tensor:
        """(batch, 3, frames, height, width) -> (batch, frames after the stem, patches, width)."""
        taps = [partial(F.linear, weight=weight, bias=bias) for weight, bias in self.taps(clip.dtype == torch.uint8)]
        return embed_patches(split_into_patches(clip, self.patch_size).to(self.weight.dtype), taps)

    def taps(self, raw: bool) -> list[tuple[Tensor, Tensor | None]]:
        """The linear layer for each frame of the kernel: weight (width, 3·patch·patch) and bias (width,).

        Args:
            raw: whether clips are uint8.
        """
        weight, shift = self._folded_normalisation() if raw else (self.weight, None)
        # (width, 3, taps, patch, patch) -> taps of (width, 3·patch·patch)
        weights = weight.permute(2, 0, 1, 3, 4).flatten(2).unbind()
        biases: list[Tensor | None] = [None] * len(weights) if shift is None else list(shift.unbind())
        if self.bias is not None:  # in the central tap alone
            centre = len(weights) // 2
            shifted = biases[centre]
            biases[centre] = self.bias if shifted is None else self.bias + shifted
        return list(zip(weights, biases, strict=True))

    def _folded_normalisation(self) -> tuple[Tensor, Tensor]:
        """Weights for values in [0, 255] in RGB order, and the shift by the mean, (taps, width)."""
        std, mean = self.std.view(3, 1, 1, 1), self.mean.view(3, 1, 1, 1)
        shift = -(self.weight * (mean / std)).sum((1, 3, 4)).T
        weight = self.weight / (255 * std)
        if self.channel_order == "bgr":
            weight = weight.flip(1)
        return weight.to(self.weight.dtype), shift.to(self.weight.dtype)


def split_into_patches(clip: Tensor, size: int) -> Tensor:
    """(batch, 3, frames, height, width) -> (batch, frames, patches, 3·size·size), row by row."""
    batch, channels, frames, height, width = clip.shape
    rows, columns = height // size, width // size
    # (batch, channels, frames, rows, size, columns, size) -> (batch, frames, rows, columns, channels, size, size)
    grid = clip.view(batch, channels, frames, rows, size, columns, size)
    return grid.permute(0, 2, 3, 5, 1, 4, 6).reshape(batch, frames, rows * columns, channels * size * size)


def embed_patches(patches: Tensor, taps: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    """Patches to tokens: (batch, frames, patches, 3·size·size) -> (batch, frames after the stem, patches, width).

    One tap is applied to every frame. Three are a kernel of 3 with stride 2 and padding 1 in time, on the frames 2t-1,
    2t and 2t+1. Taps outside of the clip are left out, which equals zeros after normalisation for uint8 clips too.
    """
    if len(taps) == 1:
        return taps[0](patches)
    before, centre, after = taps
    even, odd = patches[:, 0::2], patches[:, 1::2]
    tokens = centre(even)
    if odd.shape[1]:
        tokens[:, : odd.shape[1]] += after(odd)
        tokens[:, 1:] += before(odd[:, : even.shape[1] - 1])
    return tokens


class MLP(nn.Module):
    """Two linear layers; gated, the first makes a gate and a value: silu(gate) * value (SwiGLU, arXiv:2002.05202).

    QuickGELU is silu(1.702 x) / 1.702. Its constants are multiplied into the weights of the two layers, which are fewer
    than the activations, where no norm is between.
    """

    def __init__(
        self,
        width: int,
        ratio: float,
        activation_name: str,
        *,
        dropout: float = 0.0,
        gated: bool = False,
        norm_eps: float | None = None,
    ):
        super().__init__()
        hidden = round(width * ratio)
        self.gated = gated
        absorbs = activation_name == "quick_gelu" and not gated and norm_eps is None
        self.factor = QuickGELU.factor if absorbs else 1.0
        self.fc1 = nn.Linear(width, 2 * hidden if gated else hidden)
        self.activation = nn.SiLU() if gated or absorbs else activation(activation_name)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(hidden, eps=norm_eps)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same shape."""
        return self.contract(recomputed(self.expand, x))

    def expand(self, x: Tensor) -> Tensor:
        """The first layer, before the activation: (..., width) -> (..., hidden), twice as many where gated."""
        if self.factor == 1:
            return self.fc1(x)
        return F.linear(x, self.fc1.weight * self.factor, self.fc1.bias * self.factor)

    def contract(self, hidden: Tensor) -> Tensor:
        """The activation and the second layer: (..., hidden) -> (..., width)."""
        return recomputed(self._contract, hidden)

    def _contract(self, hidden: Tensor) -> Tensor:
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            activated = self.activation(gate) * value
        else:
            activated = self.activation(hidden)
        activated = self.norm(self.dropout(activated))
        if self.factor == 1:
            return self.fc2(activated)
        return F.linear(activated, self.fc2.weight * (1 / self.factor), self.fc2.bias)


class Block(nn.Module):
    """A block of the image transformer: x + attention(norm(x)), then x + mlp(norm(x)), in each frame by itself.

    With `norm_after`, x + norm(attention(x)), then x + norm(mlp(x)).
    """

    def __init__(self, config: ModelConfig, *, drop_path: float = 0.0, recompute: bool = False):
        super().__init__()
        self.recompute = recompute
        width, eps = config.width, config.norm_eps
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(
            width,
            config.mlp_ratio,
            config.activation,
            gated=config.gated_mlp,
            norm_eps=eps if config.mlp_norm else None,
        )
        # near zero at start (CaiT, arXiv:2103.17239)
        self.scale1 = nn.Parameter(torch.full((width,), 1e-5)) if config.layer_scale else None
        self.scale2 = nn.Parameter(torch.full((width,), 1e-5)) if config.layer_scale else None
        self.norm_after = config.norm_after
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """(batch, frames, tokens, width) -> the same shape."""
        return self.mix_channels(self.mix_space(x, layout))

    def mix_space(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """x + attention(norm(x)): (batch, frames, tokens, width) -> the same shape."""
        return x + self.drop_path(self._run(self.attention_branch, x, partial(self.attention.mix, layout=layout)))

    def mix_channels(self, x: Tensor) -> Tensor:
        """x + mlp(norm(x)): (..., width) -> the same shape."""
        return x + self.drop_path(self._run(self.mlp_branch, x))

    def attention_branch(self, x: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
        """attention(norm(x)), with `mix` from queries, keys and values (..., 3·width) to (..., width)."""
        before, after = self._norms(self.norm1)
        qkv = recomputed(lambda x: self.attention.qkv(before(x)), x)  # norm(x) is not kept for the backward pass
        update = after(self.attention.output(mix(qkv)))
        return update if self.scale1 is None else update * self.scale1

    def mlp_branch(self, x: Tensor) -> Tensor:
        """mlp(norm(x))."""
        before, after = self._norms(self.norm2)
        hidden = recomputed(lambda x: self.mlp.expand(before(x)), x)
        update = after(self.mlp.contract(hidden))
        return update if self.scale2 is None else update * self.scale2

    def _norms(self, norm: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """What comes before and after a branch: a norm and nothing, or the other way round."""
        return (_identity, norm) if self.norm_after else (norm, _identity)

    def _run(self, branch, *inputs) -> Tensor:  # type: ignore[no-untyped-def]
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(branch, *inputs, use_reentrant=False)
        return branch(*inputs)


def _identity(x: Tensor) -> Tensor:
    return x


class AttentionPool(nn.Module):
    """Attention of one learned query to class token and patches, then an MLP (SigLIP, Perception Encoder)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.width
        self.query = nn.Parameter(torch.empty(1, width))
        self.attention = CrossAttention(width, config.pool_heads or config.heads)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = MLP(width, config.pool_mlp_ratio, config.activation)
        nn.init.trunc_normal_(self.query, std=width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, frames, tokens, width) -> (batch, frames, width)."""
        context = tokens.flatten(0, 1)
        query = self.query.to(context.dtype).expand(context.shape[0], -1, -1)
        pooled = self.attention.cross(query, context, weights=False)[0][:, 0]
        return (pooled + self.mlp(self.norm(pooled))).unflatten(0, tokens.shape[:2])


class ImageTransformer(nn.Module):
    """A vision transformer for images, with blocks of the video model."""

    def __init__(self, config: ModelConfig, preprocessing: Preprocessing, blocks: list[Block]):
        super().__init__()
        self.config = config
        width, classes = config.width, int(config.class_token)
        patches = config.grid[0] * config.grid[1]
        norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.patch_embedding = PatchEmbedding(config, preprocessing)
        self.class_token = nn.Parameter(torch.empty(width)) if classes else None
        self.registers = nn.Parameter(torch.empty(config.register_tokens, width)) if config.register_tokens else None
        self.position_embedding = (
            nn.Parameter(torch.empty(classes + patches, width)) if config.position_embedding else None
        )
        self.pre_norm = copy.deepcopy(norm) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(blocks)
        self.post_norm = copy.deepcopy(norm) if config.post_norm else nn.Identity()
        self.pool = AttentionPool(config) if config.pool == "attention" else None
        self.pool_norm = copy.deepcopy(norm) if config.pool_norm else nn.Identity()
        self._initialise()

    def _initialise(self) -> None:
        scale = self.config.width**-0.5
        for token in (self.class_token, self.registers, self.position_embedding):
            if token is not None:
                nn.init.trunc_normal_(token, std=scale)
        nn.init.trunc_normal_(self.patch_embedding.weight, std=0.02)
        if self.patch_embedding.bias is not None:
            nn.init.zeros_(self.patch_embedding.bias)
        for block in self.image_blocks():
            for linear in (block.attention.qkv, block.attention.proj, block.mlp.fc1, block.mlp.fc2):
                nn.init.trunc_normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)

    def image_blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    def embed(self, clip: Tensor) -> tuple[Tensor, TokenLayout]:
        """(batch, 3, frames, height, width) -> the tokens before the first block, and their layout."""
        patches = self.patch_embedding(clip)
        size = self.config.patch_size
        layout = self._token_layout((clip.shape[-2] // size, clip.shape[-1] // size), clip.device)
        tokens = patches
        if self.class_token is not None:
            tokens = torch.cat([self._repeat(self.class_token[None], patches), tokens], dim=2)
        if self.position_embedding is not None:
            tokens = tokens + interpolate_position_embedding(self.position_embedding, self.config.grid, layout.grid)
        if self.registers is not None:
            tokens = torch.cat([tokens, self._repeat(self.registers, patches)], dim=2)
        return self.pre_norm(tokens), layout

    def encode(
        self, clip: Tensor, stages: Container[int], add: Callable[[Tensor, TokenLayout], None]
    ) -> tuple[Tensor, TokenLayout]:
        """Run all blocks.

        Args:
            clip: (batch, 3, frames, height, width).
            stages: numbers of the blocks after which `add` is called with the tokens (batch, frames, tokens, width),
                which need not be kept.

        Returns:
            Frame embeddings (batch, frames, width), and the layout of the tokens.
        """
        tokens, layout = self.embed(clip)
        for number, block in enumerate(self.image_blocks()):
            tokens = block(tokens, layout)
            if number in stages:
                add(tokens, layout)
        return self.frame_embeddings(tokens, layout), layout

    def frame_embeddings(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """Class token or pooled tokens of each frame: (batch, frames, tokens, width) -> (batch, frames, width)."""
        if self.config.pool == "class_token":
            return self.pool_norm(self.post_norm(tokens[:, :, 0]))
        tokens = self.post_norm(tokens[:, :, : layout.spatial_tokens])
        pooled = self.pool(tokens) if self.pool is not None else tokens[:, :, layout.patches].mean(2)
        return self.pool_norm(pooled)

    def _token_layout(self, grid: tuple[int, int], device: torch.device) -> TokenLayout:
        config = self.config
        classes = int(config.class_token)
        channels = config.width // config.heads
        rotary = rotary_table(config.rotary, grid, channels, device) if config.rotary is not None else None
        relative_index = relative_position_index(grid, classes, device) if config.relative_bias else None
        return TokenLayout(classes, grid, rotary, relative_index)

    @staticmethod
    def _repeat(tokens: Tensor, like: Tensor) -> Tensor:
        """(n, width) -> (batch, frames, n, width)."""
        return tokens.to(like.dtype).expand(*like.shape[:2], -1, -1)
