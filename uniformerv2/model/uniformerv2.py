"""UniFormerV2 (arXiv:2211.09552): an image transformer armed for video."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from uniformerv2.model.config import ModelConfig, Preprocessing
from uniformerv2.model.positions import TokenLayout
from uniformerv2.model.uniblocks import GlobalUniBlock, LocalUniBlock
from uniformerv2.model.vit import Block, ImageTransformer
from uniformerv2.text import normalised


@dataclass(frozen=True)
class StageAttention:
    """Attention weights of one global stage, averaged over heads and queries.

    All three together sum to 1 for every clip. Frames are those after the stem.
    """

    patches: Tensor  # (batch, frames, rows, columns)
    class_tokens: Tensor  # (batch, frames); zero without class tokens
    previous: Tensor  # (batch, n): outputs of the previous stage under hierarchical KV fusion, else n = 0


@dataclass(frozen=True)
class EncodedFrames:
    """Frames of clips, encoded by the image transformer: the input of the global stages.

    Without local UniBlocks and temporal downsampling every frame is encoded by itself, so that an encoded frame can be
    kept and used in several clips.
    """

    # after each block that a global stage follows: (batch, frames after the stem, tokens, width)
    stages: tuple[Tensor, ...]
    frame_embeddings: Tensor  # as in `ClipFeatures`
    layout: TokenLayout


@dataclass(frozen=True)
class ClipFeatures:
    """Embeddings of clips."""

    pooled: Tensor  # (batch, width): the clip embedding, before the head's LayerNorm
    frame_embeddings: Tensor  # (batch, frames after the stem, width): class token or pooled tokens of each frame
    attention: tuple[StageAttention, ...] | None = None  # of each global stage, on request


class Head(nn.Module):
    """LayerNorm, dropout and a linear classifier: (batch, width) -> (batch, classes)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.head_dropout)
        self.linear = nn.Linear(config.width, config.num_classes)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.linear(self.dropout(self.norm(pooled)))


def class_probabilities(logits: Tensor, *, several_labels: bool) -> Tensor:
    """Of classes along the last axis: they sum to 1, or where a clip may have several labels, of each by itself."""
    return logits.sigmoid() if several_labels else logits.softmax(-1)


class UniFormerV2(nn.Module):
    """The video model.

    Args:
        config: the architecture.
        preprocessing: how clips are made; the model itself uses its mean, std and channel order to normalise
            uint8 clips. Default: the constants of the released models at the size of `config`.
        labels: class names in the order of the logits, or none.
        label_note: what is uncertain about the labels, in a line; empty where nothing is.

    Attributes:
        loading_report: what was recognised, assumed, changed and left out when weights were loaded, a line each.
        thresholds: where a clip may have several labels, the probability that each class needs; empty where it has one.

    Raises:
        ValueError: the number of `labels` is not `config.num_classes`.
    """

    def __init__(
        self,
        config: ModelConfig,
        preprocessing: Preprocessing | None = None,
        labels: Sequence[str] = (),
        label_note: str = "",
    ):
        super().__init__()
        if labels and len(labels) != config.num_classes:
            raise ValueError(f"{len(labels)} labels for num_classes {config.num_classes}")
        self.config = config
        self.preprocessing = preprocessing or Preprocessing(size=config.image_size)
        self.labels = tuple(map(normalised, labels))
        self.label_note = label_note
        self.loading_report: tuple[str, ...] = ()
        self.thresholds: tuple[float, ...] = ()

        block = Block if config.local_blocks == "none" else LocalUniBlock
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        blocks = [
            block(config, drop_path=rate, recompute=number < config.checkpoint_blocks)
            for number, rate in enumerate(rates)
        ]
        self.backbone = ImageTransformer(config, self.preprocessing, blocks)
        stages = len(config.global_after)
        rates = torch.linspace(0, config.global_drop_path, stages, device="cpu").tolist()
        self.global_blocks = nn.ModuleList([GlobalUniBlock(config, drop_path=rate) for rate in rates])
        self.query = nn.Parameter(torch.zeros(config.num_queries, config.width)) if stages else None
        if self.query is not None and config.num_queries > 1:
            nn.init.trunc_normal_(self.query, std=0.02)  # equal queries would stay equal
        self.fusion = nn.Linear(stages * config.width, config.width) if config.fusion == "parallel" and stages else None
        mixes = config.mix_class_token and stages > 0
        self.mix = nn.Parameter(torch.zeros(config.width)) if mixes else None
        self.head = Head(config)

    def probabilities(self, logits: Tensor) -> Tensor:
        """As `class_probabilities`."""
        return class_probabilities(logits, several_labels=bool(self.thresholds))

    def forward(self, clip: Tensor | EncodedFrames) -> Tensor:
        """Classify clips.

        Args:
            clip: (batch, 3, frames, height, width); uint8 RGB, or float and normalised already.
                Any number of frames; height and width divisible by the patch size. Or the output of `encode`.

        Returns:
            Logits, (batch, classes).

        Raises:
            ValueError: a clip of another shape.
        """
        features = self.aggregate(clip) if isinstance(clip, EncodedFrames) else self.forward_features(clip)
        return self.head(features.pooled)

    def forward_features(self, clip: Tensor, *, attention: bool = False) -> ClipFeatures:
        """Embed clips; see `forward` for `clip`.

        Args:
            clip: (batch, 3, frames, height, width).
            attention: also return the space-time attention of each global stage.
        """
        stages = GlobalStages(self, attention=attention)
        frames, _ = self._encode(clip, stages.add)
        return self._features(stages, frames)

    def encode(self, clip: Tensor) -> EncodedFrames:
        """The first part of `forward_features`: the image transformer, with its local UniBlocks if it has any."""
        tokens: list[Tensor] = []
        frames, layout = self._encode(clip, lambda stage, _: tokens.append(stage))
        return EncodedFrames(tuple(tokens), frames, layout)

    def aggregate(self, encoded: EncodedFrames, *, attention: bool = False) -> ClipFeatures:
        """The second part of `forward_features`: the global stages."""
        stages = GlobalStages(self, attention=attention)
        for tokens in encoded.stages:
            stages.add(tokens, encoded.layout)
        return self._features(stages, encoded.frame_embeddings)

    def _encode(self, clip: Tensor, add: Callable[[Tensor, TokenLayout], None]) -> tuple[Tensor, TokenLayout]:
        size = self.config.patch_size
        if clip.ndim != 5 or clip.shape[1] != 3 or clip.shape[2] == 0:
            raise ValueError(f"clip must be (batch, 3, frames, height, width), got {tuple(clip.shape)}")
        height, width = clip.shape[-2:]
        if height % size or width % size or not height or not width:
            raise ValueError(f"clip of {height}x{width} pixels is not divisible by the patch size {size}")
        return self.backbone.encode(clip, self.config.global_after, add)

    def _features(self, stages: GlobalStages, frames: Tensor) -> ClipFeatures:
        pooled = self._mix(stages.fused(), frames.mean(1))
        return ClipFeatures(pooled, frames, tuple(stages.attention) if stages.with_attention else None)

    def _mix(self, global_token: Tensor | None, frames: Tensor) -> Tensor:
        """Global token (batch, width) and mean frame embedding (batch, width), mixed per channel (section 3.4).

        The frame embedding is the class token; the pooled patches in families without one (SigLIP) or with a head on
        the pooled patches (BEiT).
        """
        if global_token is None:  # no global stages
            return frames
        if self.mix is None:
            return global_token
        share = self.mix.sigmoid()
        return (1 - share) * global_token + share * frames


