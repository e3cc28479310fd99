"""Our checkpoint: it comes back as it was saved, and says what is wrong with it."""

from __future__ import annotations

import json
import os
import pickle
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from uniformerv2 import (
    CheckpointError,
    ModelConfig,
    Preprocessing,
    UniFormerV2,
    load_model,
    load_weights,
    named_config,
    save_model,
)
from uniformerv2.weights import checkpoint_info
from uniformerv2.weights.key_names import VIDEO_FORMATS, from_ours

CONFIG = ModelConfig(
    width=32,
    depth=2,
    heads=2,
    patch_size=8,
    image_size=(16, 24),
    local_blocks="attention",
    num_classes=3,
    global_after=(1,),
)
PREPROCESSING = Preprocessing(
    num_frames=5, size=(16, 24), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), channel_order="bgr"
)


@pytest.fixture
def model() -> UniFormerV2:
    torch.manual_seed(0)
    return UniFormerV2(CONFIG, PREPROCESSING, ["run", "wälk", "a, b"])


def test_everything_comes_back(model: UniFormerV2, tmp_path: Path) -> None:
    save_model(model, tmp_path / "m.safetensors", origin="a test", licence="Apache-2.0")
    loaded = load_model(tmp_path / "m.safetensors")
    assert (loaded.config, loaded.preprocessing, loaded.labels) == (CONFIG, PREPROCESSING, ("run", "wälk", "a, b"))
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    clip = torch.randint(0, 256, (1, 3, 5, 16, 24), dtype=torch.uint8)
    assert torch.equal(loaded(clip), model.eval()(clip))
    info = checkpoint_info(tmp_path / "m.safetensors")
    assert (info.origin, info.licence, info.config) == ("a test", "Apache-2.0", CONFIG)


