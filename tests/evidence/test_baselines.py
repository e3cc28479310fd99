"""Divided and joint space-time attention: as transformers has them, as costly as ours, and trained as ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from evidence.baselines import NEAR, SpaceTimeTransformer, count_multiply_adds
from evidence.cells import cells_of, model_config
from evidence.claims import CLAIMS, Architecture, Variant
from evidence.data import DATA_SETS, DataSet
from evidence.running import run_cell
from helpers import noise, write_video
from models import BASE, randn, randomised
from uniformerv2 import Annotation, Preprocessing, UniFormerV2
from uniformerv2.model import counting

FRAMES = 3
IMAGE = replace(
    BASE, depth=2, image_size=(16, 16), global_after=(), pre_norm=False, post_norm=True, patch_bias=True,
    activation="gelu",
)  # fmt: skip
ARCHITECTURES: tuple[Architecture, ...] = ("divided attention", "joint attention")
VARIANTS = [variant for variant in CLAIMS["local_block"].variants if variant.architecture]


def image_model(num_frames: int = FRAMES) -> UniFormerV2:
    return randomised(UniFormerV2(IMAGE, Preprocessing(num_frames, size=(16, 16)))).eval()


def model_of(architecture: Architecture, num_frames: int = FRAMES) -> SpaceTimeTransformer:
    return SpaceTimeTransformer(image_model(num_frames), architecture).eval()


def clip(frames: int = FRAMES) -> Tensor:
    return randn(2, 3, frames, 16, 16)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_frame_is_first_classified_as_by_the_image_model(architecture: Architecture) -> None:
    torch.testing.assert_close(model_of(architecture, 1)(clip(1)), image_model(1)(clip(1)))


def test_divided_attention_first_sees_each_frame_as_the_image_model_does() -> None:
    """Of a still, the updates of the class token are equal in all frames, and so is their mean."""
    still = clip(1).expand(-1, -1, FRAMES, -1, -1)
    torch.testing.assert_close(model_of("divided attention")(still), image_model()(still))
    block, tokens = model_of("divided attention").backbone.blocks[0], randn(1, 1, 1 + FRAMES * 4, 32)
    _, layout = image_model().backbone.embed(clip())
    # with the class token given, the patches of moving pictures are updated as in the image model, too
    frames = torch.cat([tokens[:, :, :1].expand(-1, FRAMES, -1, -1), tokens[:, 0, 1:].unflatten(1, (FRAMES, 4))], dim=2)
    expected = image_model().backbone.blocks[0](frames, layout)[:, :, 1:]
    torch.testing.assert_close(block(tokens, layout)[:, 0, 1:].unflatten(1, (FRAMES, 4)), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_order_counts_once_a_step_is_taken(architecture: Architecture) -> None:
    """In float64: all times begin with the same embedding, and differ little after one step."""
    model, moving = model_of(architecture).double(), clip().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def change() -> float:
        return (model(moving) - model(moving.flip(2))).abs().max().item()

    assert change() < 1e-14
    nn.functional.cross_entropy(model(moving), torch.tensor([0, 3])).backward()
    for name, parameter in model.named_parameters():
        if "time_embedding" in name or "time_output" in name:
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 1e-6
    optimizer.step()
    assert change() > 1e-6


@pytest.mark.parametrize(
    ("architecture", "name"), [("divided attention", "divided_space_time"), ("joint attention", "joint_space_time")]
)
def test_it_computes_what_transformers_does(architecture: Architecture, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.TimesformerConfig(
        **{"image_size": 16, "patch_size": 8, "num_frames": FRAMES, "hidden_size": 32, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "intermediate_size": 128, "layer_norm_eps": IMAGE.norm_eps},
        attention_type=name,
    )
    model, theirs = randomised(model_of(architecture)), transformers.TimesformerModel(config).eval()
    theirs.load_state_dict(names_of_transformers(model))
    expected = theirs(clip().transpose(1, 2)).last_hidden_state[:, 0]
    torch.testing.assert_close(model.forward_features(clip()).pooled, expected, rtol=1e-4, atol=1e-4)


def names_of_transformers(model: SpaceTimeTransformer) -> dict[str, Tensor]:
    backbone = model.backbone
    assert backbone.class_token is not None
    assert backbone.position_embedding is not None
    embeddings = {
        "cls_token": backbone.class_token[None, None],
        "position_embeddings": backbone.position_embedding[None],
        "time_embeddings": model.time_embedding[None],
        "patch_embeddings.projection.weight": backbone.patch_embedding.weight[:, :, 0],
        "patch_embeddings.projection.bias": backbone.patch_embedding.bias,
    }
    state = {f"embeddings.{name}": tensor for name, tensor in embeddings.items()}
    renamed = {
        "blocks.": "encoder.layer.", "time_norm": "temporal_layernorm", "time_attention": "temporal_attention",
        "time_output": "temporal_dense", "norm1": "layernorm_before", "norm2": "layernorm_after",
        "attention.qkv": "attention.attention.qkv", "attention.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense", "post_norm": "layernorm",
    }  # fmt: skip
    for name, tensor in backbone.state_dict().items():
        if name.startswith(("blocks.", "post_norm.")):
            for ours, theirs in renamed.items():
                name = name.replace(ours, theirs)
            state[name] = tensor
    return cast("dict[str, Tensor]", state)


# --- equal cost


def test_multiply_adds_counted_by_hand() -> None:
    width, frames, patches = 32, 3, 4
    stem_and_head = frames * patches * 3 * 8 * 8 * width + width * 5
    mlp = (1 + frames * patches) * 8 * width * width
    projections = 4 * width * width
    joint = 13 * projections + 2 * 13 * 13 * width
    space = frames * (5 * projections + 2 * 5 * 5 * width)
    time = patches * (frames * projections + 2 * frames * frames * width) + frames * patches * width * width
    for architecture, attention in (("joint attention", joint), ("divided attention", space + time)):
        counted = count_multiply_adds(cast(Architecture, architecture), IMAGE, frames, (16, 16))
        assert counted == stem_and_head + 2 * (mlp + attention)


@pytest.mark.parametrize("halved", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_formula_counts_what_the_model_does(architecture: Architecture, halved: bool) -> None:
    config = replace(IMAGE, temporal_downsample=halved)
    with torch.device("meta"):
        image = UniFormerV2(config, Preprocessing(5, size=(16, 16)))
        model, frames = SpaceTimeTransformer(image, architecture).requires_grad_(False), torch.empty(1, 3, 5, 16, 16)
    with FlopCounterMode(display=False) as counter:
        model(frames)
    assert count_multiply_adds(architecture, config, 5, (16, 16)) == counter.get_total_flops() // 2


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.architecture)
@pytest.mark.parametrize("name", ["motions", "room_transitions", "miracl_lips"])
def test_what_is_compared_costs_the_same(variant: Variant, name: str) -> None:
    ours, theirs = (
        cells_of(one, DATA_SETS[name], "rows", seed=0)[0] for one in (CLAIMS["local_block"].variants[0], variant)
    )
    size = (ours.recipe["size"],) * 2
    cost = count_multiply_adds(theirs.architecture, model_config(theirs, 12), theirs.recipe["num_frames"], size)
    expected = counting.count_multiply_adds(model_config(ours, 12), ours.recipe["num_frames"], size)
    assert cost == pytest.approx(expected, rel=NEAR)
    assert {**theirs.recipe, "num_frames": 0} == {**ours.recipe, "num_frames": 0}  # the same recipe


# --- cells


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.architecture)
def test_a_cell_is_trained_and_measured(variant: Variant, tmp_path: Path) -> None:
    rows = []
    for number in range(8):
        path = tmp_path / f"{number}.mp4"
        write_video(path, noise(8, height=48, width=64, seed=number))
        rows.append(Annotation(path, "wave" if number % 2 else "bow", split="train" if number < 4 else "test"))
    data = DataSet("own", "", "motion", {"size": 32, "epochs": 1, "batch_size": 4, "warmup_epochs": 0.0})
    (cell,) = cells_of(variant, data, "rows", seed=0)
    (work := tmp_path / "work").mkdir()
    result = run_cell(cell, rows, work)
    assert result.right == (0, 1, 0, 1)
    assert len(result.answers) == len(result.shuffled) == 4
    assert set(result.answers) | set(result.shuffled) <= {0, 1}
    config = model_config(cell, 2)
    assert result.multiply_adds == count_multiply_adds(
        variant.architecture, config, cell.recipe["num_frames"], (32, 32)
    )
