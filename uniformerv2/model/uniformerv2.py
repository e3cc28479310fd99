"""UniFormerV2 (arXiv:2211.09552): an image transformer armed for video. Reads top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from uniformerv2.model.config import ModelConfig, Preprocessing
from uniformerv2.model.positions import TokenLayout
from uniformerv2.model.uniblocks import GlobalUniBlock, LocalUniBlock
from uniformerv2.model.vit import Block, ImageTransformer


@dataclass(frozen=True)
class StageAttention:
    """Where the queries of one global stage look, averaged over heads and queries.

    All three together sum to 1 for every clip. Frames are those after the stem.
    """

    patches: Tensor  # (batch, frames, rows, columns)
    class_tokens: Tensor  # (batch, frames); zero where the image model has none
    previous: Tensor  # (batch, n): the former stage's tokens under hierarchical KV fusion, else n = 0


@dataclass(frozen=True)
class EncodedFrames:
    """What the image transformer says of each frame, and all that the rest of the model sees of a clip.

    Without local UniBlocks and temporal downsampling every frame is encoded by itself, so what was encoded once can be
    kept, and frames of one clip can be taken into another.
    """

    # after each block that a global stage follows: (batch, frames after the stem, tokens, width)
    stages: tuple[Tensor, ...]
    frame_embeddings: Tensor  # as in `ClipFeatures`
    layout: TokenLayout  # where the tokens of a frame stand


@dataclass(frozen=True)
class ClipFeatures:
    """What the model knows of a clip before its classifier."""

    pooled: Tensor  # (batch, width): the video embedding, before the head's LayerNorm
    # (batch, frames after the stem, width): the image model on each frame, its class token or pooled embedding
    frame_embeddings: Tensor
    attention: tuple[StageAttention, ...] | None = None  # one for each global stage, where asked for


class Head(nn.Module):
    """LayerNorm, dropout and a linear classifier: (batch, width) -> (batch, classes)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.head_dropout)
        self.linear = nn.Linear(config.width, config.num_classes)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.linear(self.dropout(self.norm(pooled)))


class UniFormerV2(nn.Module):
    """The video model.

    Args:
        config: the architecture.
        preprocessing: how clips are made; the model itself uses its mean, std and channel order to normalise
            uint8 clips. Default: the constants of the released models at the size of `config`.
        labels: class names in the order of the logits, or none.
        label_note: what is not certain about the labels, in a line; empty where nothing is in doubt.

    Attributes:
        loading_report: what loading recognised, assumed, changed and left out, one line each.

    Raises:
        ValueError: `labels` are given and are not `config.num_classes` many.
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
        self.labels = tuple(labels)
        self.label_note = label_note
        self.loading_report: tuple[str, ...] = ()

        self.backbone = ImageTransformer(config, self.preprocessing, self._image_blocks(config))
        stages = len(config.global_after)
        rates = torch.linspace(0, config.global_drop_path, stages, device="cpu").tolist()
        self.global_blocks = nn.ModuleList([GlobalUniBlock(config, drop_path=rate) for rate in rates])
        self.query = nn.Parameter(torch.zeros(config.num_queries, config.width)) if stages else None
        if self.query is not None and config.num_queries > 1:
            nn.init.trunc_normal_(self.query, std=0.02)  # equal queries would stay equal for ever
        self.fusion = nn.Linear(stages * config.width, config.width) if config.fusion == "parallel" and stages else None
        mixes = config.mix_class_token and stages > 0
        self.mix = nn.Parameter(torch.zeros(config.width)) if mixes else None
        self.head = Head(config)

    @staticmethod
    def _image_blocks(config: ModelConfig) -> list[Block]:
        block = Block if config.local_blocks == "none" else LocalUniBlock
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        return [
            block(config, drop_path=rate, recompute=number < config.checkpoint_blocks)
            for number, rate in enumerate(rates)
        ]

    def forward(self, clip: Tensor | EncodedFrames) -> Tensor:
        """Classify clips.

        Args:
            clip: (batch, 3, frames, height, width); uint8 RGB, or float and normalised already.
                Any number of frames; height and width divisible by the patch size. Or what `encode` made of that.

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
        """The second part of `forward_features`: the global stages, on clips that are encoded."""
        stages = GlobalStages(self, attention=attention)
        for tokens in encoded.stages:
            stages.add(tokens, encoded.layout)
        return self._features(stages, encoded.frame_embeddings)

    def _encode(self, clip: Tensor, add: Callable[[Tensor, TokenLayout], None]) -> tuple[Tensor, TokenLayout]:
        self._check(clip)
        return self.backbone.encode(clip, self.config.global_after, add)

    def _features(self, stages: GlobalStages, frames: Tensor) -> ClipFeatures:
        pooled = self._mix(stages.fused(), frames.mean(1))
        return ClipFeatures(pooled, frames, tuple(stages.attention) if stages.wants_attention else None)

    def _mix(self, summary: Tensor | None, image: Tensor) -> Tensor:
        """Global token and the image model's own view, mixed per channel (section 3.4).

        The image model's view is the mean over frames of its class token. A family without one (SigLIP), or one that
        is classified by its pooled patches (BEiT), has its pooled embedding in the class token's place.
        """
        if summary is None:  # no global stages: the image model over time
            return image
        if self.mix is None:
            return summary
        share = self.mix.sigmoid()
        return (1 - share) * summary + share * image

    def _check(self, clip: Tensor) -> None:
        size = self.config.patch_size
        if clip.ndim != 5 or clip.shape[1] != 3 or clip.shape[2] == 0:
            raise ValueError(f"clip must be (batch, 3, frames, height, width), got {tuple(clip.shape)}")
        height, width = clip.shape[-2:]
        if height % size or width % size or not height or not width:
            raise ValueError(f"clip of {height}x{width} pixels is not divisible by the patch size {size}")


class GlobalStages:
    """Runs the global UniBlocks of one forward pass and fuses them (section 3.4, figure 4).

    sequential       the query of a stage is the output of the stage before
    parallel         every stage starts from the learned query; a linear layer joins their outputs
    hierarchical KV  every stage starts from the learned query; the output of the stage before joins its context
    hierarchical Q   the learned query joins the outputs of the stage before as the queries of a stage
    """

    def __init__(self, model: UniFormerV2, *, attention: bool):
        self.model = model
        self.wants_attention = attention
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
        output, weights = block(query, tokens, layout, extra=extra, weights=self.wants_attention)
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
