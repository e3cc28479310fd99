"""What the paper's blocks are compared with: attention over space and time, divided or joint (arXiv:2102.05095).

Both are made from the image transformer of all cells, with their head and their stem. A clip has one class token, which
is classified, and a learned embedding of each time, zero at start. What a cell is compared with costs the same.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from evidence.claims import Architecture
from uniformerv2 import ModelConfig, UniFormerV2
from uniformerv2.model import counting
from uniformerv2.model.positions import TokenLayout
from uniformerv2.model.uniformerv2 import ClipFeatures
from uniformerv2.model.vit import Block

NEAR = 0.1  # costs that differ by less than this share are equal


class DividedBlock(Block):
    """A block of an image transformer with attention over time before its attention in space ("T+S" of TimeSformer).

    As in the authors' code: each patch attends to the patches of its place in all frames, without the class token; then
    the tokens of each frame attend to each other, with the class token, whose updates in the frames are averaged. The
    attention over time begins as a copy of that in space.
    """

    def __init__(self, config: ModelConfig, block: Block):
        super().__init__(config)
        self.load_state_dict(block.state_dict())
        self.time_norm, self.time_attention = copy.deepcopy(self.norm1), copy.deepcopy(self.attention)
        self.time_output = nn.Linear(config.width, config.width)
        # zero at start: the patches of a frame are first those of the image model
        nn.init.zeros_(self.time_output.weight)
        nn.init.zeros_(self.time_output.bias)

    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """(batch, 1, 1 + frames·patches, width) -> the same shape."""
        first, patches = tokens[:, :, :1], tokens[:, 0, 1:].unflatten(1, (-1, layout.grid[0] * layout.grid[1]))
        # (batch, frames, patches, width) -> (batch, patches, frames, width) and back
        over_time = self.time_attention(self.time_norm(patches.transpose(1, 2)), layout)
        patches = patches + self.time_output(over_time).transpose(1, 2)
        frames = self.mix_space(torch.cat([first.expand(-1, patches.shape[1], -1, -1), patches], dim=2), layout)
        first, patches = frames[:, :, :1].mean(1, keepdim=True), frames[:, :, 1:]
        return self.mix_channels(torch.cat([first, patches.flatten(1, 2).unsqueeze(1)], dim=2))


class SpaceTimeTransformer(UniFormerV2):
    """An image transformer whose attention reaches over the frames of a clip.

    Args:
        image: a model without local and global UniBlocks, of a transformer with a class token and learned positions;
            its parts are taken.
        architecture: "divided attention", see `DividedBlock`; or "joint attention": every block attends to all tokens
            of the clip at once.
    """

    def __init__(self, image: UniFormerV2, architecture: Architecture):
        super().__init__(image.config, image.preprocessing, image.labels, image.label_note)
        self.backbone, self.head = image.backbone, image.head
        if architecture == "divided attention":
            blocks = (DividedBlock(image.config, block) for block in image.backbone.image_blocks())
            self.backbone.blocks = nn.ModuleList(blocks)
        frames = _frames(image.config, image.preprocessing.num_frames)
        self.time_embedding = nn.Parameter(torch.zeros(frames, image.config.width))

    def forward_features(self, clip: Tensor, *, attention: bool = False) -> ClipFeatures:
        """As of `UniFormerV2`, of clips with as many frames as the preprocessing has."""
        tokens, layout = self.backbone.embed(clip)
        first, patches, _ = layout.split(tokens)  # the class tokens of all frames are equal
        patches = patches + self.time_embedding[:, None]
        # (batch, frames, patches, width) -> (batch, 1, 1 + frames·patches, width): as one large frame
        tokens = torch.cat([first[:, :1], patches.flatten(1, 2).unsqueeze(1)], dim=2)
        for block in self.backbone.image_blocks():
            tokens = block(tokens, layout)
        embedding = self.backbone.frame_embeddings(tokens, layout)  # (batch, 1, width)
        return ClipFeatures(embedding[:, 0], embedding)


def _frames(config: ModelConfig, num_frames: int) -> int:
    """After the stem."""
    return -(-num_frames // 2) if config.temporal_downsample else num_frames


def count_multiply_adds(
    architecture: Architecture | None, config: ModelConfig, num_frames: int, size: tuple[int, int]
) -> int:
    """Multiply-adds of a clip, as `uniformerv2.model.counting` counts those of our models."""
    if architecture is None:
        return counting.count_multiply_adds(config, num_frames, size)
    width, frames = config.width, _frames(config, num_frames)
    patches = (size[0] // config.patch_size) * (size[1] // config.patch_size)

    def attention(groups: int, tokens: int) -> int:
        return groups * (tokens * 4 * width**2 + 2 * tokens**2 * width)

    block = 2 * (1 + frames * patches) * width * round(width * config.mlp_ratio)
    if architecture == "joint attention":
        block += attention(1, 1 + frames * patches)
    else:
        block += attention(frames, 1 + patches) + attention(patches, frames) + patches * frames * width**2
    stem_and_head = counting.count_multiply_adds(replace(config, depth=0), num_frames, size)
    return stem_and_head + config.depth * block


def frames_of_equal_cost(
    architecture: Architecture | None, config: ModelConfig, num_frames: int, size: tuple[int, int], multiply_adds: int
) -> int:
    """The frames of a clip that costs so much: `num_frames` where that is near, else the number that comes nearest."""

    def gap(frames: int) -> float:
        return abs(count_multiply_adds(architecture, config, frames, size) / multiply_adds - 1)

    return num_frames if gap(num_frames) <= NEAR else min(range(1, 4 * num_frames), key=gap)
