"""The model in folders and repositories of the hub, in one file that knows itself. No network: the hub is mocked."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, hub_mixin
from huggingface_hub.errors import LocalEntryNotFoundError

from uniformerv2 import CheckpointError, UniFormerV2, load_model
from weights.samples import assert_same, small_model


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def model() -> UniFormerV2:
    return small_model()


def test_what_is_saved_comes_back(model: UniFormerV2, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = UniFormerV2.from_pretrained(tmp_path)
    assert_same(loaded, model)
    assert not loaded.training
    assert_same(load_model(tmp_path), model)
    assert_same(load_model(tmp_path / "model.safetensors"), model)


def test_no_second_configuration_can_contradict_the_weights(model: UniFormerV2, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert "width" not in written
    lie = {**written, "config": {"width": 999}, "width": 999, "labels": ["x"], "preprocessing": None}
    (tmp_path / "config.json").write_text(json.dumps(lie))
    assert_same(UniFormerV2.from_pretrained(tmp_path), model)
    (tmp_path / "config.json").unlink()
    assert_same(UniFormerV2.from_pretrained(tmp_path), model)


def test_options_of_load_model_are_those_of_from_pretrained(model: UniFormerV2, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = UniFormerV2.from_pretrained(tmp_path, size=(32, 48), num_frames=3)
    assert loaded.config.image_size == (32, 48)
    assert loaded.preprocessing.num_frames == 3


def test_pushing_uploads_one_file_of_weights(
    model: UniFormerV2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, Any] = {}

    class Api:
        def __init__(self, **_: object) -> None: ...

        def create_repo(self, repo_id: str, **_: object) -> Any:
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: object) -> str:
            sent.update({file.name: file.read_bytes() for file in Path(folder_path).iterdir()}, to=repo_id)
            return "url"

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    assert model.push_to_hub("owner/name") == "url"
    assert sent.pop("to") == "owner/name"
    assert sorted(sent) == ["README.md", "config.json", "model.safetensors"]
    (tmp_path / "m").write_bytes(sent["model.safetensors"])
    assert_same(load_model(tmp_path / "m"), model)
    assert b"pipeline_tag: video-classification" in sent["README.md"]


def test_a_repository_is_loaded_by_its_name(
    model: UniFormerV2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path)
    asked = []

    def download(repo_id: str, filename: str, **options: Any) -> str:
        asked.append((repo_id, filename, options["revision"]))
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert_same(UniFormerV2.from_pretrained("owner/name", revision="v1"), model)
    assert asked == [("owner/name", "config.json", "v1"), ("owner/name", "model.safetensors", "v1")]


def test_a_repository_without_weights_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("not in the cache\nand offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
    with pytest.raises(CheckpointError, match=r"owner/name/model\.safetensors: not in the cache") as error:
        UniFormerV2.from_pretrained("owner/name")
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"'a b/c/d' is no name of a hub repository"):
        UniFormerV2.from_pretrained("a b/c/d")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        UniFormerV2.from_pretrained(tmp_path)


def test_the_mixin_leaves_copying_and_pickling_alone(model: UniFormerV2) -> None:
    assert_same(copy.deepcopy(model), model)
    assert_same(pickle.loads(pickle.dumps(model)), model)
