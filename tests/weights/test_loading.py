"""A checkpoint or a live model as a model on a device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from uniformerv2 import CheckpointError, ModelConfig, RecipeError, UniFormerV2, class_list, save_model
from uniformerv2.weights import resolve_model

CONFIG = ModelConfig(width=32, depth=1, heads=2, patch_size=8, image_size=(16, 16), num_classes=710, global_after=(0,))


def test_checkpoints_and_live_models_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = UniFormerV2(CONFIG, labels=class_list("kinetics710"))
    assert resolve_model(model) is model
    assert model.training
    save_model(model, tmp_path / "m.safetensors")
    loaded = resolve_model(tmp_path / "m.safetensors", device="cpu")
    assert (loaded.config, loaded.training) == (CONFIG, False)
    part = resolve_model(str(tmp_path / "m.safetensors"), device="cpu", head="kinetics400")
    assert part.labels == class_list("kinetics400")
    # "auto" leaves a live model where it is, and looks for a GPU for a checkpoint
    monkeypatch.setattr("uniformerv2.weights.loading.pick_device", lambda name: torch.device("meta"))
    assert resolve_model(model).head.linear.weight.device.type == "cpu"
    assert resolve_model(tmp_path / "m.safetensors").head.linear.weight.device.type == "meta"


def test_what_cannot_be_resolved_is_named() -> None:
    with pytest.raises(RecipeError, match="nonsense"):
        resolve_model(UniFormerV2(CONFIG), device="nonsense")
    with pytest.raises(CheckpointError, match=r"absent\.safetensors: no such file"):
        resolve_model("absent.safetensors", device="cpu")
    with pytest.raises(CheckpointError, match="labels of Kinetics-710"):
        resolve_model(UniFormerV2(CONFIG), head="kinetics400")
