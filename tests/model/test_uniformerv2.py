"""The whole model: shapes, invariances, gradients, and the paper's definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import ARCHITECTURES, TEMPORAL, architecture, randn, random_pixels, small_model
from uniformerv2 import UniFormerV2
from uniformerv2.model.uniformerv2 import EncodedFrames


def clips(frames: int = 4, *, batch: int = 2, size: tuple[int, int] = (16, 24)) -> Tensor:
    return randn(batch, 3, frames, *size)


@pytest.mark.parametrize("downsample", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_any_number_of_frames(frames: int, downsample: bool) -> None:
    model = small_model("temporal", temporal_downsample=downsample)
    features = model.forward_features(clips(frames))
    assert features.frame_embeddings.shape == (2, -(-frames // 2) if downsample else frames, 32)
    assert features.pooled.shape == (2, 32)
    assert torch.equal(model(clips(frames)), model.head(features.pooled))


@pytest.mark.parametrize(
    ("name", "options"),
    # without stages nothing depends on the patches of the last block
    [*((name, {}) for name in ARCHITECTURES), *((name, TEMPORAL) for name in ARCHITECTURES if name != "no stages")],
)
def test_every_architecture_trains_every_parameter_at_any_size(name: str, options: dict[str, object]) -> None:
    model = small_model(name, **options).train()
    for size in ((16, 24), (32, 16)):
        model.zero_grad()
        F.cross_entropy(model(clips(5, size=size)), torch.tensor([0, 3])).backward()
        for parameter_name, parameter in model.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name
            assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("local_blocks", ["none", "attention", "attention+mlp"])
@pytest.mark.parametrize("fusion", ["sequential", "parallel", "hierarchical_kv", "hierarchical_q"])
@pytest.mark.parametrize("num_queries", [1, 3])
def test_every_choice_trains_every_parameter(local_blocks: str, fusion: str, num_queries: int) -> None:
    options = {"local_blocks": local_blocks, "fusion": fusion, "num_queries": num_queries}
    test_every_architecture_trains_every_parameter_at_any_size("temporal", options)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_uint8_frames_and_autocast_work_for_every_architecture(name: str) -> None:
    model, raw = small_model(name), random_pixels(2, 3, 3, 16, 24)
    mean, std = (torch.tensor(x).view(3, 1, 1, 1) for x in (model.preprocessing.mean, model.preprocessing.std))
    with torch.no_grad():
        torch.testing.assert_close(model(raw), model((raw.flip(1) / 255 - mean) / std), atol=1e-4, rtol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert model(raw).isfinite().all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_attention_maps_sum_to_one_and_change_nothing(name: str) -> None:
    model, clip = small_model(name), clips(4, size=(16, 32))
    features = model.forward_features(clip, attention=True)
    torch.testing.assert_close(features.pooled, model.forward_features(clip).pooled)
    assert len(features.attention) == len(model.config.global_after)
    frames = features.frame_embeddings.shape[1]
    for number, stage in enumerate(features.attention):
        assert stage.patches.shape == (2, frames, 2, 4)
        assert stage.class_tokens.shape == (2, frames)
        assert stage.class_tokens.any() == model.config.class_token
        assert stage.previous.shape == (2, 2 if model.config.fusion == "hierarchical_kv" and number else 0)
        total = stage.patches.sum((1, 2, 3)) + stage.class_tokens.sum(1) + stage.previous.sum(1)
        torch.testing.assert_close(total, torch.ones(2))


def test_frames_that_are_encoded_one_by_one_make_the_same_clip() -> None:
    model, clip = small_model(), clips(4)
    encoded = [model.encode(frame) for frame in clip.split(1, dim=2)]
    stages = tuple(torch.cat(tokens, 1) for tokens in zip(*(frame.stages for frame in encoded), strict=True))
    frames = torch.cat([frame.frame_embeddings for frame in encoded], 1)
    together = model.aggregate(EncodedFrames(stages, frames, encoded[0].layout), attention=True)
    whole = model.forward_features(clip, attention=True)
    torch.testing.assert_close(together.pooled, whole.pooled)
    torch.testing.assert_close(together.frame_embeddings, whole.frame_embeddings)
    assert together.attention
    assert whole.attention
    for one, other in zip(together.attention, whole.attention, strict=True):
        torch.testing.assert_close(one.patches, other.patches)


def test_clips_of_a_batch_are_independent() -> None:
    model, clip = small_model("temporal"), clips(5, batch=3)
    torch.testing.assert_close(model(clip)[1:2], model(clip[1:2]))


@pytest.mark.parametrize("fusion", ["sequential", "parallel", "hierarchical_kv", "hierarchical_q"])
def test_fusions_follow_their_definitions(fusion: str) -> None:
    model, clip = small_model("temporal", fusion=fusion), clips()
    (tokens, layout), seen = model.backbone.embed(clip), []
    for number, block in enumerate(model.backbone.blocks):
        tokens = block(tokens, layout)
        if number in (0, 2):
            seen.append(tokens)
    first, second = model.global_blocks
    learned = model.query.expand(2, -1, -1)
    one = first(learned, seen[0], layout)[0]
    if fusion == "sequential":
        global_token = second(one, seen[1], layout)[0].mean(1)
    elif fusion == "parallel":
        global_token = model.fusion(torch.cat([one[:, 0], second(learned, seen[1], layout)[0][:, 0]], -1))
    elif fusion == "hierarchical_kv":
        global_token = second(learned, seen[1], layout, extra=one)[0].mean(1)
    else:
        global_token = second(torch.cat([learned, one], 1), seen[1], layout)[0].mean(1)
    share = model.mix.sigmoid()
    expected = (1 - share) * global_token + share * tokens[:, :, 0].mean(1)
    torch.testing.assert_close(model.forward_features(clip).pooled, expected)


def test_the_frozen_variant_mixes_no_class_tokens() -> None:
    model = small_model("frozen")
    assert model.mix is None
    assert "mix" not in model.state_dict()


def test_without_global_stages_the_class_tokens_are_averaged() -> None:
    features = small_model("no stages").forward_features(clips())
    torch.testing.assert_close(features.pooled, features.frame_embeddings.mean(1))


def test_an_untrained_video_model_is_the_image_model_in_every_frame() -> None:
    torch.manual_seed(0)
    video = UniFormerV2(architecture("temporal", temporal_downsample=False)).eval()
    image = UniFormerV2(architecture("no stages")).eval()
    image.backbone.load_state_dict(video.backbone.state_dict(), strict=False)
    expected = image.forward_features(clips()).frame_embeddings
    torch.testing.assert_close(video.forward_features(clips()).frame_embeddings, expected)


def test_recomputing_activations_changes_nothing() -> None:
    """Neither gradients nor BatchNorm statistics, drop path included."""
    results = []
    for blocks in (0, 3):
        model = small_model("temporal", checkpoint_blocks=blocks, drop_path=0.5, head_dropout=0.5).train()
        torch.manual_seed(0)
        F.cross_entropy(model(clips()), torch.tensor([1, 2])).backward()
        results.append(({n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers())))
    torch.testing.assert_close(results[0], results[1])


def test_recomputing_activations_saves_memory() -> None:
    saved = {0: 0, 3: 0}
    for blocks in saved:

        def count(tensor: Tensor, blocks: int = blocks) -> Tensor:
            saved[blocks] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            small_model(checkpoint_blocks=blocks).train()(clips(8)).sum()
    assert saved[3] < 0.6 * saved[0]


@pytest.mark.parametrize("name", ["scene", "eva02"])
def test_norms_and_activations_are_computed_again_in_the_backward_pass(name: str) -> None:
    model, calls = small_model(name).train(), []
    block = model.backbone.image_blocks()[1]
    for part in (block.norm1, block.norm2, block.mlp.activation):
        part.register_forward_hook(lambda part, inputs, output: calls.append(part))
    model(clips()).sum().backward()
    assert calls == [block.norm1, block.norm2, block.mlp.activation, block.mlp.activation, block.norm2, block.norm1]


def test_dropouts_act_in_training_only() -> None:
    model = small_model("temporal", head_dropout=0.5, global_dropout=0.5, drop_path=0.3, global_drop_path=0.3)
    clip = clips()
    assert torch.equal(model(clip), model(clip))
    model.train()
    assert not torch.equal(model(clip), model(clip))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 32, 32), r"clip must be \(batch, 3, frames, height, width\)"),
        ((2, 4, 4, 32, 32), r"clip .*\(2, 4, 4, 32, 32\)"),
        ((2, 3, 0, 32, 32), r"clip .*\(2, 3, 0, 32, 32\)"),
        ((2, 3, 4, 30, 32), "clip of 30x32"),
    ],
)
def test_clips_of_another_shape_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model()(torch.zeros(shape))


def test_labels_must_match_the_head() -> None:
    with pytest.raises(ValueError, match="2 labels"):
        UniFormerV2(architecture("scene"), labels=["a", "b"])


def test_bfloat16_weights_run() -> None:
    model = small_model("temporal")
    expected = model(clips())
    assert (model.bfloat16()(clips().bfloat16()).float() - expected).abs().max() < 0.1 * expected.abs().max()