class GlobalStages:
    """Runs the global UniBlocks of one forward pass and fuses them (section 3.4, figure 4).

    sequential       the query of a stage is the output of the previous stage
    parallel         the query of every stage is the learned one; a linear layer joins their outputs
    hierarchical KV  the query is the learned one; the output of the previous stage joins the context
    hierarchical Q   the queries are the learned one and the outputs of the previous stage
    """

    def __init__(self, model: UniFormerV2, *, attention: bool):
        self.model = model
        self.with_attention = attention
        self.attention: list[StageAttention] = []
        self.outputs: list[Tensor] = []  # (batch, queries, width) of each stage so far

    def add(self, tokens: Tensor, layout: TokenLayout) -> None:
        """Run the next stage on tokens (batch, frames, tokens, width)."""
        fusion = self.model.config.fusion
        assert self.model.query is not None
        # (queries, width) -> (batch, queries, width)
        learned = self.model.query.expand(tokens.shape[0], -1, -1)
        query, extra = learned, None
        if self.outputs and fusion == "sequential":
            query = self.outputs[-1]
        elif self.outputs and fusion == "hierarchical_kv":
            extra = self.outputs[-1]
        elif self.outputs and fusion == "hierarchical_q":
            query = torch.cat([learned, self.outputs[-1]], dim=1)
        block = self.model.global_blocks[len(self.outputs)]
        output, weights = block(query, tokens, layout, extra=extra, weights=self.with_attention)
        self.outputs.append(output)
        if weights is not None:
            self.attention.append(_stage_attention(weights, tokens.shape[1], layout))

    def fused(self) -> Tensor | None:
        """The global token, (batch, width); several queries are averaged. None without stages."""
        if not self.outputs:
            return None
        if self.model.fusion is not None:
            # (stages, batch, width) -> (batch, stages·width)
            return self.model.fusion(torch.cat([output.mean(1) for output in self.outputs], dim=-1))
        return self.outputs[-1].mean(1)


def _stage_attention(weights: Tensor, frames: int, layout: TokenLayout) -> StageAttention:
    count = frames * layout.spatial_tokens
    # (batch, frames·(class tokens + patches)) -> (batch, frames, class tokens + patches)
    tokens = weights[:, :count].unflatten(1, (frames, layout.spatial_tokens))
    patches = tokens[:, :, layout.patches].unflatten(2, layout.grid)
    return StageAttention(patches, tokens[:, :, : layout.class_tokens].sum(2), weights[:, count:])
