"""Checkpoints of other implementations as models, the names by which models are found, and resolve_model."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from uniformerv2 import (
    CheckpointError,
    ModelConfig,
    Preprocessing,
    RecipeError,
    UniFormerV2,
    class_list,
    load_model,
    load_weights,
    named_config,
    save_model,
)
from uniformerv2.weights.key_names import VIDEO_FORMATS, StateDict, from_ours
from uniformerv2.weights.loading import resolve_model
from weights.samples import RELEASED, foreign_state, small_model


def expected_logits(state: StateDict, clip: Tensor, config: ModelConfig = RELEASED) -> Tensor:
    model = UniFormerV2(config)
    load_weights(model, state)
    return model.eval()(clip)


WRAPPED = {
    "bare": lambda state: state,
    "model_state": lambda state: {"model_state": state, "epoch": 1},
    "without backbone.": lambda state: {key.removeprefix("backbone."): tensor for key, tensor in state.items()},
    "wrapped, without backbone.": lambda state: {
        "model_state": {f"module.{key.removeprefix('backbone.')}": tensor for key, tensor in state.items()}
    },
}


@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("archive", [True, False])
def test_official_files_load_wrapped_or_not(tmp_path: Path, wrap: str, archive: bool) -> None:
    state = foreign_state()
    torch.save(WRAPPED[wrap](state), tmp_path / "k400_b16_4x24.pyth", _use_new_zipfile_serialization=archive)
    model = load_model(tmp_path / "k400_b16_4x24.pyth")
    assert model.config == RELEASED
    assert model.preprocessing == Preprocessing(num_frames=4, size=(24, 24))
    assert model.labels[0] == "riding a bike"
    assert not model.training
    clip = torch.randn(2, 3, 4, 24, 24)
    assert torch.equal(model(clip), expected_logits(state, clip))


def test_mmaction2_files_load_without_their_constants(tmp_path: Path) -> None:
    state = foreign_state(project="mmaction2")
    constants = {"data_preprocessor.mean": torch.zeros(3, 1, 1, 1), "data_preprocessor.std": torch.ones(3, 1, 1, 1)}
    torch.save({"meta": {"epoch": 1}, "state_dict": {**constants, **state}}, tmp_path / "x_u16_kinetics400-rgb.pth")
    model = load_model(tmp_path / "x_u16_kinetics400-rgb.pth")
    assert "ignored: data_preprocessor.mean, data_preprocessor.std" in model.loading_report
    assert model.labels[0] == "abseiling"
    assert model.preprocessing.num_frames == 16
    clip = torch.randn(1, 3, 4, 24, 24)
    assert torch.equal(model(clip), expected_logits(state, clip))


def test_a_state_dict_loads_with_options_that_no_key_tells() -> None:
    config = replace(RELEASED, heads=4, global_after=(0, 2), num_classes=7)
    state = foreign_state(config)
    model = load_model(state, heads=4, global_after=(0, 2), labels=(), num_frames=3)
    assert (model.config, model.labels, model.preprocessing.num_frames) == (config, (), 3)
    clip = torch.randn(1, 3, 4, 24, 24)
    assert torch.equal(model(clip), expected_logits(state, clip, config))


def test_a_head_that_fits_no_label_list_is_refused_unless_labels_are_given() -> None:
    state = foreign_state(replace(RELEASED, num_classes=7))
    with pytest.raises(CheckpointError, match=r"head has 7 classes, which fits no list of labels; expected 400 \(kin"):
        load_model(state)
    assert load_model(state, labels=()).labels == ()
    given = [f"class {number}" for number in range(7)]
    assert load_model(state, labels=given).labels == tuple(given)
    with pytest.raises(CheckpointError, match="2 labels given for a head of 7 classes"):
        load_model(state, labels=["a", "b"])


def test_given_labels_are_certain() -> None:
    names = [f"class {number}" for number in range(400)]
    assert "inferred" in load_model(foreign_state()).label_note
    model = load_model(foreign_state(), labels=names)
    assert (model.labels, model.label_note) == (tuple(names), "")
    assert not [line for line in model.loading_report if "inferred" in line]


def test_half_precision_is_turned_into_float32_and_reported() -> None:
    state = foreign_state()
    for dtype in (torch.float16, torch.bfloat16):
        half = {key: tensor.to(dtype) for key, tensor in state.items()}
        model = load_model(half)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert f"{str(dtype).removeprefix('torch.')} weights turned into float32" in model.loading_report
        assert torch.equal(model.head.linear.bias, half["backbone.transformer.proj.2.bias"].float())


def test_keys_of_two_formats_are_refused() -> None:
    mixed = foreign_state() | {"cls_head.fc_cls.weight": torch.zeros(400, 64)}
    with pytest.raises(
        CheckpointError, match=r"two formats mixed: official \(backbone\.transformer\.proj\.0\.weight\)"
    ):
        load_model(mixed)
    ours = UniFormerV2(RELEASED).state_dict() | {"cls_head.fc_cls.weight": torch.zeros(400, 64)}
    with pytest.raises(CheckpointError, match=r"ours \(.*\) and mmaction2 \(cls_head\.fc_cls\.weight\)"):
        load_model(ours)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone.transformer.resblocks.2.ln_1.bias": None}, r"1 missing: backbone\.blocks\.2\.norm1"),
        ({"surprise": torch.zeros(1)}, "1 unexpected: surprise"),
        ({"backbone.transformer.balance": torch.zeros(9)}, r"mix \(9,\) instead of \(64,\)"),
    ],
)
def test_foreign_files_are_loaded_strictly(change: dict[str, Tensor | None], message: str) -> None:
    state = {key: tensor for key, tensor in (foreign_state() | change).items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        load_model(state)


def test_a_frozen_file_makes_a_model_that_does_not_mix() -> None:
    state = foreign_state(replace(RELEASED, mix_class_token=False))
    model = load_model(state)
    assert model.mix is None
    assert any("not mixed in (frozen)" in line for line in model.loading_report)


def test_a_stem_of_three_frames_cannot_be_made_to_see_one() -> None:
    state = foreign_state(replace(RELEASED, temporal_downsample=True))
    with pytest.raises(CheckpointError, match="cannot become a stem of one"):
        load_model(state, temporal_downsample=False)


def test_image_transformers_are_named_and_armed_where_classes_are_given(image_model: Path) -> None:
    with pytest.raises(CheckpointError, match=r"an image transformer \(.+\), expected a video model; give num_classes"):
        load_model(image_model)
    model = load_model(image_model, num_classes=3, num_frames=4, labels=["a", "b", "c"], layout="temporal")
    assert (model.config.num_classes, model.preprocessing.num_frames, model.labels) == (3, 4, ("a", "b", "c"))
    assert model.config.temporal_downsample
    assert not model.training


@pytest.mark.parametrize("prefix", ["", "visual.", "backbone."])
def test_clip_encoders_of_both_kinds_are_armed(prefix: str) -> None:
    """OpenAI's names, bare or below `visual.`, and mmaction2's: the same below `backbone.`."""
    video = UniFormerV2(RELEASED)
    names, _ = from_ours(video.state_dict(), VIDEO_FORMATS["official"])
    image = {
        prefix + key.removeprefix("backbone."): tensor.squeeze(2) if key == "backbone.conv1.weight" else tensor
        for key, tensor in names.items()
        if not re.search(r"\.(dpe|dec|proj|temporal_cls_token|balance)\b", key)
    }
    extra = {"ln_post.weight": torch.ones(64), "ln_post.bias": torch.zeros(64), "proj": torch.zeros(64, 32)}
    image |= {prefix + key: tensor for key, tensor in extra.items()}
    with pytest.raises(CheckpointError, match=r"an image transformer \(CLIP\)"):
        load_model(image)
    model = load_model(image, num_classes=4)
    assert model.config.num_classes == 4
    for block in (0, 4):
        qkv = f"backbone.blocks.{block}.attention.qkv.weight"
        assert torch.equal(model.state_dict()[qkv], video.state_dict()[qkv])


def test_what_is_neither_video_nor_image_model_is_named() -> None:
    with pytest.raises(CheckpointError, match="neither ours nor official nor mmaction2's"):
        load_model({"fc.weight": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match="no metadata with format=uniformerv2"):
        load_model(small_model().state_dict())


def test_published_models_and_hub_repositories_are_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror folder stands for the network."""
    monkeypatch.setenv("UNIFORMERV2_HUB", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    save_model(small_model(), folder / "model.safetensors")
    assert load_model("owner/name").labels == small_model().labels

    config = named_config("B/16", "temporal", num_classes=174)
    small = replace(config, width=64, heads=1, depth=5, global_after=(3, 4))
    torch.save({"model_state": foreign_state(small)}, tmp_path / "sthv2_uniformerv2_b16_16x224.pyth")
    loaded = load_model("B16-SSv2-16x224")
    assert loaded.origin == "b16-ssv2-16x224", "the name is kept, so that its published figure is found"
    assert loaded.preprocessing.channel_order == "bgr"
    assert loaded.preprocessing.num_frames == 16
    assert len(loaded.labels) == 174, "the zoo knows which of the two datasets it is"


@pytest.mark.parametrize("name", ["b16-k400", "runs/last.safetensors", "a/b/c", "./owner/name"])
def test_names_of_nothing_are_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such file, and no published model") as error:
        load_model(name)
    assert name in str(error.value)


def test_official_weights_in_safetensors_of_others(tmp_path: Path) -> None:
    """Many programs write the metadata {"format": "pt"}, which contains nothing for us."""
    for config, name in ((RELEASED, "k400.safetensors"), (replace(RELEASED, num_classes=7), "own.safetensors")):
        state = {key: tensor.contiguous() for key, tensor in foreign_state(config).items()}
        save_file(state, tmp_path / name, {"format": "pt"})
    assert load_model(tmp_path / "k400.safetensors").labels[0] == "riding a bike"
    with pytest.raises(CheckpointError, match="7 classes, which fits no list"):
        load_model(tmp_path / "own.safetensors")


# --- resolve_model


def test_checkpoints_and_live_models_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(class_list("kinetics710"))
    assert resolve_model(model) is model
    assert model.training
    save_model(model, tmp_path / "m.safetensors")
    loaded = resolve_model(tmp_path / "m.safetensors", device="cpu")
    assert (loaded.config, loaded.training) == (model.config, False)
    part = resolve_model(str(tmp_path / "m.safetensors"), device="cpu", head="kinetics400")
    assert part.labels == class_list("kinetics400")
    # "auto" leaves a live model where it is, and looks for a GPU for a checkpoint
    monkeypatch.setattr("uniformerv2.weights.loading.pick_device", lambda name: torch.device("meta"))
    assert resolve_model(model).head.linear.weight.device.type == "cpu"
    assert resolve_model(tmp_path / "m.safetensors").head.linear.weight.device.type == "meta"


def test_what_cannot_be_resolved_is_named() -> None:
    with pytest.raises(RecipeError, match="nonsense"):
        resolve_model(small_model(), device="nonsense")
    with pytest.raises(CheckpointError, match=r"absent\.safetensors: no such file"):
        resolve_model("absent.safetensors", device="cpu")
    with pytest.raises(CheckpointError, match="labels of Kinetics-710"):
        resolve_model(small_model(), head="kinetics400")
