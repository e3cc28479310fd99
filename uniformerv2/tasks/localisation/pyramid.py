"""The head that finds spans: local attention over windows, a pyramid in time, and at each place class scores and the
distances to both ends of a span. After ActionFormer (arXiv:2202.07925) and FCOS (arXiv:1904.01355). Torch only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniformerv2.tasks.localisation.recipe import PyramidConfig

RARE = 0.01  # the score of every class at every place before training: nearly all places show nothing


class Found(NamedTuple):
    """What the head says at each place, level after level."""

    logits: Tensor  # (batch, places, classes); the sigmoid is the score of a class, and none may be high
    distances: Tensor  # (batch, places, 2): to the start and to the end of the span, in windows, not negative
    valid: Tensor  # bool (batch, places): whether the place lies in the film
    # (batch, windows, classes): how likely the video model's own classifier finds each class in each window; None: that
    # was not asked for
    in_windows: Tensor | None = None


class Places(NamedTuple):
    """Where the places of all levels lie."""

    position: Tensor  # float32 (places): in windows; 0 is the middle of the first
    stride: Tensor  # float32 (places): windows from one place of the level to the next
    nearest: Tensor  # float32 (places): a place answers for spans whose farther end is at least so many windows away,
    farthest: Tensor  # float32 (places): and nearer than this


def places(windows: int, config: PyramidConfig, device: torch.device | None = None) -> Places:
    """The places of a film with so many windows: at every window, at every second, at every fourth, and so on."""
    parts = []
    for level in range(config.levels):
        stride = 2**level
        position = torch.arange(0, windows, stride, dtype=torch.float32)
        nearest = config.reach * stride / 2 if level else 0.0
        farthest = config.reach * stride if level < config.levels - 1 else math.inf
        parts.append([position, *(torch.full_like(position, value) for value in (stride, nearest, farthest))])
    return Places(*(torch.cat(column).to(device) for column in zip(*parts, strict=True)))


def receptive_field(config: PyramidConfig) -> int:
    """How many windows before and after a place can change what the head says there, at most."""
    block = 1 + config.radius  # the convolution before the attention, and the attention
    seen = 1 + config.blocks * block
    farthest = seen + 3  # the convolutions of the towers
    for level in range(1, config.levels):
        stride = 2**level
        seen += stride // 2 + block * stride  # a convolution of the level before halves it
        farthest = seen + 3 * stride
    return farthest


class SpanHead(nn.Module):
    """Finds spans in sequences of embeddings. What it says of a film does not depend on the padding of a batch.

    Args:
        config: its architecture.
        embedding_width: numbers of an embedding.
        num_classes: how many kinds of spans.
        classifier: of embeddings (..., width) to the probabilities of these classes (..., classes): of the video model.
            It is not trained, and asked in eval mode alone.
    """

    def __init__(
        self, config: PyramidConfig, *, embedding_width: int, num_classes: int, classifier: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.classifier = classifier
        self.norm = nn.LayerNorm(embedding_width)  # embeddings of any model have any scale
        self.embedding_dropout = nn.Dropout1d(config.embedding_dropout)
        self.projection = nn.Linear(embedding_width, width)
        self.entry = ConvBlock(width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.halvings = nn.ModuleList(MaskedConv(width, width, stride=2) for _ in range(config.levels - 1))
        self.level_blocks = nn.ModuleList(Block(config) for _ in range(config.levels - 1))
        self.level_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.levels))
        self.class_tower = nn.ModuleList(ConvBlock(width) for _ in range(2))
        self.distance_tower = nn.ModuleList(ConvBlock(width) for _ in range(2))
        self.classes = MaskedConv(width, num_classes)
        self.distances = MaskedConv(width, 2)
        self.scales = nn.Parameter(torch.ones(config.levels))
        assert self.classes.bias is not None
        nn.init.constant_(self.classes.bias, math.log(RARE / (1 - RARE)))

    def forward(self, embeddings: Tensor, valid: Tensor) -> Found:
        """What it finds.

        Args:
            embeddings: float32 (batch, windows, embedding width).
            valid: bool (batch, windows): False behind the end of a shorter film.
        """
        in_windows = None if self.training or self.classifier is None else self.classifier(embeddings)
        kept = self.embedding_dropout(self.norm(embeddings).transpose(1, 2)).transpose(1, 2)
        x = self.entry(self.projection(kept), valid)
        for block in self.blocks:
            x = block(x, valid)
        levels = [(x, valid)]
        for halving, block in zip(self.halvings, self.level_blocks, strict=True):
            halved = valid[:, ::2]
            x = block(halving(x, valid), halved)
            valid = halved
            levels.append((x, valid))
        return self._found(levels)._replace(in_windows=in_windows)

    def _found(self, levels: Sequence[tuple[Tensor, Tensor]]) -> Found:
        """What the towers say of all levels, given to them as one sequence: a gap keeps each from the next."""
        normed = [F.pad(norm(x), (0, 0, 0, 1)) for norm, (x, _) in zip(self.level_norms, levels, strict=True)]
        classes = distances = torch.cat(normed, dim=1)
        valid = torch.cat([F.pad(of_level, (0, 1)) for _, of_level in levels], dim=1)
        for class_layer, distance_layer in zip(self.class_tower, self.distance_tower, strict=True):
            classes, distances = class_layer(classes, valid), distance_layer(distances, valid)
        strides = 2.0 ** torch.arange(len(levels), device=valid.device)
        lengths = torch.tensor([x.shape[1] for x in normed], device=valid.device)
        scale, stride = (
            of_level.repeat_interleave(lengths, output_size=valid.shape[1])[:, None]
            for of_level in (self.scales, strides)
        )
        outwards = F.softplus(scale * self.distances(distances, valid)) * stride
        sizes = [size for x in normed for size in (x.shape[1] - 1, 1)]  # of a level, of the gap behind it
        parts = (part.split(sizes, dim=1)[::2] for part in (self.classes(classes, valid), outwards, valid))
        return Found(*(torch.cat(part, dim=1) for part in parts))


class MaskedConv(nn.Conv1d):
    """A convolution over three places of (batch, places, channels), which sees nothing behind the end of a film."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel_size=3, stride=stride, padding=1, groups=groups)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:  # type: ignore[override]
        # a product, as torch's convolution of so few channels is slow on a CPU: (batch, places, channels, 3)
        around = F.pad(x * valid[:, :, None], (0, 0, 1, 1)).unfold(1, 3, self.stride[0])
        if self.groups == 1:
            return F.linear(around.flatten(2), self.weight.flatten(1), self.bias)
        assert self.bias is not None
        return (around * self.weight[:, 0]).sum(-1) + self.bias


