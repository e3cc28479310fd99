"""State dicts of any layout: prefixes, averaged weights beside the trained ones, from files and from memory alike."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from uniformerv2 import CheckpointError, arm, load_model, load_weights
from weights.samples import foreign_state, prefixed, same_tensors, small_model, small_vit

State = dict[str, Tensor]
PREFIXES = ["model.", "net.", "module.", "_orig_mod.", "module._orig_mod.", "model.net.backbone.encoder.", "my own."]
FROM: dict[str, Callable[[Any, Path], Any]] = {
    "memory": lambda content, path: content,
    "a file": lambda content, path: torch.save(content, path) or path,
}


def halved(state: State) -> State:
    return {key: tensor / 2 for key, tensor in state.items()}


@pytest.mark.parametrize("origin", FROM)
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("project", ["official", "mmaction2"])
def test_a_prefix_of_all_names_is_taken_off_and_reported(
    tmp_path: Path, project: str, prefix: str, origin: str
) -> None:
    state = foreign_state(project=project)
    found = load_model(FROM[origin](prefixed(prefix, state), tmp_path / "x.pth"))
    assert same_tensors(found.state_dict(), load_model(state).state_dict())
    assert f"prefix {prefix!r} taken off" in found.loading_report


@pytest.mark.parametrize("prefix", PREFIXES)
def test_weights_are_loaded_into_a_model_whatever_wrapped_it_when_they_were_saved(prefix: str) -> None:
    model = small_model()
    state = {key: tensor + 1 for key, tensor in model.state_dict().items()}
    load_weights(model, {"epoch": 3, "state_dict": prefixed(prefix, state)})
    assert same_tensors(model.state_dict(), state)
    assert f"prefix {prefix!r} taken off" in model.loading_report


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("origin", FROM)
def test_image_transformers_are_armed_under_any_prefix(tmp_path: Path, prefix: str, origin: str) -> None:
    source = FROM[origin](prefixed(prefix, small_vit()), tmp_path / "x.pth")
    found = arm(source, num_classes=3, heads=2)
    assert same_tensors(found.backbone.state_dict(), arm(small_vit(), num_classes=3, heads=2).backbone.state_dict())
    assert f"names under {prefix}" in found.loading_report[0]


def test_what_stands_beside_the_model_is_left_out_and_named() -> None:
    state = foreign_state()
    beside = {"criterion.weight": torch.ones(3), "n_averaged": torch.tensor(7)}
    found = load_model(prefixed("model.", state) | beside)
    assert same_tensors(found.state_dict(), load_model(state).state_dict())
    assert "left out: criterion.weight, n_averaged" in found.loading_report


def test_averaged_weights_of_torch_are_loaded() -> None:
    model = small_model()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    load_weights(model, averaged.state_dict())
    assert "left out: n_averaged" in model.loading_report


STATE = foreign_state()
BOTH = {
    "timm": {"state_dict": STATE, "state_dict_ema": halved(STATE), "epoch": 3},
    "deit": {"model": STATE, "optimizer": {"state": {}}, "model_ema": halved(STATE)},
    "slowfast": {"model_state": STATE, "ema_state": halved(STATE)},
    "module": {"model": {"module": STATE}, "ema": {"module": prefixed("module.", halved(STATE)), "decay": 0.99}},
    "flat": prefixed("model.", STATE) | prefixed("ema_model.module.", halved(STATE)),
    "flat, one without": STATE | prefixed("model_ema.", halved(STATE)),
    "flat, averaged first": prefixed("ema.", halved(STATE)) | prefixed("network.", STATE),
}


@pytest.mark.parametrize("origin", FROM)
@pytest.mark.parametrize("layout", BOTH)
def test_averaged_weights_are_taken_where_they_are_asked_for(tmp_path: Path, layout: str, origin: str) -> None:
    source = FROM[origin](BOTH[layout], tmp_path / "x.pth")
    trained, averaged = load_model(source), load_model(source, weights="ema")
    assert same_tensors(trained.state_dict(), load_model(STATE).state_dict())
    assert same_tensors(averaged.state_dict(), load_model(halved(STATE)).state_dict())
    assert [line for line in trained.loading_report if "weights: " in line and "ema" in line]
    assert [line for line in averaged.loading_report if "weights: " in line and "ema" in line]


@pytest.mark.parametrize(
    "content",
    [
        {"model": small_vit(), "model_ema": halved(small_vit())},
        prefixed("model.", small_vit()) | prefixed("ema.", halved(small_vit())),
        {"student": prefixed("backbone.", small_vit()), "teacher": prefixed("backbone.", halved(small_vit()))},
    ],
    ids=["entries", "names", "dino"],
)
def test_an_average_of_an_image_transformer_is_armed(content: Any) -> None:
    found = arm(content, num_classes=3, heads=2, weights="ema")
    expected = arm(halved(small_vit()), num_classes=3, heads=2)
    assert same_tensors(found.backbone.state_dict(), expected.backbone.state_dict())


def test_mmengine_saves_the_average_as_the_state_dict() -> None:
    content = {"message_hub": {}, "state_dict": halved(STATE), "ema_state_dict": {"steps": torch.tensor(3), **STATE}}
    for weights in ("model", "ema"):
        found = load_model(content, weights=weights)  # type: ignore[arg-type]
        assert same_tensors(found.state_dict(), load_model(halved(STATE)).state_dict())
        assert "averaged weights: mmengine saves them as state_dict" in found.loading_report


def test_what_mmengine_logged_beside_the_weights_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = ModuleType("mmengine.logging.history_buffer")
    buffer = type("HistoryBuffer", (), {"__module__": home.__name__})
    home.HistoryBuffer = buffer  # type: ignore[attr-defined]
    logged = buffer()
    logged._max_length, logged._log_history = 10, np.array([0.5, 0.25])  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        for name in ("mmengine", "mmengine.logging", home.__name__):
            patched.setitem(sys.modules, name, home)
        content = {
            "message_hub": {"log_scalars": {"train/loss": logged}},
            "state_dict": foreign_state(project="mmaction2"),
        }
        torch.save(content, tmp_path / "epoch_5.pth")
    found = load_model(tmp_path / "epoch_5.pth")
    assert same_tensors(found.state_dict(), load_model(content["state_dict"]).state_dict())


@pytest.mark.parametrize("wanted", [load_model, lambda source, **options: arm(source, num_classes=3, **options)])
def test_no_average_is_there_to_take(wanted: Callable[..., object]) -> None:
    source = STATE if wanted is load_model else small_vit()
    with pytest.raises(CheckpointError, match=r"the given state dict: no averaged weights in it"):
        wanted(source, weights="ema")


def test_two_models_in_one_state_dict_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"several models, under 'a\.' and 'b\.'; save only the one meant"):
        load_model(prefixed("a.", STATE) | prefixed("b.", STATE))


def test_safetensors_have_prefixes_too(tmp_path: Path) -> None:
    save_file(prefixed("_orig_mod.", STATE), tmp_path / "k400_8x24.safetensors")
    found = load_model(tmp_path / "k400_8x24.safetensors")
    assert "prefix '_orig_mod.' taken off" in found.loading_report
