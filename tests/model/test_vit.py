"""Parts of the image transformer against their definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from models import BASE, PREPROCESSING, randn, random_pixels, randomised, small_model
from uniformerv2.model.config import Preprocessing
from uniformerv2.model.vit import MLP, DropPath, PatchEmbedding


@pytest.mark.parametrize("frames", [1, 4, 5])
@pytest.mark.parametrize("downsample", [False, True])
def test_the_stem_is_a_strided_convolution(downsample: bool, frames: int) -> None:
    stem = randomised(PatchEmbedding(replace(BASE, temporal_downsample=downsample, patch_bias=True), Preprocessing()))
    clip, kernel = randn(2, 3, frames, 16, 24), 3 if downsample else 1
    expected = F.conv3d(
        clip, stem.weight, stem.bias, stride=(2 if downsample else 1, 8, 8), padding=(kernel // 2, 0, 0)
    )
    torch.testing.assert_close(stem(clip), expected.flatten(3).permute(0, 2, 3, 1), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("downsample", [False, True])
def test_uint8_frames_are_normalised_by_the_model(downsample: bool, order: str) -> None:
    preprocessing = replace(PREPROCESSING, channel_order=order)  # type: ignore[arg-type]
    model = small_model("temporal", preprocessing, temporal_downsample=downsample)
    raw = random_pixels(2, 3, 5, 16, 24)
    values = raw.flip(1) if order == "bgr" else raw
    mean, std = (torch.tensor(x).view(1, 3, 1, 1, 1) for x in (preprocessing.mean, preprocessing.std))
    torch.testing.assert_close(model(raw), model((values / 255 - mean) / std), atol=1e-4, rtol=1e-4)


def test_the_constants_of_quick_gelu_in_the_weights_change_nothing() -> None:
    mlp, x = randomised(MLP(6, 2.0, "quick_gelu")), randn(4, 6)
    hidden = mlp.fc1(x)
    ours, theirs = mlp(x), mlp.fc2(hidden * (1.702 * hidden).sigmoid())
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    gradients = [torch.autograd.grad(out.square().sum(), list(mlp.parameters())) for out in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_a_gated_mlp_is_swiglu_before_a_norm() -> None:
    mlp = randomised(MLP(6, 1.5, "gelu", gated=True, norm_eps=1e-6))
    x = randn(4, 6)
    gate, value = (x @ mlp.fc1.weight.T + mlp.fc1.bias).split(9, dim=-1)
    hidden = gate * torch.sigmoid(gate) * value
    hidden = (hidden - hidden.mean(-1, keepdim=True)) / (hidden.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    expected = (hidden * mlp.norm.weight + mlp.norm.bias) @ mlp.fc2.weight.T + mlp.fc2.bias
    torch.testing.assert_close(mlp(x), expected, atol=1e-5, rtol=1e-4)


def test_a_block_adds_attention_and_mlp_of_the_norms() -> None:
    model = small_model("beit")
    block, (x, layout) = model.backbone.image_blocks()[0], model.backbone.embed(randn(1, 3, 2, 16, 24))
    middle = x + block.attention(block.norm1(x), layout) * block.scale1
    torch.testing.assert_close(block(x, layout), middle + block.mlp(block.norm2(middle)) * block.scale2)


def test_a_block_with_norms_after_adds_the_norms_of_attention_and_mlp() -> None:
    model = small_model("eva02-e", layer_scale=False)
    block, (x, layout) = model.backbone.image_blocks()[0], model.backbone.embed(randn(1, 3, 2, 16, 24))
    middle = x + block.norm1(block.attention(x, layout))
    torch.testing.assert_close(block(x, layout), middle + block.norm2(block.mlp(middle)))


def test_drop_path_drops_whole_clips_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    out = DropPath(0.25).train()(torch.ones(4000, 2, 3))
    kept = out[:, 0, 0] != 0
    assert torch.equal(out, kept[:, None, None].expand(4000, 2, 3) / 0.75)
    assert abs(kept.float().mean().item() - 0.75) < 0.03  # four standard deviations
    assert torch.equal(DropPath(0.25).eval()(out), out)
