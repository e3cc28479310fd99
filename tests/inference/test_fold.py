"""Models rewritten for inference compute the same function, whatever the architecture."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reference.manifest import IMAGE, VIDEO
from reference.recorded import draw_input, image_model, video_model
from uniformerv2 import ModelConfig, Preprocessing
from uniformerv2.inference import chunks
from uniformerv2.inference.bfloat16 import to_bfloat16
from uniformerv2.inference.chunks import compute_in_chunks
from uniformerv2.inference.fold import Rewrite, fold
from uniformerv2.inference.packed import PackedLinear, can_pack, pack
from uniformerv2.model.config import RotaryEmbedding
from uniformerv2.model.uniformerv2 import UniFormerV2

PLAIN = ModelConfig(width=32, depth=3, heads=2, patch_size=8, image_size=(16, 24), global_after=(1, 2), num_classes=5)
LOCAL = {"local_blocks": "attention+mlp", "temporal_downsample": True}
ARCHITECTURES = {
    "scene": {},
    "temporal": LOCAL,
    "local_single": {**LOCAL, "local_blocks": "attention"},
    "beit": {"relative_bias": True, "layer_scale": True, "pool": "mean", "activation": "gelu"},
    "norm_after": {"norm_after": True, "layer_scale": True},
    "dinov3": {"layer_scale": True, "register_tokens": 4, "rotary": RotaryEmbedding(halves=True)},
    "eva02": {"rotary": RotaryEmbedding(), "gated_mlp": True, "attention_norm": True, "mlp_norm": True},
    "mlp_norm": {"mlp_norm": True},  # a norm between QuickGELU and the layer that would take its constant
    "parallel": {"fusion": "parallel", "num_queries": 2},
}
REWRITES: list[tuple[Rewrite, ...]] = [(), (compute_in_chunks,)] + ([(pack,)] if can_pack() else [])


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


def assert_rewrites_change_nothing(model: UniFormerV2, *clips: Tensor) -> None:
    for rewrites in REWRITES:
        rewritten = fold(model, *rewrites)
        if pack in rewrites:
            assert sum(isinstance(layer, PackedLinear) for layer in rewritten.modules()) >= 4 * model.config.depth
        for clip in clips:
            assert_same(rewritten, model, clip)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_rewritten_model_is_the_same_function(name: str) -> None:
    assert_rewrites_change_nothing(draw_model(name), *draw_clips())


@pytest.mark.parametrize("name", [*VIDEO, *IMAGE])
def test_a_rewritten_model_with_recorded_outputs_is_the_same_function(name: str) -> None:
    if name in VIDEO:
        assert_rewrites_change_nothing(video_model(name), draw_input(name))
    else:
        assert_rewrites_change_nothing(image_model(name), draw_input(name).transpose(0, 1)[None])


@pytest.mark.parametrize("name", ["scene", "temporal", "norm_after", "eva02"])
def test_many_tokens_are_computed_in_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (clip, _) = draw_model(name), draw_clips(6)
    chunked = fold(model, compute_in_chunks)
    seen: list[int] = []
    block = chunked.backbone.image_blocks()[0]
    for layer in (block.attention.qkv, block.mlp.fc1):
        layer.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0].nbytes))
    with torch.inference_mode():
        chunked(clip)
    whole = seen.copy()
    assert len(whole) == 2
    seen.clear()
    monkeypatch.setattr(chunks, "CHUNK_BYTES", whole[0])  # of tokens: a chunk has a quarter of them, or an eighth
    assert_same(chunked, model, clip)
    assert sum(seen) == 2 * sum(whole)  # two passes
    assert max(seen) * model.config.mlp_ratio < 1.4 * whole[0]  # 12 frames, and fewer, are no multiple of eight


def test_folding_leaves_the_model_alone_and_shares_what_stays() -> None:
    model = draw_model("temporal")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold(model, to_bfloat16, *([pack] if can_pack(torch.bfloat16) else []))
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    stage, plain = fold(model).global_blocks[0], model.global_blocks[0]
    assert stage.attention.qkv.weight.data_ptr() == plain.attention.qkv.weight.data_ptr()


def test_norms_and_head_stay_in_float32() -> None:
    model = draw_model("temporal")
    cast = fold(model, to_bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in cast.named_parameters()}
    kept = {name for name in dtypes if re.search(r"norm\d?\.(weight|bias)$", name) or name.startswith("head.")}
    assert kept == {name for name, dtype in dtypes.items() if dtype == torch.float32}
    for clip in draw_clips():
        with torch.inference_mode():
            expected, seen = model(clip), cast(clip)
        assert seen.dtype == torch.float32
        # a bfloat16 has eight bits: 2 ** -9 a rounding, some hundred of them on the way
        assert (seen - expected).abs().max() < 0.05 * expected.abs().max()
        assert not torch.equal(seen, expected)
