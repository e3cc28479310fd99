"""The image transformer, applied to every frame of a clip by itself.

One class for every supported family: what a family adds is a field of `ModelConfig`. Tokens are (batch, frames, tokens,
width) throughout: the class token where there is one, the patches row by row, the register tokens; contiguous.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uniformerv2.model.config import ModelConfig, Preprocessing, Rotary


@dataclass(frozen=True)
class Places:
    """Where the tokens of a frame stand, and what the blocks need to know of it.

    Register tokens come last: they take part in the spatial attention, and the slices below leave them out of the local
    and global aggregators. They hold what the image model stores beside the picture, and stand at no place in space
    or time.
    """

    class_tokens: int  # 1, or 0 without a class token
    grid: tuple[int, int]  # rows and columns of patches
    rotation: tuple[Tensor, Tensor] | None = None  # cosines and sines of the patches: (patches, head's channels)
    distances: Tensor | None = None  # (tokens, tokens): which row of a relative bias a pair of tokens has

    @property
    def patches(self) -> slice:
        """The patches among the tokens of a frame."""
        return slice(self.class_tokens, self.in_space)

    @property
    def in_space(self) -> int:
        """How many of the leading tokens are not registers: class token and patches."""
        return self.class_tokens + self.grid[0] * self.grid[1]

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class tokens, patches and registers of (batch, frames, tokens, width).

        The gradients of the three are put together in one pass; that of a slice is filled up with zeros first.
        """
        sizes = [self.class_tokens, self.grid[0] * self.grid[1], tokens.shape[2] - self.in_space]
        first, patches, registers = tokens.split(sizes, dim=2)
        return first, patches, registers


IDENTITY = nn.Identity()

# bytes of the widest activation that inference on a CPU computes at a time, 8 frames of B/16 in float32: 32 frames at
# once took 7 % longer than in four parts, in bfloat16 12 %, as activations leave the cache between two layers
CACHE = 20 * 2**20


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), which keeps its inputs alone for the backward pass and is computed again there.

    For what is cheap beside the memory that it would take. A checkpoint stops at the inputs of the last operation:
    where that is a product, as in most uses here, only what comes before is done twice.
    """
    return checkpoint(function, *inputs, use_reentrant=False) if torch.is_grad_enabled() else function(*inputs)


def attend(query: Tensor, key: Tensor, value: Tensor, *, scale: float, bias: Tensor | None = None) -> Tensor:
    """Softmax attention, the only place of the package that computes it without its weights.

    Args:
        query: (batch, heads, queries, dim).
        key, value: (batch, heads, tokens, dim).
        scale: factor on the dot products.
        bias: what (batch, heads, queries, tokens) broadcasts from, added to the scaled dot products.

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

    Seen up to 1024 tokens (benchmarks/attention.py); beyond, the memory for the weights counts for more.
    """
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[-2] <= 1024


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of CLIP."""

    factor = 1.702

    def forward(self, x: Tensor) -> Tensor:
        # the same function through silu, whose backward keeps one tensor instead of three
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
        taps = [partial(F.linear, weight=weight, bias=bias) for weight, bias in self.taps(clip.dtype == torch.uint8)]
        return embed_patches(split_into_patches(clip, self.patch_size).to(self.weight.dtype), taps)

    def taps(self, raw: bool) -> list[tuple[Tensor, Tensor | None]]:
        """The linear layer of each frame that the kernel sees: weight (width, 3·patch·patch) and bias (width,).

        Args:
            raw: for uint8 clips.
        """
        weight, shift = self._folded_normalisation() if raw else (self.weight, None)
        # (width, 3, taps, patch, patch) -> taps of (width, 3·patch·patch)
        weights = weight.permute(2, 0, 1, 3, 4).flatten(2).unbind()
        biases: list[Tensor | None] = [None] * len(weights) if shift is None else list(shift.unbind())
        if self.bias is not None:  # once, so with the centre
            centre = len(weights) // 2
            shifted = biases[centre]
            biases[centre] = self.bias if shifted is None else self.bias + shifted
        return list(zip(weights, biases, strict=True))

    def _folded_normalisation(self) -> tuple[Tensor, Tensor]:
        """Weights for values in [0, 255] and RGB order, and what the mean takes away: (taps, width)."""
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

    One tap is applied to every frame. Three are a kernel of 3 with stride 2 and padding 1 in time: output t sees the
    frames 2t-1, 2t and 2t+1 that exist. Taps outside the clip are left out instead of padded, which is the padding with
    zeros after normalisation for uint8 clips too.
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

    def forward(self, x: Tensor, places: Places, before: nn.Module = IDENTITY) -> Tensor:
        """Attend to `before(x)`, a norm or an identity."""
        qkv = recomputed(lambda x: self.qkv(before(x)), x)
        return self.output(self.mix(qkv, places))

    def mix(self, qkv: Tensor, places: Places) -> Tensor:
        """Queries, keys and values (batch, frames, tokens, 3·width) -> (batch, frames, tokens, width)."""
        query, key, value = self.split(qkv)
        if self.rotary is not None:
            query, key = (rotate(one, places, halves=self.rotary.halves) for one in (query, key))
        mixed = attend(query, key, value, scale=self.scale, bias=self._bias(places))
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
        """(..., width) -> the same shape."""
        return self.proj(self.norm(mixed))

    def _bias(self, places: Places) -> Tensor | None:
        """(heads, tokens, tokens), or None without a relative bias."""
        if self.relative_bias is None:
            return None
        assert places.distances is not None
        table = interpolate_distances(self.relative_bias, self.grid, places.grid)
        return table[places.distances].permute(2, 0, 1)


