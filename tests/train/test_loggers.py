from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from uniformerv2.errors import RecipeError
from uniformerv2.tasks.classification.training import train_classifier
from uniformerv2.train.log import read_metrics
from uniformerv2.train.loggers import check_programs, open_writers
from uniformerv2.train.recipe import ClipRecipe, ModelRecipe, Optimization, Recipe


@pytest.fixture
def recipe(image_model: Path) -> Recipe:
    return Recipe(
        ModelRecipe(arm=str(image_model)),
        ClipRecipe(num_frames=4, size=32),
        Optimization(epochs=2, batch_size=4, precision="fp32"),
    )


def test_tensorboard_shows_what_is_in_the_metrics(colours: Path, recipe: Recipe, tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    train_classifier(colours, run, recipe, programs=["tensorboard"])
    events = reading.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    records = read_metrics(run / "metrics.jsonl")
    steps = [(record["step"], pytest.approx(record["loss"])) for record in records if record["kind"] == "step"]
    assert [(event.step, event.value) for event in events.Scalars("step/loss")] == steps
    epochs = [(3 * record["epoch"], pytest.approx(record["top1"])) for record in records if record["kind"] == "epoch"]
    assert [(event.step, event.value) for event in events.Scalars("epoch/top1")] == epochs
    train_classifier(colours, run, recipe, overwrite=True)
    assert not (run / "tensorboard").exists()  # it was of the run that was replaced


def test_a_resumed_run_replaces_what_was_shown_of_later_steps(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for finished, values in ((0, (1.0, 2.0, 3.0)), (2, (30.0, 40.0))):
        with open_writers(["tensorboard"], tmp_path, {}, finished_steps=finished) as (writer,):
            for number, value in enumerate(values, finished + 1):
                writer.write("step", {"loss": value}, number)
    events = reading.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("step/loss")] == [(1, 1), (2, 2), (3, 30), (4, 40)]


def test_weights_and_biases_is_told_and_finds_a_resumed_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    told = []
    real = wandb.init

    def init(**options: object) -> object:
        told.append(options)
        return real(**options)

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(wandb, "init", init)
    for finished in (0, 3):
        with open_writers(["wandb"], tmp_path, {"lr": 0.1}, finished_steps=finished) as (writer,):
            writer.write("step", {"loss": 0.5}, finished + 1)
            assert wandb.run.config["lr"] == 0.1
        assert wandb.run is None
    assert told[0]["id"] == told[1]["id"]
    for file in tmp_path.glob(f"wandb/offline-run-*-{told[0]['id']}/*.wandb"):
        assert b"step/loss" in file.read_bytes()
        told.pop()
    assert not told  # a file for each


@pytest.mark.parametrize("program", ["tensorboard", "wandb"])
def test_what_is_not_installed_is_said_before_anything_is_done(
    program: str, colours: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, program, None)
    with pytest.raises(RecipeError, match=rf"^{program} is not installed: pip install"):
        train_classifier(colours, tmp_path / "run", recipe, programs=[program])  # type: ignore[list-item]
    assert not os.path.exists(tmp_path / "run")
    with pytest.raises(RecipeError, match="tensorboard and wandb, got 'excel'"):
        check_programs(["excel"])  # type: ignore[list-item]
