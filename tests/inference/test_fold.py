"""Models rewritten for inference compute the same function, whatever the architecture."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from models import ARCHITECTURES, randn, random_pixels, small_model
from reference.manifest import IMAGE, VIDEO
from reference.recorded import draw_input, image_model, video_model
from uniformerv2.inference import cpu
from uniformerv2.inference.cpu import PackedLinear, can_pack, compute_in_chunks, pack
from uniformerv2.inference.fold import Rewrite, fold
from uniformerv2.inference.precision import to_bfloat16
from uniformerv2.model.uniformerv2 import UniFormerV2

REWRITES: list[tuple[Rewrite, ...]] = [(), (compute_in_chunks,)] + ([(pack,)] if can_pack() else [])
CLIPS = [randn(2, 3, 5, 16, 24), random_pixels(2, 3, 5, 16, 24)]


def assert_same(rewritten: UniFormerV2, model: UniFormerV2, clip: Tensor) -> None:
    """Equal to 1e-5 of the largest number, in the logits and in every frame's embedding."""
    with torch.inference_mode():
        expected, found = model.forward_features(clip), rewritten.forward_features(clip)
        pairs = [
            (found.pooled, expected.pooled),
            (found.frame_embeddings, expected.frame_embeddings),
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
    assert_rewrites_change_nothing(small_model(name), *CLIPS)


@pytest.mark.parametrize("name", [*VIDEO, *IMAGE])
def test_a_rewritten_model_with_recorded_outputs_is_the_same_function(name: str) -> None:
    torch.manual_seed(0)  # the head of an armed model is drawn; small logits have larger relative errors
    if name in VIDEO:
        assert_rewrites_change_nothing(video_model(name), draw_input(name))
    else:
        assert_rewrites_change_nothing(image_model(name), draw_input(name).transpose(0, 1)[None])


@pytest.mark.parametrize("name", ["scene", "temporal", "eva02-e", "eva02"])
def test_many_tokens_are_computed_in_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, clip = small_model(name), randn(2, 3, 6, 16, 24)
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
    monkeypatch.setattr(cpu, "CHUNK_BYTES", whole[0])  # of tokens: a chunk has a quarter of them, or an eighth
    assert_same(chunked, model, clip)
    assert sum(seen) == 2 * sum(whole)  # two passes
    assert max(seen) * model.config.mlp_ratio < 1.4 * whole[0]  # 12 frames, and fewer, are no multiple of eight


def test_the_model_is_not_changed_and_shares_the_weights_that_stay() -> None:
    model = small_model("temporal")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold(model, to_bfloat16, *([pack] if can_pack(torch.bfloat16) else []))
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    stage, plain = fold(model).global_blocks[0], model.global_blocks[0]
    assert stage.attention.qkv.weight.data_ptr() == plain.attention.qkv.weight.data_ptr()


def test_a_block_is_rewritten_to_the_end_before_the_next() -> None:
    """Intermediate weights between two rewrites are those of a block at a time."""
    calls: list[tuple[str, nn.Module]] = []
    folded = fold(small_model(), *(lambda part, name=name: calls.append((name, part)) for name in ("first", "second")))
    parts = [*folded.backbone.blocks, *folded.global_blocks, folded]
    assert calls == [(name, part) for part in parts for name in ("first", "second")]


def test_norms_and_head_stay_in_float32() -> None:
    model = small_model("temporal")
    cast = fold(model, to_bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in cast.named_parameters()}
    kept = {name for name in dtypes if re.search(r"norm\d?\.(weight|bias)$", name) or name.startswith("head.")}
    assert kept == {name for name, dtype in dtypes.items() if dtype == torch.float32}
    for clip in CLIPS:
        with torch.inference_mode():
            expected, found = model(clip), cast(clip)
        assert found.dtype == torch.float32
        # a bfloat16 has eight bits: 2 ** -9 a rounding, some hundred of them on the way
        assert (found - expected).abs().max() < 0.05 * expected.abs().max()
        assert not torch.equal(found, expected)
