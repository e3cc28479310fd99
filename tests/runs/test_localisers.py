"""Runs of localisers beside those of classifiers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers import Run, assert_refused
from pages.parsed import Page
from runs.written import EVALUATION, WriteRun, history, step
from uniformerv2.runs.folder import curves, figures_of, read_run, read_runs, recipe_differences
from uniformerv2.runs.report import render

LOCALISER = {
    "task": "localise",
    "video_model": "0123",
    "localiser": {"window_seconds": 1.0, "epochs": 4, "head": {"width": 32}},
    "optimization": {"epochs": 4, "batch_size": 4, "monitor": "auto"},
}
FOUND: dict[str, Any] = {
    "mAP": {"0.3": 0.75, "0.5": 0.25},
    "average_mAP": 0.5,
    "ap_per_class": {"jump": {"0.3": 1.0, "0.5": 0.5}, "walk": {"0.3": 0.5, "0.5": 0.0}},
    "right": {"0.3": 7, "0.5": 5},
    "false_positives": {
        "0.3": {"double": 1, "wrong_class": 2, "poor_borders": 3, "background": 4},
        "0.5": {"double": 0, "wrong_class": 2, "poor_borders": 6, "background": 4},
    },
    "evaluated": 3,
    "skipped": [],
}


def write_localiser(folder: Path, average_map: Sequence[float | None], found: dict[str, Any] | None = FOUND) -> Path:
    """A run whose 18 films have two spans each: five steps of four films an epoch."""
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps(LOCALISER))
    rows = [f"{number}.mp4,jump,{start},{start + 1}" for number in range(18) for start in (1, 5)]
    (folder / "train.csv").write_text("\n".join(["path,label,start,end", *rows]) + "\n")
    records = history([None] * len(average_map))
    for record in records:
        if record["kind"] == "epoch" and average_map[record["epoch"] - 1] is not None:
            record["average_map"] = average_map[record["epoch"] - 1]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if found:
        (folder / "evaluation.json").write_text(json.dumps(found))
    return folder


def test_figures_are_those_of_the_records(tmp_path: Path) -> None:
    run = read_run(write_localiser(tmp_path / "run", [None, 0.625, None, 0.5]))
    figures = {name: figure(run) for name, figure in figures_of([run]).items()}
    assert figures["state"] == "finished"
    assert (figures["best average mAP"], figures["in epoch"], figures["last average mAP"]) == ("62.5%", "2", "50.0%")
    assert not {"best top-1", "top-5", "best mAP", "macro F1"} & figures.keys()
    assert [(quantity.title, lines) for quantity, lines in curves([run]) if "mAP" in quantity.title] == [
        ("held-out average mAP, %", [[(2.0, 62.5), (4.0, 50.0)]])
    ]


def test_the_first_epoch_is_measured_by_the_films(tmp_path: Path) -> None:
    """18 films, whose last batch is not full, are 5 steps."""
    folder = write_localiser(tmp_path / "run", [], found=None)
    (folder / "metrics.jsonl").write_text(json.dumps(step(1, 2.0)) + "\n")
    assert read_run(folder).curve("loss") == [(0.2, 2.0)]


def test_localisers_and_classifiers_are_compared(write_run: WriteRun, tmp_path: Path) -> None:
    """Each has figures that the other lacks."""
    classifier = write_run("classifier", records=history([0.5, 0.75]), evaluation=EVALUATION)
    runs = read_runs([classifier, write_localiser(tmp_path / "films", [0.25, 0.5])])
    figures = figures_of(runs)
    assert [figures["best top-1"](run) for run in runs] == ["75.0%", "-"]
    assert [figures["best average mAP"](run) for run in runs] == ["-", "50.0%"]
    assert recipe_differences(runs)["window_seconds"] == ("None", "1.0")
    tables = Page(render(runs).replace("&nbsp;", "")).tables
    [classes] = (table for table in tables if ["jump", "100.0%", "75.0%"] in table)
    assert ["walk", "50.0%", "25.0%"] in classes
    [spans] = (table for table in tables if "poor borders" in table[0])
    assert spans[1:] == [
        ["films", "0.3", "75.0%", "7", "1", "2", "3", "4"],
        ["films", "0.5", "25.0%", "5", "0", "2", "6", "4"],
    ]


@pytest.mark.parametrize("wide", [40, 160])
def test_a_terminal_shows_them(tmp_path: Path, uniformerv2: Run, wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(wide))
    status, output, errors = uniformerv2("runs", write_localiser(tmp_path / "films", [0.25, None]))
    assert status == 0, errors
    for part in ("held-out average mAP", "best average mAP", "25.0%"):
        assert part in output


def test_what_is_no_run_of_a_localiser_is_refused(tmp_path: Path, uniformerv2: Run) -> None:
    folder = write_localiser(tmp_path / "films", [0.5], found={"mAP": {}})
    assert_refused(uniformerv2("runs", folder), "evaluation.json: not a file of a run", "ap_per_class")
    (folder / "recipe.json").write_text(json.dumps({"task": "localise"}))
    (folder / "evaluation.json").unlink()
    assert_refused(uniformerv2("runs", folder), "recipe.json: not a file of a run", "localiser, optimization")
