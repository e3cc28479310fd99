"""Our checkpoint: saved models come back as they were, and errors name what is wrong with a file."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from uniformerv2 import CheckpointError, UniFormerV2, load_model, save_model
from uniformerv2.weights.checkpoint import checkpoint_info
from weights.samples import CONFIG, assert_same, small_model


@pytest.fixture
def model() -> UniFormerV2:
    return small_model()


@pytest.fixture
def path(model: UniFormerV2, tmp_path: Path) -> Path:
    """The file of the model."""
    save_model(model, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_everything_survives_saving_and_loading(model: UniFormerV2, path: Path) -> None:
    loaded = load_model(path)
    assert_same(loaded, model)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    clip = torch.randint(0, 256, (1, 3, 5, 16, 24), dtype=torch.uint8)
    assert torch.equal(loaded(clip), model.eval()(clip))
    save_model(loaded, path, origin="another test")
    info = checkpoint_info(path)
    assert (info.config, info.preprocessing, info.labels) == (model.config, model.preprocessing, model.labels)
    assert (info.origin, info.licence, info.label_note) == ("another test", "MIT", "a guess")


def test_a_loaded_model_trains_and_leaves_its_file_alone(path: Path) -> None:
    before = path.read_bytes()
    loaded = load_model(path).train()
    loaded(torch.randn(2, 3, 4, 16, 24)).square().sum().backward()
    torch.optim.SGD(loaded.parameters(), lr=0.1).step()
    assert path.read_bytes() == before


def test_saving_replaces_whole_files_only(model: UniFormerV2, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("uniformerv2.atomic.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(model, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["m.safetensors"]


def rewrite(path: Path, metadata: dict[str, str], *, replaced: bool = False, drop: str = "") -> None:
    """Change (or replace) the metadata of a file, and leave out a tensor."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key).clone() for key in file.keys() if key != drop}  # noqa: SIM118
        old = file.metadata()
    save_file(tensors, path, metadata if replaced else {**old, **metadata})


@pytest.mark.parametrize(
    ("metadata", "drop", "message"),
    [
        ({"format": "other"}, "", "not a checkpoint of this package"),
        ({"version": "99"}, "", "version 99"),
        ({"config": "{"}, "", "metadata cannot be understood"),
        ({"config": json.dumps({"wings": 2})}, "", "wings"),
        ({"labels": json.dumps(["only one"])}, "", "metadata cannot be understood"),
        ({"config": json.dumps({**CONFIG.__dict__, "depth": 10**9})}, "", "too few for the 1000000000 blocks"),
        (
            {"config": json.dumps(replace(CONFIG, local_blocks="none").__dict__)},
            "",
            r"unexpected: backbone\.blocks\.0\.local1",
        ),
        ({}, "head.linear.bias", r"1 missing: head\.linear\.bias"),
    ],
)
def test_files_that_do_not_fit_are_refused(path: Path, metadata: dict[str, str], drop: str, message: str) -> None:
    rewrite(path, metadata, drop=drop)
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))}.*{message}"):
        load_model(path)


def test_files_of_the_first_version_still_load(model: UniFormerV2, path: Path) -> None:
    """Without notes and without the newer fields of the architecture."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    new = ("rotary", "pool", "register_tokens", "layer_scale", "class_token", "position_embedding")
    config = {key: value for key, value in json.loads(metadata["config"]).items() if key not in new}
    old = {key: metadata[key] for key in ("format", "version", "preprocessing", "labels")}
    rewrite(path, {**old, "config": json.dumps(config)}, replaced=True)
    loaded = load_model(path)
    assert (loaded.config, loaded.label_note, loaded.labels) == (CONFIG, "", model.labels)


def test_another_size_is_interpolated_and_reported(model: UniFormerV2, path: Path) -> None:
    larger = load_model(path, size=(32, 40), num_frames=9)
    assert larger.config.image_size == larger.preprocessing.size == (32, 40)
    assert larger.preprocessing.num_frames == 9
    assert any("interpolated from 2x3 to 4x5 patches" in line for line in larger.loading_report)
    assert any("9 frames instead of 5" in line for line in larger.loading_report)
    assert torch.equal(larger.backbone.position_embedding[0], model.backbone.position_embedding[0])
    assert larger(torch.zeros(1, 3, 9, 32, 40)).shape == (1, 3)
    square = load_model(path, size=48, patch_size=12, temporal_downsample=True)
    assert (square.config.image_size, square.config.patch_size) == ((48, 48), 12)
    assert square.backbone.patch_embedding.weight.shape == (32, 3, 3, 12, 12)
    assert any("resampled from 8 to 12" in line for line in square.loading_report)
    assert any("inflated to three frames" in line for line in square.loading_report)
    for options in ({"size": 20}, {"patch_size": 0}):
        with pytest.raises(CheckpointError, match=r"m\.safetensors: (image_size \(20, 20\) is not divisible|.* zero)"):
            load_model(path, **options)


def test_training_options_replace_those_of_the_file(path: Path) -> None:
    assert load_model(path, drop_path=0.2).config == replace(CONFIG, drop_path=0.2)
    with pytest.raises(TypeError, match="wings: no field of ModelConfig"):
        load_model(path, wings=2)


def test_labels_in_the_file_win_over_a_dataset(tmp_path: Path) -> None:
    model = small_model([f"class {number}" for number in range(400)])
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors", dataset="k400")
    assert loaded.labels == model.labels
    assert "dataset k400 not used: the file has its own labels" in loaded.loading_report
