"""Clips that share frames have the features of clips that are computed whole."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from models import ARCHITECTURES, architecture, random_pixels, small_model
from uniformerv2 import ModelConfig
from uniformerv2.inference.sharing import SharedFrames, classify_shared, sharing_obstacle, sharing_report

SHARING = [name for name in ARCHITECTURES if not sharing_obstacle(architecture(name))]


def video(frames: int) -> Tensor:
    """(frames, 3, height, width), uint8."""
    return random_pixels(frames, 3, 16, 24)


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_every_window_equals_the_whole_model(name: str) -> None:
    model, frames = small_model(name), video(12)
    shared = SharedFrames(model)
    for start in range(0, 9, 2):
        shared.add({number: frames[number] for number in range(start, start + 4)})
        whole = model.forward_features(frames[start : start + 4].transpose(0, 1)[None])
        clip = shared.clip(range(start, start + 4))
        torch.testing.assert_close(clip.pooled, whole.pooled, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(clip.frame_embeddings, whole.frame_embeddings, atol=1e-5, rtol=1e-5)
        shared.drop_before(start + 2)
        assert len(shared) == 2


@pytest.mark.parametrize("name", SHARING)
@torch.inference_mode()
def test_a_frame_is_encoded_once(name: str) -> None:
    model, frames = small_model(name), video(10)
    shared, seen = SharedFrames(model), []
    encode = model.encode
    with patch.object(model, "encode", lambda clip: seen.extend(clip.unbind(2)) or encode(clip)):
        for start in range(7):
            shared.add({number: frames[number] for number in range(start, start + 4)})
            shared.clip(range(start, start + 4))
    assert torch.equal(torch.cat(seen), frames)


@pytest.mark.parametrize("name", ["scene", "temporal"])
@torch.inference_mode()
def test_a_clip_may_repeat_frames_and_have_any_order(name: str) -> None:
    model, frames = small_model(name), video(4)
    shared = SharedFrames(model)
    shared.add(dict(enumerate(frames)))
    whole = model.forward_features(frames[[2, 0, 0, 3]].transpose(0, 1)[None])
    torch.testing.assert_close(shared.clip([2, 0, 0, 3]).pooled, whole.pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SHARING)
@torch.inference_mode()
def test_clips_that_are_classified_together_share_their_frames(name: str) -> None:
    model, frames = small_model(name), video(6).transpose(0, 1)
    clips = torch.tensor([[0, 1, 2, 3], [2, 3, 4, 5], [5, 5, 0, 1]])
    whole = torch.stack([frames[:, clip] for clip in clips])
    torch.testing.assert_close(classify_shared(model, frames, clips), model(whole), atol=1e-5, rtol=1e-5)


def test_obstacles_are_named() -> None:
    assert sharing_obstacle(ModelConfig()) == ""
    assert "local" in sharing_obstacle(ModelConfig(local_blocks="attention"))
    assert "stem" in sharing_obstacle(ModelConfig(temporal_downsample=True))
    assert sharing_report(ModelConfig()) == "each frame is encoded once"
    assert sharing_report(ModelConfig(temporal_downsample=True)).startswith("every window is computed whole: the stem")
