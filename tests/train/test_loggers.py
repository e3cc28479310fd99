from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from helpers import tiny_recipe, train
from uniformerv2.errors import RecipeError
from uniformerv2.train.log import check_loggers, open_loggers, read_metrics
from uniformerv2.train.recipe import Recipe


@pytest.fixture
def recipe(image_model: Path) -> Recipe:
    return tiny_recipe(image_model, epochs=2)


def test_tensorboard_shows_what_is_in_the_metrics(colours: Path, recipe: Recipe, tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    train(colours, recipe, run, loggers=["tensorboard"])
    events = reading.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    records = read_metrics(run / "metrics.jsonl")
    steps = [(record["step"], pytest.approx(record["loss"])) for record in records if record["kind"] == "step"]
    assert [(event.step, event.value) for event in events.Scalars("step/loss")] == steps
    epochs = [(3 * record["epoch"], pytest.approx(record["top1"])) for record in records if record["kind"] == "epoch"]
    assert [(event.step, event.value) for event in events.Scalars("epoch/top1")] == epochs
    train(colours, recipe, run, overwrite=True)
    assert not (run / "tensorboard").exists()  # it was of the run that was replaced


def test_a_resumed_run_replaces_what_was_shown_of_later_steps(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for finished, values in ((0, (1.0, 2.0, 3.0)), (2, (30.0, 40.0))):
        with open_loggers(["tensorboard"], tmp_path, {}, finished_steps=finished) as (logger,):
            for number, value in enumerate(values, finished + 1):
                logger("step", {"loss": value}, number)
    events = reading.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("step/loss")] == [(1, 1), (2, 2), (3, 30), (4, 40)]


class FakeWandb(ModuleType):
    """Records what Weights & Biases is given."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[dict[str, Any]] = []

    def init(self, **options: Any) -> Any:
        run = {"options": options, "logged": [], "finished": False}
        self.runs.append(run)
        return SimpleNamespace(
            log=lambda numbers, step: run["logged"].append((step, numbers)), finish=lambda: run.update(finished=True)
        )


def test_weights_and_biases_gets_the_numbers_and_finds_a_resumed_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for finished in (0, 3, 0):
        with open_loggers(["wandb"], tmp_path, {"lr": 0.1}, finished_steps=finished) as (logger,):
            logger("step", {"loss": 0.5}, finished + 1)
    assert [run["logged"] for run in fake.runs] == [[(step, {"step/loss": 0.5})] for step in (1, 4, 1)]
    assert all(run["finished"] and run["options"]["config"] == {"lr": 0.1} for run in fake.runs)
    first, resumed, begun_again = (run["options"]["id"] for run in fake.runs)
    assert first == resumed != begun_again
    monkeypatch.setattr(fake, "init", lambda **options: _raise(fake.Error("no key\nsecond line")))
    with pytest.raises(RecipeError, match=r"^wandb does not start: no key$"), open_loggers(["wandb"], tmp_path, {}):
        pass


def _raise(error: Exception) -> None:
    raise error


REAL = """
import sys, wandb
from pathlib import Path
from uniformerv2.train.log import open_loggers

folder = Path(sys.argv[1])
with open_loggers(["wandb"], folder, {"lr": 0.1}) as (logger,):
    logger("step", {"loss": 0.5}, 1)
    assert wandb.run.config["lr"] == 0.1
    assert wandb.run.id == (folder / "wandb_id.txt").read_text()
assert wandb.run is None
"""


def test_the_real_weights_and_biases_takes_these_calls(tmp_path: Path) -> None:
    """In a process of its own: its threads would stay, and processes that are forked later inherit their locks."""
    pytest.importorskip("wandb")
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    subprocess.run([sys.executable, "-c", REAL, tmp_path], check=True, env=environment)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_what_is_not_installed_is_said_before_anything_is_done(
    name: str, colours: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RecipeError, match=rf"^{name} is not installed: pip install"):
        train(colours, recipe, tmp_path / "run", loggers=[name])  # type: ignore[list-item]
    assert not os.path.exists(tmp_path / "run")
    with pytest.raises(RecipeError, match="tensorboard and wandb, got 'excel'"):
        check_loggers(["excel"])  # type: ignore[list-item]