class MLP(nn.Module):
    """Two linear layers; gated, the first makes a gate and a value: silu(gate) * value (SwiGLU, arXiv:2002.05202)."""

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
        self.fc1 = nn.Linear(width, 2 * hidden if gated else hidden)
        self.activation = nn.SiLU() if gated else activation(activation_name)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(hidden, eps=norm_eps)
        self.fc2 = nn.Linear(hidden, width)

    @property
    def absorbs(self) -> bool:
        """Whether the weights take the constants of QuickGELU, silu(1.702 x) / 1.702: tokens have more numbers."""
        return isinstance(self.activation, QuickGELU) and isinstance(self.norm, nn.Identity)

    def forward(self, x: Tensor, before: nn.Module = IDENTITY) -> Tensor:
        """The MLP of `before(x)`, a norm or an identity."""
        hidden = recomputed(lambda x: self._expand(before(x)), x)
        return recomputed(self._contract, hidden)

    def _expand(self, x: Tensor) -> Tensor:
        if not self.absorbs:
            return self.fc1(x)
        return F.linear(x, self.fc1.weight * QuickGELU.factor, self.fc1.bias * QuickGELU.factor)

    def _contract(self, hidden: Tensor) -> Tensor:
        if self.absorbs:
            return F.linear(self.dropout(F.silu(hidden)), self.fc2.weight * (1 / QuickGELU.factor), self.fc2.bias)
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            hidden = self.activation(gate) * value
        else:
            hidden = self.activation(hidden)
        return self.fc2(self.norm(self.dropout(hidden)))


