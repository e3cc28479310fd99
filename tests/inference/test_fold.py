"""What is rewritten for inference says the same as the plain model, on every architecture there is."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from reference.manifest import IMAGE, VIDEO
from reference.recorded import draw_input, image_model, video_model
from uniformerv2 import ModelConfig, Preprocessing
from uniformerv2.inference.fold import fold
from uniformerv2.inference.narrow import narrow
from uniformerv2.inference.packed import PackedLinear, can_pack, pack
from uniformerv2.model.config import RotaryEmbedding
from uniformerv2.model.uniformerv2 import UniFormerV2

PLAIN = ModelConfig(width=32, depth=3, heads=2, patch_size=8, image_size=(16, 24), global_after=(1, 2), num_classes=5)
LOCAL = {"local_blocks": "attention+mlp", "temporal_downsample": True}
ARCHITECTURES = {
    # those of the recorded outputs of the official implementation
    "scene": {},
    "temporal": LOCAL,
    "local_single": {**LOCAL, "local_blocks": "attention"},
    "local_no_downsample": {"local_blocks": "attention+mlp"},
    "downsample_only": {"temporal_downsample": True},
    "reduction2": {**LOCAL, "local_reduction": 2.0},
    "frozen": {"mix_class_token": False},
    "sparse_stages": {"global_after": (0, 2)},
    # what families of image transformers add
    "siglip": {"class_token": False, "pool": "attention", "activation": "gelu_tanh", "patch_bias": True},
    "beit": {"relative_bias": True, "layer_scale": True, "pool": "mean", "activation": "gelu"},
    "norm_after": {"norm_after": True, "layer_scale": True},
    "dinov3": {
        "layer_scale": True,
        "register_tokens": 4,
        "rotary": RotaryEmbedding(span=(math.pi, math.pi), halves=True),
    },
    "eva02": {"rotary": RotaryEmbedding(), "gated_mlp": True, "attention_norm": True, "mlp_norm": True},
    "mlp_norm": {"mlp_norm": True},  # a norm between QuickGELU and the layer that would take its constant
    "parallel": {"fusion": "parallel", "num_queries": 2},
}


def draw_model(name: str, **options: object) -> UniFormerV2:
    """A model of an architecture above with random weights, statistics and constants."""
    config = replace(PLAIN, **ARCHITECTURES[name], **options)  # type: ignore[arg-type]
    constants = Preprocessing(size=(16, 24), mean=(0.2, 0.5, 0.4), std=(0.1, 0.3, 0.2), channel_order="bgr")
    model = UniFormerV2(config, constants).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        for key, buffer in model.named_buffers():
            if key.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            elif key.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model


def draw_clips(frames: int = 5) -> tuple[Tensor, Tensor]:
    """A clip of normalised floats, and one of uint8."""
    generator = torch.Generator().manual_seed(1)
    shape = (2, 3, frames, 16, 24)
    raw = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return torch.randn(shape, generator=generator), raw


def assert_same(rewritten: UniFormerV2, model: UniFormerV2, clip: Tensor) -> None:
    """Equal to 1e-5 of the largest number, in the logits and in every frame's embedding."""
    with torch.inference_mode():
        expected, seen = model.forward_features(clip), rewritten.forward_features(clip)
        pairs = [
            (seen.pooled, expected.pooled),
            (seen.frame_embeddings, expected.frame_embeddings),
            (rewritten(clip), model(clip)),
        ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_folded_model_is_the_same_function(name: str) -> None:
    model = draw_model(name)
    for clip in draw_clips():
        assert_same(fold(model), model, clip)


@pytest.mark.skipif(not can_pack(), reason="this PyTorch was built without oneDNN")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_packed_model_is_the_same_function(name: str) -> None:
    model = draw_model(name)
    packed = fold(model, pack)
    assert sum(isinstance(module, PackedLinear) for module in packed.modules()) >= 4 * model.config.depth
    for clip in draw_clips():
        assert_same(packed, model, clip)


@pytest.mark.parametrize("name", [*VIDEO, *IMAGE])
def test_recorded_models_stay_what_they_are(name: str) -> None:
    if name in VIDEO:
        model, clip = video_model(name), draw_input(name)
    else:
        model, clip = image_model(name), draw_input(name).transpose(0, 1)[None]
    assert_same(fold(model), model, clip)
    if can_pack():
        assert_same(fold(model, pack), model, clip)


def test_folding_leaves_the_model_alone_and_shares_what_stays() -> None:
    model = draw_model("temporal")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold(model, partial(narrow, dtype=torch.bfloat16), *([pack] if can_pack(torch.bfloat16) else []))
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    stage, plain = fold(model).global_blocks[0], model.global_blocks[0]
    assert stage.attention.qkv.weight.data_ptr() == plain.attention.qkv.weight.data_ptr()


def test_a_narrow_model_keeps_norms_and_head_wide() -> None:
    model = draw_model("temporal")
    narrowed = fold(model, partial(narrow, dtype=torch.bfloat16))
    wide = {name for name, one in narrowed.named_parameters() if one.dtype == torch.float32}
    names = (name for name, _ in narrowed.named_parameters())
    assert wide == {name for name in names if re.search(r"norm\d?\.(weight|bias)$", name) or name.startswith("head.")}
    for clip in draw_clips():
        with torch.inference_mode():
            expected, seen = model(clip), narrowed(clip)
        assert seen.dtype == torch.float32
        # a bfloat16 has eight bits: 2 ** -9 a rounding, some hundred of them on the way
        assert (seen - expected).abs().max() < 0.05 * expected.abs().max()
        assert not torch.equal(seen, expected)
