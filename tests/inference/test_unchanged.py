"""Patches that do not change are computed once; in a still video that changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models import ARCHITECTURES, PREPROCESSING, architecture, random_pixels, small_model
from uniformerv2.inference.reduction import SkippingTransformer, computed_tokens
from uniformerv2.inference.sharing import sharing_obstacle
from uniformerv2.model.uniformerv2 import UniFormerV2

FRAME_BY_FRAME = [name for name in ARCHITECTURES if not sharing_obstacle(architecture(name))]


def skipping(model: UniFormerV2, threshold: float) -> UniFormerV2:
    model.backbone = SkippingTransformer(model.backbone, PREPROCESSING, threshold)  # type: ignore[assignment]
    return model


def computed_rows(model: UniFormerV2) -> list[int]:
    """Receives how many tokens the first block's MLP computes, at every pass."""
    seen: list[int] = []
    layer = model.get_submodule("backbone.transformer.blocks.0.mlp.activation")
    layer.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0].shape[0]))
    return seen


def video(frames: int) -> Tensor:
    """(1, 3, frames, height, width), uint8, of frames that have nothing in common."""
    return random_pixels(1, 3, frames, 16, 24)


@pytest.mark.parametrize("name", FRAME_BY_FRAME)
@torch.inference_mode()
def test_a_still_video_is_computed_once(name: str) -> None:
    model, clip = small_model(name), video(1).expand(-1, -1, 4, -1, -1)
    expected = model.forward_features(clip)
    skipping(model, 0.0)
    rows = computed_rows(model)
    found = model.forward_features(clip)
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.frame_embeddings, expected.frame_embeddings, rtol=1e-4, atol=1e-5)
    others = int(model.config.class_token) + model.config.register_tokens
    assert rows == [6 + 4 * others]


@pytest.mark.parametrize("name", FRAME_BY_FRAME)
@torch.inference_mode()
def test_frames_without_an_unchanged_patch_are_computed_as_by_the_plain_model(name: str) -> None:
    model, clip = small_model(name), torch.cat([video(4), video(4).flip(2)])
    expected = model(clip)
    torch.testing.assert_close(skipping(model, 0.02)(clip), expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_only_patches_that_changed_are_computed() -> None:
    model = skipping(small_model(), 0.02)
    rows = computed_rows(model)
    clip = video(1).repeat(1, 1, 4, 1, 1)
    clip[:, :, 2:, :8, 8:16] = 255 - clip[:, :, 2:, :8, 8:16]  # the second patch, from the third frame on
    features = model.forward_features(clip)
    assert rows == [6 + 4 + 1]
    # a frame without changes is the frame before it
    torch.testing.assert_close(features.frame_embeddings[:, 1], features.frame_embeddings[:, 0])
    torch.testing.assert_close(features.frame_embeddings[:, 3], features.frame_embeddings[:, 2])
    assert not torch.allclose(features.frame_embeddings[:, 2], features.frame_embeddings[:, 1], atol=1e-3)


def test_slow_changes_are_noticed_in_uint8_and_float_clips() -> None:
    transformer = skipping(small_model(), 0.05).backbone
    assert isinstance(transformer, SkippingTransformer)
    # grows by 6 of 255 a frame, 0.024: past 0.05 at every third frame
    raw = torch.full((1, 3, 8, 16, 24), 100, dtype=torch.uint8)
    raw[:, :, :, :8, :8] += (6 * torch.arange(8, dtype=torch.uint8)).view(8, 1, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (PREPROCESSING.mean, PREPROCESSING.std))
    normalised = (raw.flip(1).float() / 255 - mean) / std
    for clip in (raw, normalised):
        changed = transformer.changed(clip)
        assert changed[0, :, 0].tolist() == [True, False, False, True, False, False, True, False]
        assert changed[0, 1:, 1:].sum() == 0


def test_the_latest_token_of_a_position_represents_it() -> None:
    changed = torch.tensor([[[1, 1], [0, 1], [1, 0], [0, 0]], [[1, 1], [0, 0], [0, 1], [0, 0]]]).bool()
    computed = computed_tokens(changed, 1, 3)
    # class tokens 0, 3, 6, 9 of the first clip, 12, ... of the second
    assert computed.positions.tolist() == [0, 1, 2, 3, 5, 6, 7, 9, 12, 13, 14, 15, 18, 20, 21]
    positions = computed.positions[computed.representatives]
    assert positions[0].tolist() == [[0, 1, 2], [3, 1, 5], [6, 7, 5], [9, 7, 5]]
    assert positions[1].tolist() == [[12, 13, 14], [15, 13, 14], [18, 13, 20], [21, 13, 20]]


@torch.inference_mode()
def test_clips_of_a_batch_are_independent() -> None:
    model = skipping(small_model(), 0.02)
    clips = torch.cat([video(1).expand(-1, -1, 3, -1, -1), video(3)])
    together = model(clips)
    for number in range(2):
        torch.testing.assert_close(model(clips[number : number + 1]), together[number : number + 1])