def test_a_loaded_model_trains_and_leaves_its_file_alone(model: UniFormerV2, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    before = path.read_bytes()
    loaded = load_model(path).train()
    loaded(torch.randn(2, 3, 4, 16, 24)).square().sum().backward()
    torch.optim.SGD(loaded.parameters(), lr=0.1).step()
    assert path.read_bytes() == before


def test_saving_replaces_whole_files_only(model: UniFormerV2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("uniformerv2.atomic.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(model, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def _rewrite(path: Path, *, metadata: dict[str, str] | None = None, drop: str = "") -> None:
    with safe_open(path, framework="pt") as file:
        told = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys() if key != drop}  # noqa: SIM118
    save_file(tensors, path, {**told, **(metadata or {})})


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"format": "other"}, "not a checkpoint of this package"),
        ({"version": "99"}, "version 99"),
        ({"config": "{"}, "metadata cannot be understood"),
        ({"config": json.dumps({"wings": 2})}, "wings"),
        ({"labels": json.dumps(["only one"])}, "metadata cannot be understood"),
    ],
)
def test_metadata_that_does_not_fit_is_named(
    model: UniFormerV2, tmp_path: Path, metadata: dict[str, str], said: str
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    _rewrite(path, metadata=metadata)
    with pytest.raises(CheckpointError, match=said) as error:
        load_model(path)
    assert str(path) in str(error.value)


def test_another_architecture_is_named(model: UniFormerV2, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    config = json.dumps({**replace(CONFIG, local_blocks="none").__dict__})
    _rewrite(path, metadata={"config": config})
    with pytest.raises(CheckpointError, match=r"unexpected: backbone\.blocks\.0\.local1"):
        load_model(path)


def test_a_lost_tensor_is_named(model: UniFormerV2, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    _rewrite(path, drop="head.linear.bias")
    with pytest.raises(CheckpointError, match=r"1 missing: head\.linear\.bias"):
        load_model(path)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


def test_unreadable_files_are_named_and_pickles_never_run(
    model: UniFormerV2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(model, "whole.safetensors")
    whole = Path("whole.safetensors").read_bytes()
    files = {
        "cut.safetensors": whole[: len(whole) // 2],
        "empty.safetensors": b"",
        "text.safetensors": b"not weights",
        "evil.pth": pickle.dumps(Payload()),
    }
    for name, content in files.items():
        Path(name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name) as error:
            load_model(name)
        assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="no such file"):
        load_model("absent.safetensors")
    with pytest.raises(CheckpointError, match=r"a folder, not a file; in it: .*whole\.safetensors"):
        load_model(tmp_path)
    assert not Path("pwned").exists()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


# --- checkpoints of others, and what they are made to fit

RELEASED = ModelConfig(
    width=64, depth=5, heads=1, patch_size=8, image_size=(24, 24), num_classes=400, global_after=(1, 2, 3, 4)
)


def official_state(config: ModelConfig = RELEASED, kind: str = "official") -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    model = UniFormerV2(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return from_ours(model.state_dict(), VIDEO_FORMATS[kind])[0]


def expected_logits(state: dict[str, torch.Tensor], clip: torch.Tensor, config: ModelConfig = RELEASED) -> torch.Tensor:
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
    state = official_state()
    torch.save(WRAPPED[wrap](state), tmp_path / "k400_b16_4x24.pyth", _use_new_zipfile_serialization=archive)
    model = load_model(tmp_path / "k400_b16_4x24.pyth")
    assert model.config == RELEASED
    assert model.preprocessing == Preprocessing(num_frames=4, size=(24, 24))
    assert model.labels[0] == "riding a bike"
    assert not model.training
    clip = torch.randn(2, 3, 4, 24, 24)
    assert torch.equal(model(clip), expected_logits(state, clip))


def test_mmaction2_files_load_without_their_constants(tmp_path: Path) -> None:
    state = official_state(kind="mmaction2")
    constants = {"data_preprocessor.mean": torch.zeros(3, 1, 1, 1), "data_preprocessor.std": torch.ones(3, 1, 1, 1)}
    torch.save({"meta": {"epoch": 1}, "state_dict": {**constants, **state}}, tmp_path / "x_u16_kinetics400-rgb.pth")
    model = load_model(tmp_path / "x_u16_kinetics400-rgb.pth")
    assert "ignored: data_preprocessor.mean, data_preprocessor.std" in model.loading_report
    assert model.labels[0] == "abseiling"
    assert model.preprocessing.num_frames == 16
    clip = torch.randn(1, 3, 4, 24, 24)
    assert torch.equal(model(clip), expected_logits(state, clip))


def test_a_state_dict_loads_with_what_no_key_tells() -> None:
    config = replace(RELEASED, heads=4, global_after=(0, 2), num_classes=7)
    state = official_state(config)
    model = load_model(state, heads=4, global_after=(0, 2), labels=(), num_frames=3)
    assert (model.config, model.labels, model.preprocessing.num_frames) == (config, (), 3)
    clip = torch.randn(1, 3, 4, 24, 24)
    assert torch.equal(model(clip), expected_logits(state, clip, config))


def test_a_head_that_fits_no_label_list_is_refused_unless_labels_are_given() -> None:
    state = official_state(replace(RELEASED, num_classes=7))
    with pytest.raises(CheckpointError, match=r"head has 7 classes, which fits no list of labels; expected 400 \(kin"):
        load_model(state)
    assert load_model(state, labels=()).labels == ()
    given = [f"class {number}" for number in range(7)]
    assert load_model(state, labels=given).labels == tuple(given)
    with pytest.raises(CheckpointError, match="2 labels given for a head of 7 classes"):
        load_model(state, labels=["a", "b"])


def test_given_labels_are_certain() -> None:
    names = [f"class {number}" for number in range(400)]
    assert "inferred" in load_model(official_state()).label_note
    model = load_model(official_state(), labels=names)
    assert (model.labels, model.label_note) == (tuple(names), "")
    assert not [line for line in model.loading_report if "inferred" in line]


def test_half_precision_is_turned_into_float32_and_said(tmp_path: Path) -> None:
    state = official_state()
    for dtype in (torch.float16, torch.bfloat16):
        half = {key: tensor.to(dtype) for key, tensor in state.items()}
        model = load_model(half)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert f"{str(dtype).removeprefix('torch.')} weights turned into float32" in model.loading_report
        assert torch.equal(model.head.linear.bias, half["backbone.transformer.proj.2.bias"].float())


def test_keys_of_two_formats_are_refused() -> None:
    mixed = official_state() | {"cls_head.fc_cls.weight": torch.zeros(400, 64)}
    with pytest.raises(
        CheckpointError, match=r"two formats mixed: official \(backbone\.transformer\.proj\.0\.weight\)"
    ):
        load_model(mixed)
    ours = UniFormerV2(RELEASED).state_dict() | {"cls_head.fc_cls.weight": torch.zeros(400, 64)}
    with pytest.raises(CheckpointError, match=r"ours \(.*\) and mmaction2 \(cls_head\.fc_cls\.weight\)"):
        load_model(ours)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda state: state.pop("backbone.transformer.resblocks.2.ln_1.bias"),
            r"1 missing: backbone\.blocks\.2\.norm1",
        ),
        (lambda state: state.update(surprise=torch.zeros(1)), "1 unexpected: surprise"),
        (
            lambda state: state.update({"backbone.transformer.balance": torch.zeros(9)}),
            r"mix \(9,\) instead of \(64,\)",
        ),
    ],
)
def test_foreign_files_are_loaded_strictly(change: object, said: str) -> None:
    state = official_state()
    change(state)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=said):
        load_model(state)


def test_a_frozen_file_makes_a_model_that_does_not_mix() -> None:
    state = official_state(replace(RELEASED, mix_class_token=False))
    model = load_model(state)
    assert model.mix is None
    assert any("not mixed in (frozen)" in line for line in model.loading_report)


def test_another_size_is_interpolated_and_said(model: UniFormerV2, tmp_path: Path) -> None:
    save_model(model, tmp_path / "m.safetensors")
    larger = load_model(tmp_path / "m.safetensors", size=(32, 40), num_frames=9)
    assert larger.config.image_size == larger.preprocessing.size == (32, 40)
    assert larger.preprocessing.num_frames == 9
    assert any("interpolated from 2x3 to 4x5 patches" in line for line in larger.loading_report)
    assert any("9 frames instead of 5" in line for line in larger.loading_report)
    assert torch.equal(larger.backbone.position_embedding[0], model.backbone.position_embedding[0])
    assert larger(torch.zeros(1, 3, 9, 32, 40)).shape == (1, 3)
    square = load_model(tmp_path / "m.safetensors", size=48, patch_size=12, temporal_downsample=True)
    assert (square.config.image_size, square.config.patch_size) == ((48, 48), 12)
    assert square.backbone.patch_embedding.weight.shape == (32, 3, 3, 12, 12)
    assert any("resampled from 8 to 12" in line for line in square.loading_report)
    assert any("inflated to three frames" in line for line in square.loading_report)
    with pytest.raises(CheckpointError, match=r"m\.safetensors: image_size \(20, 20\) is not divisible"):
        load_model(tmp_path / "m.safetensors", size=20)


def test_a_stem_of_three_frames_cannot_be_made_to_see_one() -> None:
    state = official_state(replace(RELEASED, temporal_downsample=True))
    with pytest.raises(CheckpointError, match="cannot become a stem of one"):
        load_model(state, temporal_downsample=False)


def test_training_options_replace_those_of_the_file(model: UniFormerV2, tmp_path: Path) -> None:
    save_model(model, tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors", drop_path=0.2).config == replace(CONFIG, drop_path=0.2)
    with pytest.raises(TypeError, match="wings: no field of ModelConfig"):
        load_model(tmp_path / "m.safetensors", wings=2)


def test_everything_survives_loading_and_saving_again(model: UniFormerV2, tmp_path: Path) -> None:
    model.label_note = "a guess"
    save_model(model, tmp_path / "a.safetensors", origin="a test", licence="MIT")
    save_model(load_model(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    info = checkpoint_info(tmp_path / "b.safetensors")
    assert (info.origin, info.licence, info.label_note) == ("a test", "MIT", "a guess")
    assert (info.config, info.preprocessing, info.labels) == (CONFIG, PREPROCESSING, model.labels)


def test_files_written_before_there_were_notes_still_load(model: UniFormerV2, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    with safe_open(path, framework="pt") as file:
        told, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    new_fields = ("rotary", "pool", "register_tokens", "layer_scale", "class_token", "position_embedding")
    config = {key: value for key, value in json.loads(told["config"]).items() if key not in new_fields}
    old = {key: told[key] for key in ("format", "version", "preprocessing", "labels")} | {"config": json.dumps(config)}
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path, old)
    loaded = load_model(path)
    assert (loaded.config, loaded.label_note, loaded.labels) == (CONFIG, "", model.labels)


def test_a_file_that_tells_of_more_blocks_than_it_has_is_refused_at_once(model: UniFormerV2, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    _rewrite(path, metadata={"config": json.dumps({**CONFIG.__dict__, "depth": 10**9})})
    with pytest.raises(CheckpointError, match="too few for the 1000000000 blocks"):
        load_model(path)


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
        load_model(UniFormerV2(CONFIG).state_dict())


def test_published_names_are_downloaded_and_hub_ids_too(
    model: UniFormerV2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror folder stands for the network."""
    monkeypatch.setenv("UNIFORMERV2_HUB", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    save_model(model, folder / "model.safetensors")
    assert load_model("owner/name").labels == model.labels

    config = named_config("B/16", "temporal", num_classes=174)
    small = replace(config, width=64, heads=1, depth=5, global_after=(3, 4))
    torch.save({"model_state": official_state(small)}, tmp_path / "sthv2_uniformerv2_b16_16x224.pyth")
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
    """Their metadata says nothing to us, such as the {"format": "pt"} that many programs write."""
    state = {key: tensor.contiguous() for key, tensor in official_state().items()}
    save_file(state, tmp_path / "k400.safetensors", {"format": "pt"})
    assert load_model(tmp_path / "k400.safetensors").labels[0] == "riding a bike"
    save_file(
        {key: tensor.contiguous() for key, tensor in official_state(replace(RELEASED, num_classes=7)).items()},
        tmp_path / "own.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(CheckpointError, match="7 classes, which fits no list"):
        load_model(tmp_path / "own.safetensors")


def test_labels_in_the_file_win_over_a_dataset(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(400)]
    save_model(load_model(official_state(), labels=names), tmp_path / "m.safetensors")
    model = load_model(tmp_path / "m.safetensors", dataset="k400")
    assert model.labels == tuple(names)
    assert "dataset k400 not used: the file has its own labels" in model.loading_report
