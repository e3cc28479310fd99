"""Token merging: no token is lost, and merging equal tokens changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models import ARCHITECTURES, architecture, randn, small_model
from uniformerv2.inference.reduction import Merged, MergingTransformer, merging_obstacle, most_similar_pairs
from uniformerv2.model.config import RotaryEmbedding
from uniformerv2.model.positions import TokenLayout
from uniformerv2.model.uniformerv2 import UniFormerV2

SIZE = {"image_size": (32, 32)}  # 16 patches
MERGEABLE = [name for name in ARCHITECTURES if not merging_obstacle(architecture(name))]


def merging(model: UniFormerV2, share: float) -> UniFormerV2:
    model.backbone = MergingTransformer(model.backbone, share)  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("name", MERGEABLE)
@torch.inference_mode()
def test_merging_equal_patches_changes_nothing(name: str) -> None:
    """Without positions all 16 patches of a frame of one colour are equal: one token of size 16 computes the same."""
    model = small_model(name, position_embedding=False, **SIZE)
    clip = randn(2, 3, 3, 1, 1).expand(-1, -1, -1, 32, 32).contiguous()
    expected = model.forward_features(clip)
    found = merging(model, 0.9).forward_features(clip)
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.frame_embeddings, expected.frame_embeddings, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_share_of_zero_is_the_plain_model() -> None:
    model, clip = small_model(**SIZE), randn(2, 3, 3, 32, 32)
    expected = model(clip)
    torch.testing.assert_close(merging(model, 0.0)(clip), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("depth", "share", "tokens"),
    [
        (3, 0.75, [17, 13, 13, 9, 9, 5]),  # 12 of 16 patches in three blocks
        (1, 0.9, [17, 9]),  # no more than half in one block
    ],
)
@torch.inference_mode()
def test_each_block_merges_the_same_number_before_its_mlp(depth: int, share: float, tokens: list[int]) -> None:
    model = small_model(depth=depth, global_after=(0,), **SIZE)
    seen: list[int] = []
    for block in model.backbone.image_blocks():
        for layer in (block.attention.qkv, block.mlp.activation):
            layer.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0].shape[2]))
    merging(model, share)(randn(1, 3, 2, 32, 32))
    assert seen == tokens


@torch.inference_mode()
def test_a_token_is_the_mean_of_the_positions_that_it_represents() -> None:
    tokens = randn(2, 3, 1 + 15 + 2, 4)  # two registers
    now, merged = tokens, Merged.none(tokens, TokenLayout(class_tokens=1, grid=(3, 5)))
    for left in (11, 8, 3):
        now, merged = merged.merge(now, randn(6, now.shape[2], 7, seed=left), left)
    assert now.shape == (2, 3, 1 + 4 + 2, 4)  # 15, 11, 8, and half of that
    assert merged.sizes.sum(1).tolist() == [15.0] * 6
    original, found = tokens.flatten(0, 1), merged.unmerge(now).flatten(0, 1)
    assert torch.equal(found[:, :1], original[:, :1])
    assert torch.equal(found[:, 16:], original[:, 16:])
    for frame in range(6):
        for position in range(15):
            together = merged.representatives[frame] == merged.representatives[frame, position]
            assert merged.sizes[frame, merged.representatives[frame, position]] == together.sum()
            mean = original[frame, 1:16][together].mean(0)
            torch.testing.assert_close(found[frame, 1 + position], mean, rtol=1e-5, atol=1e-5)


def test_the_most_similar_pairs_are_found() -> None:
    # patches 0, 2, 4 may be merged into 1, 3; by angle 0 is near 3, 2 is near 1, 4 is opposite to both
    angles = torch.tensor([0.0, 2.0, 1.9, 0.3, 4.5])
    lengths = torch.tensor([1.0, 9.0, 0.1, 5.0, 2.0])  # make no difference
    keys = (torch.stack([angles.cos(), angles.sin()], -1) * lengths[:, None])[None]
    pairs = most_similar_pairs(keys, 2)
    assert pairs.sources.tolist() == [[1, 0]]  # patches 2 and 0
    assert pairs.targets.tolist() == [[0, 1]]  # patches 1 and 3
    assert pairs.unmerged.tolist() == [[2]]


@torch.inference_mode()
def test_clips_of_a_batch_are_independent() -> None:
    model, clips = merging(small_model(**SIZE), 0.6), randn(3, 3, 2, 32, 32)
    together = model(clips)
    for number in range(3):
        torch.testing.assert_close(model(clips[number : number + 1]), together[number : number + 1])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"local_blocks": "attention"}, "local UniBlocks"),
        ({"temporal_downsample": True}, "stem"),
        ({"rotary": RotaryEmbedding()}, "depends on positions"),
        ({"relative_bias": True}, "depends on positions"),
        ({}, ""),
    ],
)
def test_obstacles(options: dict[str, Any], reason: str) -> None:
    obstacle = merging_obstacle(architecture("scene", **options))
    assert reason in obstacle
    assert bool(reason) == bool(obstacle)