class Block(nn.Module):
    """One block of the image transformer: spatial attention and MLP, each a residual behind its norm or before it."""

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
        self.widening = config.mlp_ratio * (2 if config.gated_mlp else 1)  # of the widest activation
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, places: Places) -> Tensor:
        return self.mix_channels(self.mix_space(tokens, places))

    def mix_space(self, tokens: Tensor, places: Places) -> Tensor:
        def attention(x: Tensor, before: nn.Module) -> Tensor:
            return self.attention(x, places, before)

        def mixed(tokens: Tensor) -> Tensor:
            return tokens + self.drop_path(self._run(self.space_update, tokens, attention))

        pieces = self._pieces(tokens.flatten(0, 1))
        if len(pieces) == 1:
            return mixed(tokens)
        return torch.cat([mixed(frames[None]) for frames in pieces], dim=1).view_as(tokens)

    def mix_channels(self, tokens: Tensor) -> Tensor:
        """(..., width) -> the same shape."""

        def mixed(tokens: Tensor) -> Tensor:
            return tokens + self.drop_path(self._run(self._mlp, tokens))

        pieces = self._pieces(tokens.flatten(0, -2))
        return mixed(tokens) if len(pieces) == 1 else torch.cat([mixed(rows) for rows in pieces]).view_as(tokens)

    def _pieces(self, tokens: Tensor) -> Sequence[Tensor]:
        """Parts of the first axis, (n, ..., width), that are computed one after the other: few that fit the cache."""
        apart = tokens.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        return tokens.chunk(max(1, math.ceil(tokens.nbytes * self.widening / CACHE))) if apart else (tokens,)

    def space_update(self, tokens: Tensor, attention: Callable[[Tensor, nn.Module], Tensor]) -> Tensor:
        """What an attention adds to tokens (..., tokens, width); it is given them and the norm before it."""
        norm = self.norm1
        update = norm(attention(tokens, IDENTITY)) if self.norm_after else attention(tokens, norm)
        return update if self.scale1 is None else update * self.scale1

    def _mlp(self, tokens: Tensor) -> Tensor:
        mlp, norm = self.mlp, self.norm2
        update = norm(mlp(tokens)) if self.norm_after else mlp(tokens, norm)
        return update if self.scale2 is None else update * self.scale2

    def _run(self, branch, *inputs) -> Tensor:  # type: ignore[no-untyped-def]
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(branch, *inputs, use_reentrant=False)
        return branch(*inputs)


class CrossAttention(nn.Module):
    """A few queries attend to all tokens of a clip, without ever forming keys and values.

    (q Wq)(x Wk)' = ((q Wq) Wk') x', so the key projection moves to the query side; the value projection moves
    behind the weighted sum in the same way. For Q queries this takes 2·Q·heads multiply-adds per token channel
    instead of 2·(width + Q), a gain while Q is below width / heads. The key's bias adds the same number to every
    score of a query, which the softmax takes away again.
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
        # -> (batch, 1, heads·queries, width): every head's query, as seen from the tokens
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


class AttentionPool(nn.Module):
    """One learned query attends to class token and patches, then passes an MLP (SigLIP, Perception Encoder)."""

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
        return (pooled + self.mlp(pooled, self.norm)).unflatten(0, tokens.shape[:2])


def interpolate_grid(grid: Tensor, new: tuple[int, int]) -> Tensor:
    """(rows, columns, channels) -> (new rows, new columns, channels), bicubically."""
    planes = grid.permute(2, 0, 1)[None].float()
    planes = F.interpolate(planes, size=new, mode="bicubic", align_corners=False)
    return planes[0].permute(1, 2, 0).to(grid.dtype)


def interpolate_positions(positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Position embedding for another grid, bicubically; the class token's, if there is one, is untouched.

    Args:
        positions: (class tokens + old patches, width), class token first.
        old_grid, new_grid: patches per column and per row.

    Returns:
        (class tokens + new patches, width).
    """
    if old_grid == new_grid:
        return positions
    first, patches = positions.tensor_split([positions.shape[0] - old_grid[0] * old_grid[1]])
    return torch.cat([first, interpolate_grid(patches.unflatten(0, old_grid), new_grid).flatten(0, 1)])