class ConvBlock(nn.Module):
    """Convolution, LayerNorm, GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = MaskedConv(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(x, valid)))


class Block(nn.Module):
    """A transformer block with local attention; a depth-wise convolution before it tells places apart."""

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.radius = config.heads, config.radius
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.neighbours = MaskedConv(width, width, groups=width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        x = x + self.dropout(self._attention(self.neighbours(self.attention_norm(x), valid), valid))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def _attention(self, x: Tensor, valid: Tensor) -> Tensor:
        # (batch, places, 3·width) -> three of (batch, heads, places, width of a head)
        queries, keys, values = self.queries_keys_values(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.output(local_attention(queries, keys, values, valid, radius=self.radius).transpose(1, 2).flatten(2))


def local_attention(queries: Tensor, keys: Tensor, values: Tensor, valid: Tensor, *, radius: int) -> Tensor:
    """Attention of every place to those at most `radius` before and after it: time and memory grow with the places.

    A chunk of `radius` places attends to itself and to the chunks before and after it, of which a band is left.

    Args:
        queries, keys, values: (batch, heads, places, width).
        valid: bool (batch, places): which keys count.
        radius: at least 1.

    Returns:
        (batch, heads, places, width); of no meaning where a place is not valid, but finite.
    """
    batch, _, count, _ = queries.shape
    chunks = -(-count // radius)
    missing = chunks * radius - count

    def around(x: Tensor) -> Tensor:
        # (batch, heads, places, width) -> (batch·chunks, heads, 3·radius, width)
        padded = F.pad(x, (0, 0, radius, radius + missing))
        return padded.unfold(2, 3 * radius, radius).permute(0, 2, 1, 4, 3).flatten(0, 1)

    own = F.pad(queries, (0, 0, 0, missing)).unflatten(2, (chunks, radius)).transpose(1, 2).flatten(0, 1)
    steps = torch.arange(3 * radius, device=valid.device)
    offsets = steps - radius - steps[:radius, None]
    known = F.pad(valid, (radius, radius + missing)).unfold(1, 3 * radius, radius)[:, :, None]
    # a place always sees itself: where nothing is valid a softmax over nothing would be NaN
    mask = ((offsets.abs() <= radius) & known) | (offsets == 0)  # (batch, chunks, radius, 3·radius)
    seen = F.scaled_dot_product_attention(own, around(keys), around(values), attn_mask=mask.flatten(0, 1)[:, None])
    # (batch·chunks, heads, radius, width) -> (batch, heads, places, width)
    return seen.unflatten(0, (batch, chunks)).transpose(1, 2).flatten(2, 3)[:, :, :count]
