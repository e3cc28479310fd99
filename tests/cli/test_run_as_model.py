"""The folder of a run in the place of a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from helpers import Run, assert_error_line
from uniformerv2 import Predictor, load_model, save_model


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path) -> Path:
    """A run whose best checkpoint says green to everything, unlike its last."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copyfile(checkpoint, folder / "last.safetensors")
    shutil.copyfile(checkpoint.with_name("recipe.json"), folder / "recipe.json")
    model = load_model(checkpoint)
    with torch.no_grad():
        model.head.linear.bias.copy_(torch.tensor([0.0, 1000.0, 0.0]))
    save_model(model, folder / "best.safetensors")
    return folder


def test_every_command_takes_the_best_model_of_a_run_and_says_so(
    uniformerv2: Run, run: Path, video: Path, colours: Path, tmp_path: Path
) -> None:
    said = f"note: {run} is a run: best.safetensors is taken, its best epoch"
    status, output, errors = uniformerv2("predict", run, video, "--top-k", 1)
    assert (status, errors.splitlines()) == (0, [said])
    assert output.splitlines()[1].endswith("green")
    status, output, errors = uniformerv2("evaluate", run, colours, "--workers", 0)
    assert (status, said in errors) == (0, True)
    assert json.loads((run / "best.colours0.1x1.json").read_text())["top1"] == pytest.approx(1 / 3)
    status, output, errors = uniformerv2("features", run, video, "-o", tmp_path / "a.npz", "--workers", 0)
    assert (status, said in errors) == (0, True)
    for command in ("timeline", "stream"):
        status, _, errors = uniformerv2(command, run, video, *(("-o", tmp_path / "t") if command == "timeline" else ()))
        assert said in errors
    assert "best.safetensors of the folder" in uniformerv2("info", run)[1]


def test_without_a_best_model_the_last_is_taken(uniformerv2: Run, run: Path, video: Path) -> None:
    (run / "best.safetensors").unlink()
    status, output, errors = uniformerv2("predict", run, video, "--top-k", 1)
    assert (status, output.splitlines()[1].endswith("red")) == (0, True)
    assert "last.safetensors is taken, as it has no best.safetensors" in errors
    assert Predictor(run).predict(video).labels[0] == "red"
    assert f"last.safetensors of the folder {run}" in load_model(run).loading_report
    (run / "last.safetensors").unlink()
    status, output, errors = uniformerv2("predict", run, video)
    assert (status, output) == (2, "")
    assert_error_line(errors, "a run without a checkpoint")
