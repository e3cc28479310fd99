"""Merging of patches inside frames: nothing is lost, and where all that is merged is alike, nothing changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from uniformerv2.inference.merging import Merged, MergingTransformer, merging_obstacle, most_similar_pairs
from uniformerv2.model.config import ModelConfig, RotaryEmbedding
from uniformerv2.model.positions import TokenLayout
from uniformerv2.model.uniformerv2 import UniFormerV2

PLAIN = ModelConfig(width=32, depth=3, heads=2, patch_size=8, image_size=(32, 32), global_after=(0, 2), num_classes=5)
ARCHITECTURES = {
    "scene": {},
    "no class token": {"class_token": False, "pool": "attention"},
    "registers, pooled patches": {"register_tokens": 2, "layer_scale": True, "pool": "mean"},
    "norm after": {"norm_after": True},
    "gated": {"gated_mlp": True, "attention_norm": True, "mlp_norm": True},
    "parallel": {"fusion": "parallel", "num_queries": 2},
}


def draw(config: ModelConfig) -> UniFormerV2:
    torch.manual_seed(0)
    model = UniFormerV2(config).eval()
    for parameter in model.parameters():  # nothing may be hidden behind a zero
        nn.init.normal_(parameter, std=0.3)
    return model


def merging(model: UniFormerV2, share: float) -> UniFormerV2:
    model.backbone = MergingTransformer(model.backbone, share)  # type: ignore[assignment]
    return model


def flat_frames(batch: int, frames: int) -> Tensor:
    """Clips of frames of one colour each."""
    colours = torch.randn(batch, 3, frames, 1, 1, generator=torch.Generator().manual_seed(1))
    return colours.expand(-1, -1, -1, 32, 32).contiguous()


@pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES)
@torch.inference_mode()
def test_what_is_alike_can_be_merged_without_a_trace(options: dict[str, object]) -> None:
    """Without positions all patches of a flat frame are one token, 16 times: one that counts 16 times says the same."""
    config = replace(PLAIN, position_embedding=False, **options)  # type: ignore[arg-type]
    model, clip = draw(config), flat_frames(2, 3)
    expected = model.forward_features(clip)
    found = merging(model, 0.9).forward_features(clip)
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.frame_embeddings, expected.frame_embeddings, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_nothing_merged_is_the_plain_model() -> None:
    model, clip = draw(PLAIN), torch.randn(2, 3, 3, 32, 32)
    expected = model(clip)
    torch.testing.assert_close(merging(model, 0.0)(clip), expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_each_block_takes_as_many() -> None:
    """Of 16 patches 12 go in three blocks; the MLP of a block does not see them any more."""
    model = draw(replace(PLAIN, global_after=(1,)))
    seen: list[int] = []
    for block in model.backbone.blocks:
        block.mlp.activation.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0].shape[2]))  # type: ignore[union-attr]
        block.attention.qkv.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0].shape[2]))  # type: ignore[union-attr]
    merging(model, 0.75)(torch.randn(1, 3, 2, 32, 32))
    assert seen == [17, 13, 13, 9, 9, 5]


@torch.inference_mode()
def test_no_more_than_half_go_at_once() -> None:
    model = draw(replace(PLAIN, depth=1, global_after=(0,)))
    merged: list[int] = []
    model.backbone.blocks[0].mlp.activation.register_forward_hook(  # type: ignore[union-attr]
        lambda layer, inputs, output: merged.append(inputs[0].shape[2])
    )
    merging(model, 0.9)(torch.randn(1, 3, 2, 32, 32))
    assert merged == [1 + 8]


@torch.inference_mode()
def test_a_token_is_the_mean_of_the_places_that_it_stands_for() -> None:
    generator = torch.Generator().manual_seed(0)
    layout = TokenLayout(class_tokens=1, grid=(3, 5))
    tokens = torch.randn(2, 3, 1 + 15 + 2, 4, generator=generator)  # two registers
    now, merged = tokens, Merged.none(tokens, layout)
    for left in (11, 8, 3):
        keys = torch.randn(6, now.shape[2], 7, generator=generator)
        now, merged = now.clone(), merged
        now, merged = merged.merge(now, keys, left)
    assert now.shape == (2, 3, 1 + 4 + 2, 4)  # 15, 11, 8, and half of that
    assert merged.sizes.sum(1).tolist() == [15.0] * 6
    original, found = tokens.flatten(0, 1), merged.unmerge(now).flatten(0, 1)
    assert torch.equal(found[:, :1], original[:, :1])
    assert torch.equal(found[:, 16:], original[:, 16:])
    for frame in range(6):
        for place in range(15):
            together = merged.representatives[frame] == merged.representatives[frame, place]
            assert merged.sizes[frame, merged.representatives[frame, place]] == together.sum()
            mean = original[frame, 1:16][together].mean(0)
            torch.testing.assert_close(found[frame, 1 + place], mean, rtol=1e-5, atol=1e-5)


def test_the_likest_pairs_are_found() -> None:
    # patches 0, 2, 4 may join 1, 3; by angle 0 is near 3, 2 is near 1, 4 is opposite to both
    angles = torch.tensor([0.0, 2.0, 1.9, 0.3, 4.5])
    lengths = torch.tensor([1.0, 9.0, 0.1, 5.0, 2.0])  # which count for nothing
    keys = (torch.stack([angles.cos(), angles.sin()], -1) * lengths[:, None])[None]
    pairs = most_similar_pairs(keys, 2)
    assert pairs.sources.tolist() == [[1, 0]]  # patches 2 and 0
    assert pairs.targets.tolist() == [[0, 1]]  # patches 1 and 3
    assert pairs.unmerged.tolist() == [[2]]


@torch.inference_mode()
def test_clips_do_not_see_each_other() -> None:
    model, clips = merging(draw(PLAIN), 0.6), torch.randn(3, 3, 2, 32, 32)
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
def test_where_it_is_not_possible(options: dict[str, object], reason: str) -> None:
    obstacle = merging_obstacle(replace(PLAIN, **options))  # type: ignore[arg-type]
    assert reason in obstacle
    assert bool(reason) == bool(obstacle)