def interpolate_distances(table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Relative bias for another grid, bicubically over the distances between patches; the class token's rows stay.

    Args:
        table: ((2·rows - 1)·(2·columns - 1) + 3, heads), the last three from, to and within the class token.
        old_grid, new_grid: patches per column and per row.
    """
    if old_grid == new_grid:
        return table
    old, new = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (old_grid, new_grid))
    patches = interpolate_grid(table[:-3].unflatten(0, old), new).flatten(0, 1)
    return torch.cat([patches, table[-3:]])


def distance_index(grid: tuple[int, int], class_tokens: int, device: torch.device) -> Tensor:
    """Which row of a relative bias a pair of tokens has: (tokens, tokens), row the query, column the key."""
    rows, columns = grid
    # (patches,) each
    row, column = (
        index.flatten() for index in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    )
    down, across = row[:, None] - row + rows - 1, column[:, None] - column + columns - 1
    index = down * (2 * columns - 1) + across
    if class_tokens:
        distances = (2 * rows - 1) * (2 * columns - 1)
        index = F.pad(index, (1, 0, 1, 0))
        index[0, :], index[:, 0], index[0, 0] = distances, distances + 1, distances + 2
    return index.to(device)


def rotation(rotary: Rotary, grid: tuple[int, int], channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines that turn the channels of a head: two of (patches, channels), float32."""
    pairs = channels // 4  # of rows, and of columns
    frequencies = rotary.base ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    row, column = (
        (rotary.start + span * (torch.arange(length, dtype=torch.float64) + rotary.offset) / length)
        for length, span in zip(grid, rotary.span, strict=True)
    )
    axes = list(torch.meshgrid(row, column, indexing="ij"))
    if rotary.columns_first:
        axes.reverse()
    # (rows, columns, 2, pairs) -> (patches, channels / 2)
    angles = (torch.stack(axes, -1)[..., None] * frequencies).flatten(2).flatten(0, 1)
    angles = angles.repeat(1, 2) if rotary.halves else angles.repeat_interleave(2, dim=1)
    return angles.cos().float().to(device), angles.sin().float().to(device)


def rotate(x: Tensor, places: Places, *, halves: bool) -> Tensor:
    """Turn the patches among queries or keys, (batch, heads, tokens, channels), to their places."""
    assert places.rotation is not None
    cosine, sine = places.rotation
    patches = x[:, :, places.patches]
    if halves:
        first, second = patches.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
    else:
        turned = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
    placed = (patches * cosine + turned * sine).to(x.dtype)
    return torch.cat([x[:, :, : places.class_tokens], placed, x[:, :, places.in_space :]], dim=2)


class ImageTransformer(nn.Module):
    """A vision transformer for images. The video model owns one, and may put other blocks in place of `blocks`."""

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

    def embed(self, clip: Tensor) -> tuple[Tensor, Places]:
        """(batch, 3, frames, height, width) -> tokens that enter the first block, and their places."""
        patches = self.patch_embedding(clip)
        size = self.config.patch_size
        places = self._places((clip.shape[-2] // size, clip.shape[-1] // size), clip.device)
        tokens = patches
        if self.class_token is not None:
            tokens = torch.cat([self._repeat(self.class_token[None], patches), tokens], dim=2)
        if self.position_embedding is not None:
            tokens = tokens + interpolate_positions(self.position_embedding, self.config.grid, places.grid)
        if self.registers is not None:
            tokens = torch.cat([tokens, self._repeat(self.registers, patches)], dim=2)
        return self.pre_norm(tokens), places

    def encode(
        self, clip: Tensor, stages: Container[int], add: Callable[[Tensor, Places], None]
    ) -> tuple[Tensor, Places]:
        """Run all blocks.

        Args:
            clip: (batch, 3, frames, height, width).
            stages: numbers of the blocks behind which `add` is given the tokens (batch, frames, tokens, width) as they
                come, so that none need be kept.

        Returns:
            Frame embeddings (batch, frames, width), and the places of the tokens.
        """
        tokens, places = self.embed(clip)
        for number, block in enumerate(self.image_blocks()):
            tokens = block(tokens, places)
            if number in stages:
                add(tokens, places)
        return self.frame_embeddings(tokens, places), places

    def frame_embeddings(self, tokens: Tensor, places: Places) -> Tensor:
        """What the image model says of each frame: (batch, frames, tokens, width) -> (batch, frames, width)."""
        if self.config.pool == "class_token":
            return self.pool_norm(self.post_norm(tokens[:, :, 0]))
        tokens = self.post_norm(tokens[:, :, : places.in_space])
        pooled = self.pool(tokens) if self.pool is not None else tokens[:, :, places.patches].mean(2)
        return self.pool_norm(pooled)

    def _places(self, grid: tuple[int, int], device: torch.device) -> Places:
        config = self.config
        classes = int(config.class_token)
        turns = None
        if config.rotary is not None:
            turns = rotation(config.rotary, grid, config.width // config.heads, device)
        distances = distance_index(grid, classes, device) if config.relative_bias else None
        return Places(classes, grid, turns, distances)

    @staticmethod
    def _repeat(tokens: Tensor, like: Tensor) -> Tensor:
        """(n, width) -> (batch, frames, n, width)."""
        return tokens.to(like.dtype).expand(*like.shape[:2], -1, -1)
