"""Local and global UniBlocks against their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models import BASE, architecture, randn, randomised, small_model
from uniformerv2.model.positions import TokenLayout
from uniformerv2.model.uniblocks import DynamicPositionEncoding, GlobalUniBlock, LocalAggregator, LocalUniBlock
from uniformerv2.model.uniformerv2 import UniFormerV2


@pytest.mark.parametrize("training", [False, True])
def test_the_local_aggregator_is_the_published_convolutions(training: bool) -> None:
    """Against BatchNorm3d and Conv3d: output, gradient and running statistics."""
    local = randomised(LocalAggregator(BASE)).train(training)
    patches = randn(2, 5, 6, 32)
    mine, theirs = patches.clone().requires_grad_(), patches.clone().requires_grad_()
    volume = theirs.permute(0, 3, 1, 2)[..., None].contiguous()  # (batch, width, frames, patches, 1)
    mean, variance = local.norm.running_mean.clone(), local.norm.running_var.clone()
    x = F.batch_norm(volume, mean, variance, local.norm.weight, local.norm.bias, training)
    x = F.conv3d(x, local.reduce.weight[..., None, None, None], local.reduce.bias)
    x = F.conv3d(x, local.temporal.weight[..., None, None], local.temporal.bias, padding=(1, 0, 0), groups=x.shape[1])
    x = F.conv3d(x, local.expand.weight[..., None, None, None], local.expand.bias)
    expected = x[..., 0].permute(0, 2, 3, 1)
    out = local(mine)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    weight = randn(*out.shape, seed=4)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(local.norm.running_mean, mean)
    torch.testing.assert_close(local.norm.running_var, variance)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_the_position_encoding_is_one_convolution(frames: int) -> None:
    encoding = randomised(DynamicPositionEncoding(8))
    patches = randn(2, frames, 3, 4, 8)
    expected = F.conv3d(patches.permute(0, 4, 1, 2, 3), encoding.weight, encoding.bias, padding=1, groups=8)
    expected = expected.permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(encoding(patches), expected)  # training: a Conv2d for each frame of the kernel
    with torch.no_grad():
        torch.testing.assert_close(encoding(patches), expected)


def test_registers_take_part_in_the_spatial_attention_only() -> None:
    model, clip = small_model("dinov2", local_blocks="attention"), randn(1, 3, 3, 16, 24)
    before = model(clip)
    with torch.no_grad():
        model.backbone.registers *= -1
    assert not torch.allclose(model(clip), before)

    config, layout = architecture("dinov2", local_blocks="attention"), TokenLayout(1, (2, 3))
    tokens, others = randn(2, 4, 1 + 6 + 4, 32), randn(2, 4, 1 + 6 + 4, 32, seed=2)
    others[:, :, :7] = tokens[:, :, :7]
    block, stage = randomised(LocalUniBlock(config)), randomised(GlobalUniBlock(config))
    mixed = block.mix_time(block.local1, tokens, layout)
    assert torch.equal(mixed[:, :, :7], block.mix_time(block.local1, others, layout)[:, :, :7])
    assert torch.equal(mixed[:, :, [0, 7, 8, 9, 10]], tokens[:, :, [0, 7, 8, 9, 10]])
    assert not torch.equal(mixed, tokens)
    query = randn(2, 1, 32)
    assert torch.equal(stage(query, tokens, layout)[0], stage(query, others, layout)[0])


def test_output_projections_are_zero_at_start() -> None:
    model = UniFormerV2(architecture("temporal"))
    zero = {name for name, parameter in model.named_parameters() if not parameter.any()}
    expected = [
        f"global_blocks.{block}.{layer}.weight" for block in range(2) for layer in ("attention.proj", "mlp.fc2")
    ]
    expected += [f"backbone.blocks.{block}.local{local}.expand.weight" for block in range(3) for local in (1, 2)]
    assert set(expected) <= zero
