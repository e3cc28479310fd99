"""Our checkpoint: it comes back as it was saved, and says what is wrong with it."""

from __future__ import annotations

import json
import os
import pickle
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from uniformerv2 import CheckpointError, ModelConfig, Preprocessing, UniFormerV2, load_model, save_model
from uniformerv2.weights import checkpoint_info

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

    monkeypatch.setattr("uniformerv2.weights.checkpoint.save_file", fail)
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
