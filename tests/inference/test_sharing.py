"""Clips of shared frames are the clips that the whole model sees."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from uniformerv2.inference.sharing import SharedFrames, classify_shared, sharing_obstacle, sharing_report
from uniformerv2.model.config import ModelConfig
from uniformerv2.model.uniformerv2 import UniFormerV2

TINY = {"width": 32, "depth": 3, "heads": 2, "image_size": (32, 32), "global_after": (1, 2), "num_classes": 5}
FRAMES = {
    "scene": {},
    "no class token, pooled by attention": {"class_token": False, "pool": "attention"},
    "registers and layer scale": {"register_tokens": 2, "layer_scale": True},
    "frozen, two queries": {"mix_class_token": False, "num_queries": 2},
    "parallel": {"fusion": "parallel"},
    "hierarchical keys and values": {"fusion": "hierarchical_kv"},
    "no global stages": {"global_after": ()},
}
CLIPS = {
    "local blocks": {"local_blocks": "attention+mlp"},
    "downsampling": {"temporal_downsample": True},
    "both": {"local_blocks": "attention", "temporal_downsample": True},
}


def tiny(**options: object) -> UniFormerV2:
    torch.manual_seed(0)
    model = UniFormerV2(ModelConfig(**{**TINY, **options})).eval()  # type: ignore[arg-type]
    for parameter in model.parameters():  # nothing may be hidden behind a zero
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def video(frames: int) -> Tensor:
    """(frames, 3, height, width), as uint8."""
    return torch.randint(0, 256, (frames, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", [*FRAMES.values(), *CLIPS.values()], ids=[*FRAMES, *CLIPS])
@torch.inference_mode()
def test_every_window_equals_the_whole_model(options: dict[str, object]) -> None:
    model, frames = tiny(**options), video(12)
    shared = SharedFrames(model)
    for start in range(0, 9, 2):
        shared.add({number: frames[number] for number in range(start, start + 4)})
        whole = model.forward_features(frames[start : start + 4].transpose(0, 1)[None])
        clip = shared.clip(range(start, start + 4))
        torch.testing.assert_close(clip.pooled, whole.pooled, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(clip.frame_embeddings, whole.frame_embeddings, atol=1e-5, rtol=1e-5)
        shared.drop_before(start + 2)
        assert len(shared) == 2


@pytest.mark.parametrize("options", FRAMES.values(), ids=FRAMES)
@torch.inference_mode()
def test_a_frame_is_encoded_once(options: dict[str, object]) -> None:
    model, frames = tiny(**options), video(10)
    shared, seen = SharedFrames(model), []
    encode = model.encode
    with patch.object(model, "encode", lambda clip: seen.extend(clip.unbind(2)) or encode(clip)):
        for start in range(7):
            shared.add({number: frames[number] for number in range(start, start + 4)})
            shared.clip(range(start, start + 4))
    assert torch.equal(torch.cat(seen), frames)


@pytest.mark.parametrize("options", [FRAMES["scene"], CLIPS["both"]], ids=["scene", "both"])
@torch.inference_mode()
def test_a_clip_may_repeat_frames_and_take_them_in_any_order(options: dict[str, object]) -> None:
    model, frames = tiny(**options), video(4)
    shared = SharedFrames(model)
    shared.add(dict(enumerate(frames)))
    whole = model.forward_features(frames[[2, 0, 0, 3]].transpose(0, 1)[None])
    torch.testing.assert_close(shared.clip([2, 0, 0, 3]).pooled, whole.pooled, atol=1e-5, rtol=1e-5)


def test_what_is_in_the_way_is_said() -> None:
    assert sharing_obstacle(ModelConfig()) == ""
    assert "local" in sharing_obstacle(ModelConfig(local_blocks="attention"))
    assert "stem" in sharing_obstacle(ModelConfig(temporal_downsample=True))
    assert sharing_report(ModelConfig()) == "each frame is encoded once"
    assert sharing_report(ModelConfig(temporal_downsample=True)).startswith("every window is computed whole: the stem")


@pytest.mark.parametrize("options", FRAMES.values(), ids=FRAMES)
@torch.inference_mode()
def test_clips_that_are_classified_together_share_their_frames(options: dict[str, object]) -> None:
    model, frames = tiny(**options), video(6).transpose(0, 1)
    clips = torch.tensor([[0, 1, 2, 3], [2, 3, 4, 5], [5, 5, 0, 1]])
    whole = torch.stack([frames[:, clip] for clip in clips])
    torch.testing.assert_close(classify_shared(model, frames, clips), model(whole), atol=1e-5, rtol=1e-5)
