"""Attention against its definition and nn.MultiheadAttention."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import architecture, randn, randomised
from uniformerv2.model.attention import CrossAttention
from uniformerv2.model.kernels import attend
from uniformerv2.model.vit import AttentionPool


@pytest.mark.parametrize("trains", [False, True])
def test_a_bias_is_added_to_the_scores(trains: bool) -> None:
    query, key, value = (randn(2, 3, 5, 8, seed=seed).requires_grad_(trains) for seed in range(3))
    bias = randn(3, 5, 5, seed=3)
    expected = (query @ key.transpose(-1, -2) / 8**0.5 + bias).softmax(-1) @ value
    torch.testing.assert_close(attend(query, key, value, scale=8**-0.5, bias=bias), expected)
    low = [x.bfloat16() for x in (query, key, value, bias)]
    torch.testing.assert_close(attend(*low[:3], scale=8**-0.5, bias=low[3]), expected.bfloat16(), atol=0.05, rtol=0.05)


def test_gradients_in_bfloat16_are_those_of_float32() -> None:
    """bfloat16 on a CPU is computed by plain products, float32 by a fused kernel."""
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [randn(2, 2, 9, 16, seed=seed).to(dtype).requires_grad_() for seed in range(3)]
        out = attend(*inputs, scale=0.3)
        out.float().square().sum().backward()
        results.append([out.detach(), *(tensor.grad for tensor in inputs)])
    for full, half in zip(*results, strict=True):
        torch.testing.assert_close(half.float(), full, atol=0.1, rtol=0.1)


def multihead_attention(ours: CrossAttention, width: int) -> nn.MultiheadAttention:
    """PyTorch's own with the same weights."""
    theirs = nn.MultiheadAttention(width, ours.heads, batch_first=True)
    names = {"in_proj_weight": ours.qkv.weight, "in_proj_bias": ours.qkv.bias}
    theirs.load_state_dict({**names, "out_proj.weight": ours.proj.weight, "out_proj.bias": ours.proj.bias})
    return theirs


def test_cross_attention_is_multihead_attention_with_its_gradients() -> None:
    ours = randomised(CrossAttention(32, 4))
    theirs = multihead_attention(ours, 32)
    query, context = randn(2, 3, 32), randn(2, 11, 32, seed=2)
    expected, weights = theirs(query, context, context)
    expected.square().sum().backward()
    for wanted in (False, True):
        ours.zero_grad()
        out, averaged = ours.cross(query, context, weights=wanted)
        out.square().sum().backward()
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.qkv.weight.grad, theirs.in_proj_weight.grad, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(averaged, weights.mean(1))


def test_attention_pool_is_multihead_attention_and_an_mlp() -> None:
    pool = randomised(AttentionPool(architecture("siglip")))
    tokens = randn(2, 3, 7, 32)
    context = tokens.flatten(0, 1)
    attended = multihead_attention(pool.attention, 32)(pool.query.expand(6, 1, 32), context, context)[0][:, 0]
    expected = (attended + pool.mlp(pool.norm(attended))).view(2, 3, 32)
    torch.testing.assert_close(pool(tokens), expected, atol=1e-4, rtol=1e-4)
