"""What is recorded and shown of a run: its metrics, its bar, and other programs."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from helpers import tiny_recipe, train
from uniformerv2.errors import RecipeError
from uniformerv2.train import log
from uniformerv2.train.log import TIMINGS, RunDisplay, Speed, check_loggers, open_loggers, open_metrics, read_metrics
from uniformerv2.train.recipe import Recipe


def test_records_are_on_disk_as_soon_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with open_metrics(path, finished_epochs=0) as metrics:
        metrics.write('{"kind": "step", "epoch": 1, "loss": 0.1}\n')
        assert read_metrics(path) == [{"kind": "step", "epoch": 1, "loss": 0.1}]


def test_epochs_that_run_again_are_dropped_and_the_others_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [{"kind": kind, "epoch": epoch} for epoch in (1, 2, 3) for kind in ("step", "epoch")]
    path.write_text("".join(json.dumps(record) + "\n" for record in records[:5]) + '{"kind": "st', encoding="utf-8")
    assert read_metrics(path) == records[:5]  # the half line of a killed run is no record
    with open_metrics(path, finished_epochs=2) as metrics:
        metrics.write('{"kind": "step", "epoch": 3, "again": true}\n')
    assert read_metrics(path) == [*records[:4], {"kind": "step", "epoch": 3, "again": True}]


def test_speed_says_how_fast_and_for_what_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def slowly() -> Iterator[int]:
        for number in range(2):
            clock[0] += 1 + number  # a second, then two
            yield number

    speed = Speed(torch.device("cpu"))
    steps = []
    for _ in speed.waiting(slowly()):
        clock[0] += 3  # to compute
        steps.append(speed.step(8))
    assert [step["clips_per_second"] for step in steps] == [2.0, 1.6]
    assert [step["data_wait"] for step in steps] == [0.25, 0.4]
    assert speed.total["clips_per_second"] == pytest.approx(16 / 9)
    assert speed.total["data_wait"] == pytest.approx(3 / 9)
    assert 10 < steps[0]["memory_mib"] <= speed.total["memory_mib"]
    assert tuple(speed.total) == TIMINGS


def test_the_bar_shows_step_loss_metric_rate_speed_waiting_memory_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=200, legacy_windows=False)
    monkeypatch.setattr(log, "stderr_console", lambda: console)
    speed = {"clips_per_second": 12.5, "data_wait": 0.031, "memory_mib": 3072.0}
    with RunDisplay(epochs=3, steps=30, progress=True) as display:
        display.step(1, {"loss": 0.5, "accuracy": 0.25}, {"lr": 3e-4}, speed)
        display._bar.refresh()
    shown = "epoch 1/3  step 1  loss 0.500  accuracy 0.250  lr 3.00e-04  12.5 clips/s  waiting 3%  3.0 GiB"
    assert shown in text.getvalue()
    assert "left" in text.getvalue()
    assert "━" in text.getvalue()


def test_a_kill_while_the_file_is_begun_again_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"kind": "epoch", "epoch": 1}) + "\n")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        open_metrics(path, finished_epochs=1)
    assert read_metrics(path) == [{"kind": "epoch", "epoch": 1}]


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
