from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from uniformerv2.train import log
from uniformerv2.train.log import TIMINGS, RunDisplay, Speed, open_metrics, read_metrics


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
