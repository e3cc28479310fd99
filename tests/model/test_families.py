"""What the families of image transformers add to the plain one, each against its definition."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor, nn

from uniformerv2 import ModelConfig, Preprocessing
from uniformerv2.model.attention import attend
from uniformerv2.model.config import RotaryEmbedding
from uniformerv2.model.positions import (
    TokenLayout,
    apply_rotary,
    interpolate_relative_bias,
    relative_position_index,
    rotary_table,
)
from uniformerv2.model.uniblocks import GlobalUniBlock, LocalUniBlock
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.model.vit import MLP, AttentionPool

PLAIN = ModelConfig(
    width=32, depth=3, heads=2, patch_size=8, image_size=(16, 24), global_after=(1, 2), num_classes=5, pre_norm=False
)
EVA, DINOV3 = RotaryEmbedding(), RotaryEmbedding(100.0, (4 * math.pi, 4 * math.pi), 0.5, -2 * math.pi, halves=True)
FAMILIES = {
    "plain": {"post_norm": True, "activation": "gelu"},
    "clip": {"pre_norm": True, "post_norm": True},
    "siglip": {
        "class_token": False,
        "pool": "attention",
        "post_norm": True,
        "pool_heads": 4,
        "activation": "gelu_tanh",
    },
    "mean": {"class_token": False, "pool": "mean", "post_norm": True},
    "beit": {
        "relative_bias": True,
        "position_embedding": False,
        "layer_scale": True,
        "pool": "mean",
        "pool_norm": True,
    },
    "eva02-e": {"norm_after": True, "post_norm": True, "activation": "gelu"},
    "dinov2": {"layer_scale": True, "register_tokens": 4, "gated_mlp": True, "post_norm": True},
    "dinov3": {"layer_scale": True, "register_tokens": 4, "rotary": DINOV3, "position_embedding": False},
    "eva02": {"rotary": EVA, "gated_mlp": True, "attention_norm": True, "mlp_norm": True, "pool": "mean"},
    "perception": {
        "rotary": RotaryEmbedding(span=(2.0, 3.0), offset=1.0, columns_first=True),
        "pre_norm": True,
        "post_norm": True,
        "pool": "attention",
    },
}
TEMPORAL = {"local_blocks": "attention+mlp", "temporal_downsample": True}


def family(name: str, **options: object) -> ModelConfig:
    return replace(PLAIN, **FAMILIES[name], **options)  # type: ignore[arg-type]


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temporal", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_at_any_size(name: str, temporal: bool) -> None:
    model = UniFormerV2(family(name, **TEMPORAL if temporal else {})).train()
    randomise(model)
    for size in ((16, 24), (32, 16)):
        model.zero_grad()
        logits = model(draw(2, 3, 5, *size))
        assert logits.shape == (2, 5)
        logits.square().sum().backward()
        idle = [key for key, parameter in model.named_parameters() if parameter.grad is None]
        assert not idle
    assert model.forward_features(draw(2, 3, 4, 16, 24)).frame_embeddings.shape == (2, 2 if temporal else 4, 32)


@pytest.mark.parametrize("name", FAMILIES)
def test_raw_frames_and_bfloat16_work_for_every_family(name: str) -> None:
    model = randomise(UniFormerV2(family(name), Preprocessing(size=(16, 24)))).eval()
    raw = torch.randint(0, 256, (2, 3, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(model(raw), model((raw / 255 - 0.45) / 0.225), atol=1e-4, rtol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert model(raw).isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_maps_sum_to_one_without_registers(name: str) -> None:
    model = randomise(UniFormerV2(family(name))).eval()
    stages = model.forward_features(draw(2, 3, 3, 16, 24), attention=True).attention
    assert len(stages) == 2
    for stage in stages:
        total = stage.patches.sum((1, 2, 3)) + stage.class_tokens.sum(1) + stage.previous.sum(1)
        torch.testing.assert_close(total, torch.ones(2))
        assert stage.class_tokens.any() == model.config.class_token


@pytest.mark.parametrize("name", FAMILIES)
def test_the_architecture_survives_json(name: str) -> None:
    config = family(name)
    assert ModelConfig.from_fields(json.loads(json.dumps(asdict(config)))) == config


def test_registers_are_seen_by_the_spatial_attention_only() -> None:
    model = randomise(UniFormerV2(family("dinov2", local_blocks="attention"))).eval()
    clip = draw(1, 3, 3, 16, 24)
    before = model(clip)
    with torch.no_grad():
        model.backbone.registers *= -1
    assert not torch.allclose(model(clip), before)

    config, layout = family("dinov2"), TokenLayout(1, (2, 3))
    tokens, others = draw(2, 4, 1 + 6 + 4, 32), draw(2, 4, 1 + 6 + 4, 32)
    others[:, :, :7] = tokens[:, :, :7]
    block, stage = randomise(LocalUniBlock(config)), randomise(GlobalUniBlock(config))
    mixed = block.mix_time(block.local1, tokens, layout)
    assert torch.equal(mixed[:, :, :7], block.mix_time(block.local1, others, layout)[:, :, :7])
    assert torch.equal(mixed[:, :, [0, 7, 8, 9, 10]], tokens[:, :, [0, 7, 8, 9, 10]])
    assert not torch.equal(mixed, tokens)
    query = draw(2, 1, 32)
    assert torch.equal(stage(query, tokens, layout)[0], stage(query, others, layout)[0])


def test_rotation_turns_pairs_of_channels_as_complex_numbers() -> None:
    grid, channels = (3, 4), 16
    for rotary in (EVA, replace(EVA, offset=1.0, columns_first=True), replace(EVA, halves=True)):
        layout = TokenLayout(1, grid, rotary_table(rotary, grid, channels, torch.device("cpu")))
        x = draw(2, 5, 1 + 12 + 2, channels)
        turned = apply_rotary(x, layout, halves=rotary.halves)
        assert torch.equal(turned[:, :, 0], x[:, :, 0])
        assert torch.equal(turned[:, :, 13:], x[:, :, 13:])
        for patch in range(12):
            row, column = (
                16 * (place + rotary.offset) / size for place, size in zip(divmod(patch, 4), grid, strict=True)
            )
            positions = [column] * 4 + [row] * 4 if rotary.columns_first else [row] * 4 + [column] * 4
            angles = torch.tensor([p * 10000 ** (-(pair % 4) / 4) for pair, p in enumerate(positions)])
            pairs = [(c, c + 8) if rotary.halves else (2 * c, 2 * c + 1) for c in range(8)]
            before, after = (
                torch.stack([torch.complex(t[..., a], t[..., b]) for a, b in pairs], -1)
                for t in (x[:, :, 1 + patch], turned[:, :, 1 + patch])
            )
            torch.testing.assert_close(after, before * torch.polar(torch.ones(8), angles), atol=1e-5, rtol=1e-4)


def test_dinov3_spans_a_turn_each_way_around_the_centre() -> None:
    cosine, sine = rotary_table(DINOV3, (2, 5), 16, torch.device("cpu"))
    for patch in range(10):
        row, column = divmod(patch, 5)
        # coordinates in [-1, 1], the pixel centres half a patch inside; periods from 1 up to 100 ** (3 / 4)
        coordinates = [2 * (row + 0.5) / 2 - 1] * 4 + [2 * (column + 0.5) / 5 - 1] * 4
        angles = [2 * math.pi * c / 100 ** ((pair % 4) / 4) for pair, c in enumerate(coordinates)]
        torch.testing.assert_close(cosine[patch], torch.tensor(angles * 2).cos(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(sine[patch], torch.tensor(angles * 2).sin(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("classes", [0, 1])
def test_relative_biases_belong_to_distances(classes: int) -> None:
    rows, columns = 3, 4
    table = torch.tensor([100 * down + across for down in range(-2, 3) for across in range(-3, 4)] + [901, 902, 903])
    bias = table[relative_position_index((rows, columns), classes, torch.device("cpu"))]
    for query in range(rows * columns):
        for key in range(rows * columns):
            (r, c), (s, d) = divmod(query, columns), divmod(key, columns)
            assert bias[classes + query, classes + key] == 100 * (r - s) + (c - d)
    if classes:
        assert (bias[0, 1:] == 901).all()  # from the class token
        assert (bias[1:, 0] == 902).all()  # to it
        assert bias[0, 0] == 903


def test_relative_biases_are_interpolated_over_distances() -> None:
    distances = torch.stack(torch.meshgrid(torch.arange(-3.0, 4), torch.arange(-3.0, 4), indexing="ij"), -1).view(-1, 2)
    table = torch.cat([distances, torch.full((3, 2), 7.0)])
    same = interpolate_relative_bias(table, (4, 4), (4, 4))
    assert same is table
    wider = interpolate_relative_bias(table, (4, 4), (4, 8))
    assert torch.equal(wider[-3:], table[-3:])
    grid = wider[:-3].view(7, 15, 2)
    torch.testing.assert_close(grid[..., 0], torch.arange(-3.0, 4)[:, None].expand(7, 15), atol=1e-5, rtol=1e-5)
    # a ramp stays one to within the overshoot of torch's cubic, and opposite distances stay opposite
    torch.testing.assert_close(grid[:, 4:11, 1], (torch.arange(-3.0, 4) * 7 / 15).expand(7, 7), atol=0.03, rtol=0)
    torch.testing.assert_close(grid[..., 1], -grid[..., 1].flip(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("trains", [False, True])
def test_attention_adds_its_bias_to_the_scores(trains: bool) -> None:
    query, key, value = (draw(2, 3, 5, 8, seed=seed).requires_grad_(trains) for seed in range(3))
    bias = draw(3, 5, 5, seed=3)
    expected = (query @ key.transpose(-1, -2) / 8**0.5 + bias).softmax(-1) @ value
    torch.testing.assert_close(attend(query, key, value, scale=8**-0.5, bias=bias), expected)
    low = [x.bfloat16() for x in (query, key, value, bias)]
    torch.testing.assert_close(attend(*low[:3], scale=8**-0.5, bias=low[3]), expected.bfloat16(), atol=0.05, rtol=0.05)


def test_gated_mlp_is_swiglu_behind_a_norm() -> None:
    mlp = randomise(MLP(6, 1.5, "gelu", gated=True, norm_eps=1e-6))
    x = draw(4, 6)
    gate, value = (x @ mlp.fc1.weight.T + mlp.fc1.bias).split(9, dim=-1)
    hidden = gate * torch.sigmoid(gate) * value
    hidden = (hidden - hidden.mean(-1, keepdim=True)) / (hidden.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    expected = (hidden * mlp.norm.weight + mlp.norm.bias) @ mlp.fc2.weight.T + mlp.fc2.bias
    torch.testing.assert_close(mlp(x), expected, atol=1e-5, rtol=1e-4)


def test_attention_pool_is_multihead_attention_and_an_mlp() -> None:
    pool = randomise(AttentionPool(family("siglip")))
    theirs = nn.MultiheadAttention(32, 4, batch_first=True)
    ours = pool.attention
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.proj.weight,
            "out_proj.bias": ours.proj.bias,
        }
    )
    tokens = draw(2, 3, 7, 32)
    attended = theirs(pool.query.expand(6, 1, 32), tokens.flatten(0, 1), tokens.flatten(0, 1))[0][:, 0]
    expected = (attended + pool.mlp(pool.norm(attended))).view(2, 3, 32)
    torch.testing.assert_close(pool(tokens), expected, atol=1e-4, rtol=1e-4)


def test_layer_scale_multiplies_both_residuals() -> None:
    model = randomise(UniFormerV2(family("beit"))).eval()
    block, (tokens, layout) = model.backbone.blocks[0], model.backbone.embed(draw(1, 3, 2, 16, 24))
    space = tokens + block.attention(block.norm1(tokens), layout) * block.scale1
    torch.testing.assert_close(block(tokens, layout), space + block.mlp(block.norm2(space)) * block.scale2)


def test_norms_may_come_behind_the_layers() -> None:
    model = randomise(UniFormerV2(family("eva02-e"))).eval()
    block, (tokens, layout) = model.backbone.blocks[0], model.backbone.embed(draw(1, 3, 2, 16, 24))
    space = tokens + block.norm1(block.attention(tokens, layout))
    torch.testing.assert_close(block(tokens, layout), space + block.norm2(block.mlp(space)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"class_token": False}, "needs a class token"),
        ({"pool": "max"}, "class_token, mean or attention, got 'max'"),
        ({"rotary": EVA, "heads": 16}, "multiple of 4 channels, got 2"),
        ({"pool_heads": 5}, "pool_heads 5"),
        ({"relative_bias": True, "register_tokens": 4}, "relative_bias"),
    ],
)
def test_contradictions_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=r"class|pool|rotary|relative") as error:
        replace(PLAIN, **options)  # type: ignore[arg-type]
    assert said in str(error.value)
