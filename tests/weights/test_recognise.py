"""Architectures from keys and shapes, facts from file names, and what is assumed and reported."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from uniformerv2 import CheckpointError, ModelConfig, UniFormerV2, named_config
from uniformerv2.weights.recognise import CheckpointInfo, Known, hints_from_name, recognise

SMALL = ModelConfig(
    width=128, depth=6, heads=2, patch_size=8, image_size=(24, 24), global_after=(4, 5), num_classes=400
)


def shapes(config: ModelConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(UniFormerV2(config).state_dict())


def found(config: ModelConfig, **known: object) -> CheckpointInfo:
    facts = Known(**{name: known.pop(name) for name in Known._fields if name in known})  # type: ignore[arg-type]
    return recognise(shapes(config), known.pop("kind", "official"), facts, source="some.pyth", **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mix_class_token": False},
        {"local_blocks": "attention"},
        {"local_blocks": "attention+mlp", "temporal_downsample": True, "global_after": (2, 3, 4, 5)},
        {"local_blocks": "attention", "local_reduction": 2.0, "local_kernel": 5},
        {"temporal_downsample": True},
        {"global_after": ()},
        {"mlp_ratio": 2.0, "global_mlp_ratio": 3.0},
        {"patch_size": 12, "num_classes": 339},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
def test_the_keys_tell_the_architecture(changes: dict[str, object]) -> None:
    config = replace(SMALL, **changes)  # type: ignore[arg-type]
    assert found(config).config == config


@pytest.mark.parametrize("width", [48, 64, 192, 384, 768, 1024])
def test_the_reduction_gives_the_channels_that_were_seen(width: int) -> None:
    for reduction in (1.5, 2.0, 3.0, 4.0, 1.7, width / 7):
        config = replace(SMALL, width=width, heads=1, local_blocks="attention", local_reduction=reduction)
        seen = found(config, options={"heads": 1}).config
        assert int(width / seen.local_reduction) == int(width / reduction)
        if reduction in (1.5, 2.0):
            assert seen.local_reduction == reduction


def test_what_no_key_tells_is_assumed_and_reported() -> None:
    info = found(replace(SMALL, heads=4, global_after=(1, 3)))
    assert info.config == SMALL
    assert info.preprocessing.num_frames == 8
    for line in (
        "official checkpoint",
        "assumed: 2 heads of 64 channels",
        "assumed: global stages after the last 2 of 6 blocks (no model with 2 stages was released)",
        "assumed: 8 frames",
    ):
        assert line in info.report
    assert found(named_config("B/16")).report[2] == "assumed: global stages after the last 4 of 12 blocks"


def test_what_is_given_is_not_assumed() -> None:
    config = replace(SMALL, heads=4, global_after=(1, 3))
    info = found(config, options={"heads": 4, "global_after": (1, 3)}, num_frames=5, channel_order="bgr")
    assert info.config == config
    assert (info.preprocessing.num_frames, info.preprocessing.channel_order) == (5, "bgr")
    assert not [line for line in info.report if "assumed:" in line]
    assert "given: heads 4, global_after (1, 3)" in info.report


def test_sixteen_frames_are_assumed_of_a_stem_that_halves_them() -> None:
    assert found(replace(SMALL, temporal_downsample=True)).preprocessing.num_frames == 16


def test_a_grid_that_is_no_square_must_be_given() -> None:
    config = replace(SMALL, image_size=(16, 40))
    with pytest.raises(CheckpointError, match=r"10 positions are no square grid .* give image_size"):
        found(config)
    assert found(config, options={"image_size": (16, 40)}).config == config


def test_heads_must_be_given_where_the_width_does_not_tell() -> None:
    config = replace(SMALL, width=48, heads=4)
    with pytest.raises(CheckpointError, match=r"width 48 is no multiple of the 64 .* give heads=\.\.\."):
        found(config)
    assert found(config, options={"heads": 4}).config == config


@pytest.mark.parametrize(
    "lost", ["backbone.position_embedding", "backbone.patch_embedding.weight", "head.linear.weight"]
)
def test_a_file_that_lacks_what_tells_is_not_whole(lost: str) -> None:
    state = shapes(SMALL)
    del state[lost]
    with pytest.raises(CheckpointError, match=rf"some\.pyth: a UniFormerV2 without {lost}.*not whole") as error:
        recognise(state, "official", Known(), source="some.pyth")
    assert "\n" not in str(error.value)


def test_a_stem_of_another_kind_is_named() -> None:
    state = shapes(SMALL) | {"backbone.patch_embedding.weight": torch.empty(128, 3, 2, 8, 8, device="meta")}
    with pytest.raises(CheckpointError, match=r"patch embedding is \(128, 3, 2, 8, 8\), expected"):
        recognise(state, "official", Known(), source="some.pyth")


@pytest.mark.parametrize(
    ("name", "classes", "size", "dataset", "frames"),
    [
        ("k400_k710_uniformerv2_b16_8x224.pyth", 400, 224, "kinetics400", 8),
        ("k400+k710_uniformerv2_b16_8x224.pyth", 400, 224, "kinetics400", 8),
        ("frozen_k600_k710_uniformerv2_l14_32x336.pyth", 600, 336, "kinetics600", 32),
        ("sthv1_uniformerv2_l14_16x224.pyth", 174, 224, "something_something_v1", 16),
        ("ssv2_b16_f32x224.pyth", 174, 224, "something_something_v2", 32),
        ("hacs_uniformerv2_l14_16x224.pyth", 200, 224, "hacs", 16),
        ("uniformerv2-base-p16-res224_clip-kinetics710-pre_8xb32-u8_kinetics400-rgb_20230313-75be0806.pth", 400, 224,
         "kinetics400", 8),
        ("uniformerv2-large-p14-res336_clip-kinetics710-pre_u32_kinetics700-rgb_20221219-bfb9f401.pth", 700, 336,
         "kinetics700", 32),
        ("uniformerv2-base-p16-res224_clip-kinetics710-kinetics-k400-pre_16xb32-u8_mitv1-rgb_20230313-a6f4a567.pth",
         339, 224, "moments_in_time", 8),
        ("my_something_something_v2_model.pth", 174, 224, "something_something_v2", None),
        ("epoch_0005.pyth", 174, 224, None, None),
        ("k400_8x224.pyth", 174, 224, None, 8),
        ("sthv1_to_sthv2_16x224.pyth", 174, 224, None, 16),
        ("model_16x160.pyth", 400, 224, None, None),
        ("", 400, 224, None, None),
    ],
)  # fmt: skip
def test_names_tell_dataset_and_frames(
    name: str, classes: int, size: int, dataset: str | None, frames: int | None
) -> None:
    assert hints_from_name(name, classes, (size, size)) == (dataset, frames)


def test_labels_follow_whose_file_it_is() -> None:
    official, mmaction2 = found(SMALL), found(SMALL, kind="mmaction2")
    assert official.labels[:2] == ("riding a bike", "marching")
    assert "inferred" in official.label_note
    assert mmaction2.labels[:2] == ("abseiling", "air drumming")
    assert mmaction2.label_note == ""
    assert official.label_note in official.report


def test_two_datasets_of_as_many_classes_are_told_apart_or_not_at_all() -> None:
    config = replace(SMALL, num_classes=174)
    unknown = found(config)
    assert unknown.labels == ()
    assert "something_something_v1 and something_something_v2 both have 174 classes" in unknown.label_note
    assert unknown.preprocessing.channel_order == "bgr", "both were read by OpenCV"
    assert found(config, kind="mmaction2").preprocessing.channel_order == "rgb"
    first, second = found(config, dataset="sthv1"), found(config, file_name="sthv2_16x24.pyth")
    assert len(first.labels) == len(second.labels) == 174
    assert first.labels != second.labels
    assert second.preprocessing.num_frames == 16


def test_a_dataset_that_does_not_fit_the_head_is_refused() -> None:
    with pytest.raises(
        CheckpointError, match="head has 400 classes, and dataset kinetics600 has 600; give kinetics400"
    ):
        found(SMALL, dataset="k600")
    with pytest.raises(CheckpointError, match=r"some\.pyth: no class list of 'birds'"):
        found(SMALL, dataset="birds")
