"""What the model computes, told apart from how: shapes, invariances, gradients, and the paper's definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from uniformerv2 import ModelConfig, Preprocessing, UniFormerV2, named_config
from uniformerv2.model.attention import CrossAttention, attend
from uniformerv2.model.positions import interpolate_position_embedding
from uniformerv2.model.uniblocks import DynamicPositionEncoding, LocalAggregator
from uniformerv2.model.uniformerv2 import EncodedFrames
from uniformerv2.model.vit import DropPath, PatchEmbedding

TINY = ModelConfig(
    width=32,
    depth=3,
    heads=2,
    patch_size=8,
    image_size=(32, 32),
    local_blocks="attention+mlp",
    global_after=(0, 2),
    num_classes=5,
)


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights everywhere, so that no zero-initialised part hides."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
            elif name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return model


def tiny(**options: object) -> UniFormerV2:
    model = UniFormerV2(replace(TINY, **options))  # type: ignore[arg-type]
    randomise(model)
    return model.eval()


def clips(frames: int = 4, height: int = 32, width: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("downsample", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_any_number_of_frames(frames: int, downsample: bool) -> None:
    model = tiny(temporal_downsample=downsample)
    features = model.forward_features(clips(frames))
    assert features.frame_embeddings.shape == (2, -(-frames // 2) if downsample else frames, 32)
    assert features.pooled.shape == (2, 32)
    assert torch.equal(model(clips(frames)), model.head(features.pooled))


def test_frames_that_are_encoded_one_by_one_make_the_same_clip() -> None:
    model, clip = tiny(local_blocks="none"), clips(4)
    encoded = [model.encode(clip[:, :, frame : frame + 1]) for frame in range(4)]
    stages = tuple(torch.cat(tokens, 1) for tokens in zip(*(one.stages for one in encoded), strict=True))
    frames = torch.cat([one.frame_embeddings for one in encoded], 1)
    together = model.aggregate(EncodedFrames(stages, frames, encoded[0].layout), attention=True)
    whole = model.forward_features(clip, attention=True)
    torch.testing.assert_close(together.pooled, whole.pooled)
    torch.testing.assert_close(together.frame_embeddings, whole.frame_embeddings)
    assert together.attention
    assert whole.attention
    for one, other in zip(together.attention, whole.attention, strict=True):
        torch.testing.assert_close(one.patches, other.patches)


def test_every_clip_is_seen_by_itself() -> None:
    model, clip = tiny(temporal_downsample=True), clips(5, batch=3)
    torch.testing.assert_close(model(clip)[1:2], model(clip[1:2]))


@pytest.mark.parametrize("local_blocks", ["none", "attention", "attention+mlp"])
@pytest.mark.parametrize("fusion", ["sequential", "parallel", "hierarchical_kv", "hierarchical_q"])
@pytest.mark.parametrize("num_queries", [1, 3])
def test_every_choice_trains_every_parameter(local_blocks: str, fusion: str, num_queries: int) -> None:
    model = tiny(local_blocks=local_blocks, fusion=fusion, num_queries=num_queries, temporal_downsample=True).train()
    F.cross_entropy(model(clips()), torch.tensor([0, 3])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_parallel_and_hierarchical_fusions_follow_their_definitions() -> None:
    clip = clips()
    for fusion in ("sequential", "parallel", "hierarchical_kv", "hierarchical_q"):
        model = tiny(fusion=fusion)
        (tokens, layout), seen = model.backbone.embed(clip), []
        for number, block in enumerate(model.backbone.blocks):
            tokens = block(tokens, layout)
            if number in (0, 2):
                seen.append(tokens)
        first, second = model.global_blocks
        learned = model.query.expand(2, -1, -1)
        one = first(learned, seen[0], layout)[0]
        if fusion == "sequential":
            summary = second(one, seen[1], layout)[0].mean(1)
        elif fusion == "parallel":
            summary = model.fusion(torch.cat([one[:, 0], second(learned, seen[1], layout)[0][:, 0]], -1))
        elif fusion == "hierarchical_kv":
            summary = second(learned, seen[1], layout, extra=one)[0].mean(1)
        else:
            summary = second(torch.cat([learned, one], 1), seen[1], layout)[0].mean(1)
        share = model.mix.sigmoid()
        expected = (1 - share) * summary + share * tokens[:, :, 0].mean(1)
        torch.testing.assert_close(model.forward_features(clip).pooled, expected)


def test_frozen_variant_has_no_mix() -> None:
    model = tiny(mix_class_token=False)
    assert model.mix is None
    assert "mix" not in model.state_dict()


def test_without_global_stages_the_class_tokens_are_averaged() -> None:
    features = tiny(global_after=(), local_blocks="none").forward_features(clips())
    torch.testing.assert_close(features.pooled, features.frame_embeddings.mean(1))


@pytest.mark.parametrize("fusion", ["sequential", "hierarchical_kv"])
def test_attention_maps_sum_to_one_and_change_nothing(fusion: str) -> None:
    model, clip = tiny(fusion=fusion, num_queries=2), clips(4, 32, 48)
    features = model.forward_features(clip, attention=True)
    torch.testing.assert_close(features.pooled, model.forward_features(clip).pooled)
    assert features.attention is not None
    assert len(features.attention) == 2
    for number, stage in enumerate(features.attention):
        assert stage.patches.shape == (2, 4, 4, 6)
        assert stage.class_tokens.shape == (2, 4)
        assert stage.previous.shape == (2, 2 if fusion == "hierarchical_kv" and number else 0)
        total = stage.patches.sum((1, 2, 3)) + stage.class_tokens.sum(1) + stage.previous.sum(1)
        torch.testing.assert_close(total, torch.ones(2))


def test_untrained_armed_model_is_the_image_model_in_every_frame() -> None:
    torch.manual_seed(0)
    video = UniFormerV2(replace(TINY, temporal_downsample=False))
    image = UniFormerV2(replace(TINY, local_blocks="none", global_after=()))
    image.backbone.load_state_dict(video.backbone.state_dict(), strict=False)
    clip = clips()
    expected = image.eval().forward_features(clip).frame_embeddings
    torch.testing.assert_close(video.eval().forward_features(clip).frame_embeddings, expected)


def test_only_class_token_and_patches_of_a_non_square_clip_count() -> None:
    """Rows and columns are not mixed up: a wide clip equals the tall one where weights are transposed."""
    model = tiny(image_size=(32, 48))
    assert model(clips(3, 32, 48)).shape == (2, 5)
    assert model.backbone.position_embedding.shape == (1 + 4 * 6, 32)


def test_positions_are_interpolated_over_the_right_axes() -> None:
    rows, columns = 4, 6
    row, column = torch.meshgrid(torch.arange(float(rows)), torch.arange(float(columns)), indexing="ij")
    positions = torch.stack([row.flatten(), column.flatten()], -1)
    positions = torch.cat([torch.full((1, 2), -7.0), positions])
    wider = interpolate_position_embedding(positions, (4, 6), (4, 12))
    assert torch.equal(wider[0], positions[0])
    grid = wider[1:].view(4, 12, 2)

    def cubic(x: float, a: float = -0.75) -> float:  # the kernel of Keys (1981)
        x = abs(x)
        return (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a

    for new, (centre, first) in {4: (1.75, 0), 5: (2.25, 1), 6: (2.75, 1), 7: (3.25, 2)}.items():
        expected = sum(old * cubic(centre - old) for old in range(first, first + 4))
        torch.testing.assert_close(grid[:, new, 1], torch.full((4,), expected))
    torch.testing.assert_close(grid[..., 0], torch.arange(4.0)[:, None].expand(4, 12))  # rows untouched
    assert interpolate_position_embedding(positions, (4, 6), (4, 6)) is positions


@pytest.mark.parametrize("frames", [1, 4, 5])
@pytest.mark.parametrize("downsample", [False, True])
def test_stem_is_the_strided_convolution(downsample: bool, frames: int) -> None:
    stem = PatchEmbedding(replace(TINY, temporal_downsample=downsample, patch_bias=True), Preprocessing())
    randomise(stem)
    clip, kernel = clips(frames, 16, 24), 3 if downsample else 1
    expected = F.conv3d(
        clip, stem.weight, stem.bias, stride=(2 if downsample else 1, 8, 8), padding=(kernel // 2, 0, 0)
    )
    torch.testing.assert_close(stem(clip), expected.flatten(3).permute(0, 2, 3, 1), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("downsample", [False, True])
def test_raw_frames_are_normalised_by_the_model(downsample: bool, order: str) -> None:
    preprocessing = Preprocessing(mean=(0.1, 0.4, 0.7), std=(0.2, 0.3, 0.25), channel_order=order, size=(32, 32))
    model = UniFormerV2(replace(TINY, temporal_downsample=downsample), preprocessing)
    randomise(model).eval()
    raw = torch.randint(0, 256, (2, 3, 5, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    values = raw.flip(1) if order == "bgr" else raw
    mean, std = (torch.tensor(x).view(1, 3, 1, 1, 1) for x in (preprocessing.mean, preprocessing.std))
    torch.testing.assert_close(model(raw), model((values / 255 - mean) / std), atol=1e-4, rtol=1e-4)


def test_local_aggregator_is_the_published_convolutions() -> None:
    """Against BatchNorm3d and Conv3d, in eval and in training, output, gradient and running statistics."""
    local = randomise(LocalAggregator(TINY))
    patches = torch.randn(2, 5, 6, 32, generator=torch.Generator().manual_seed(3))
    for training in (False, True):
        local.train(training)
        mine, theirs = patches.clone().requires_grad_(), patches.clone().requires_grad_()
        volume = theirs.permute(0, 3, 1, 2)[..., None].contiguous()  # (batch, width, frames, patches, 1)
        mean, variance = local.norm.running_mean.clone(), local.norm.running_var.clone()
        x = F.batch_norm(volume, mean, variance, local.norm.weight, local.norm.bias, training)
        x = F.conv3d(x, local.reduce.weight[..., None, None, None], local.reduce.bias)
        x = F.conv3d(
            x, local.temporal.weight[..., None, None], local.temporal.bias, padding=(1, 0, 0), groups=x.shape[1]
        )
        x = F.conv3d(x, local.expand.weight[..., None, None, None], local.expand.bias)
        out = local(mine)
        torch.testing.assert_close(out, x[..., 0].permute(0, 2, 3, 1), atol=1e-4, rtol=1e-4)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(4))
        (out * weight).sum().backward()
        (x[..., 0].permute(0, 2, 3, 1) * weight).sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(local.norm.running_mean, mean)
        torch.testing.assert_close(local.norm.running_var, variance)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_position_encoding_is_one_convolution_by_either_way(frames: int) -> None:
    encoding = DynamicPositionEncoding(8)
    randomise(encoding)
    patches = torch.randn(2, frames, 3, 4, 8, generator=torch.Generator().manual_seed(5))
    expected = F.conv3d(patches.permute(0, 4, 1, 2, 3), encoding.weight, encoding.bias, padding=1, groups=8)
    expected = expected.permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(encoding(patches), expected)  # training: one plane at a time
    with torch.no_grad():
        torch.testing.assert_close(encoding(patches), expected)


def test_cross_attention_is_plain_attention() -> None:
    """Keys and values that are never formed give what nn.MultiheadAttention gives, gradients included."""
    ours, theirs = CrossAttention(32, 4), torch.nn.MultiheadAttention(32, 4, batch_first=True)
    randomise(ours)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.proj.weight,
            "out_proj.bias": ours.proj.bias,
        }
    )
    generator = torch.Generator().manual_seed(6)
    query, context = torch.randn(2, 3, 32, generator=generator), torch.randn(2, 11, 32, generator=generator)
    expected, weights = theirs(query, context, context)
    expected.square().sum().backward()
    for wanted in (False, True):
        ours.zero_grad()
        out, averaged = ours.cross(query, context, weights=wanted)
        out.square().sum().backward()
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.qkv.weight.grad, theirs.in_proj_weight.grad, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(averaged, weights.mean(1))


def test_recomputing_activations_changes_nothing() -> None:
    """Neither gradients nor BatchNorm statistics, drop path included."""
    results = []
    for recomputed in (0, 3):
        model = tiny(checkpoint_blocks=recomputed, drop_path=0.5, head_dropout=0.5).train()
        torch.manual_seed(0)
        F.cross_entropy(model(clips()), torch.tensor([1, 2])).backward()
        results.append(
            ({n: p.grad for n, p in model.named_parameters()}, {n: b.clone() for n, b in model.named_buffers()})
        )
    for plain, again in zip(*results, strict=True):
        assert plain.keys() == again.keys()
        for name in plain:
            torch.testing.assert_close(plain[name], again[name], msg=name)


def test_recomputing_saves_memory_of_saved_tensors() -> None:
    saved = []
    for recomputed in (0, 3):
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        model = tiny(checkpoint_blocks=recomputed, local_blocks="none").train()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(clips(8)).sum()
        saved.append(total)
    assert saved[1] < 0.6 * saved[0]


def test_drop_path_drops_whole_clips_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    out = DropPath(0.25).train()(torch.ones(4000, 2, 3))
    kept = out[:, 0, 0] != 0
    assert torch.equal(out, kept[:, None, None].expand(4000, 2, 3) / 0.75)
    assert abs(kept.float().mean().item() - 0.75) < 0.03  # four standard deviations
    assert torch.equal(DropPath(0.25).eval()(out), out)


def test_dropouts_act_in_training_only() -> None:
    model = tiny(head_dropout=0.5, global_dropout=0.5, drop_path=0.3, global_drop_path=0.3)
    clip = clips()
    assert torch.equal(model(clip), model(clip))
    model.train()
    assert not torch.equal(model(clip), model(clip))


def test_output_projections_start_at_zero() -> None:
    model = UniFormerV2(replace(TINY, temporal_downsample=True))
    zero = [name for name, parameter in model.named_parameters() if not parameter.any()]
    for block in ("global_blocks.0", "global_blocks.1"):
        assert {f"{block}.attention.proj.weight", f"{block}.mlp.fc2.weight"} <= set(zero)
    for block in range(3):
        assert {f"backbone.blocks.{block}.local{number}.expand.weight" for number in (1, 2)} <= set(zero)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2, 3, 32, 32), "(batch, 3, frames, height, width)"),
        ((2, 4, 4, 32, 32), "(2, 4, 4, 32, 32)"),
        ((2, 3, 0, 32, 32), "(2, 3, 0, 32, 32)"),
        ((2, 3, 4, 30, 32), "30x32"),
    ],
)
def test_wrong_clips_are_named(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match=r"clip") as error:
        tiny()(torch.zeros(shape))
    assert said in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": 5},
        {"image_size": (30, 32)},
        {"local_kernel": 2},
        {"global_after": (2, 1)},
        {"global_after": (0, 3)},
        {"num_queries": 0},
        {"num_classes": 0},
        {"global_after": (), "mix_class_token": False},
    ],
)
def test_contradictions_in_the_config_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(TINY, **wrong)  # type: ignore[arg-type]


def test_layouts_of_the_paper() -> None:
    assert named_config("B/16").global_after == (8, 9, 10, 11)
    assert named_config("L/14@336").image_size == (336, 336)
    temporal = named_config("L/14", "temporal", num_classes=174)
    assert temporal.global_after == tuple(range(8, 24))
    assert temporal.local_blocks == "attention+mlp"
    assert temporal.temporal_downsample
    with pytest.raises(ValueError, match="B/32"):
        named_config("B/32")


def test_labels_must_match_the_head() -> None:
    with pytest.raises(ValueError, match="2 labels"):
        UniFormerV2(TINY, labels=["a", "b"])


def test_bfloat16_weights_run() -> None:
    model = tiny(temporal_downsample=True)
    expected = model(clips())
    assert (model.bfloat16()(clips().bfloat16()).float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_bfloat16_training_takes_the_same_gradients() -> None:
    """Plain and fused attention agree: the one is used where the other is slow (bfloat16 training on a CPU)."""
    generator = torch.Generator().manual_seed(7)
    tensors = [torch.randn(2, 2, 9, 16, generator=generator) for _ in range(3)]
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [tensor.detach().clone().to(dtype).requires_grad_() for tensor in tensors]
        out = attend(*inputs, scale=0.3)
        out.float().square().sum().backward()
        results.append([out.detach(), *(tensor.grad for tensor in inputs)])
    for full, half in zip(*results, strict=True):
        torch.testing.assert_close(half.float(), full, atol=0.1, rtol=0.1)
