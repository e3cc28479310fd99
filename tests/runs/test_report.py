"""Runs on a page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from helpers import Run, assert_refused
from pages.parsed import Page
from runs.written import EVALUATION, WriteRun, history, step
from uniformerv2.pages.confusion_picture import confusion_picture
from uniformerv2.runs.folder import FIGURES, read_run, read_runs
from uniformerv2.runs.report import render, write_report


def curves_of(page: str, title: str) -> dict[str, list[tuple[float, float]]]:
    """The curves of a chart by their class, in the units of its axes: read off as a person would, with its ticks."""
    chart = page.split(f">{title}</text>")[1].split("</svg>")[0]
    ticks = re.findall(r'class="tick" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([\d.]+)<', chart)
    across = [(float(x), float(value)) for x, _, anchor, value in ticks if anchor == "middle"]
    up = [(float(y) - 4, float(value)) for _, y, anchor, value in ticks if anchor == "end"]  # text stands 4 below

    def read(place: float, ends: list[tuple[float, float]]) -> float:
        (first, low), (last, high) = ends[0], ends[-1]
        return low + (place - first) / (last - first) * (high - low)

    return {
        name: [(read(float(x), across), read(float(y), up)) for x, y in (one.split(",") for one in points.split())]
        for name, points in re.findall(r'<polyline class="line ([^"]+)" points="([^"]*)"', chart)
    }


def test_page_draws_the_curves(write_run: WriteRun) -> None:
    long = write_run("long", history([0.5, None, 1.0, 0.75]))
    short = write_run("short", history([0.25, 0.5]))
    page = render(read_runs([long, short]))
    close = {"abs": 0.01}  # coordinates have a tenth of a pixel
    losses = curves_of(page, "training loss")
    for name, steps in (("c0", 20), ("c1", 10)):
        assert len(losses[name]) == steps
        for number, (epochs, loss) in enumerate(losses[name]):
            assert epochs == pytest.approx((number + 1) / 5, **close)
            assert loss == pytest.approx(2.0 - 0.1 * number, **close)
    accuracies = curves_of(page, "held-out top-1, %")
    assert [y for _, y in accuracies["c0"]] == pytest.approx([50, 100, 75], abs=0.1)
    assert [x for x, _ in accuracies["c0"]] == pytest.approx([1, 3, 4], **close)
    assert [y for _, y in accuracies["c1"]] == pytest.approx([25, 50], abs=0.1)
    assert "<title>epoch 3: 100</title>" in page
    assert "those of each step" in page


def test_page_says_what_is_smoothed(write_run: WriteRun) -> None:
    """401 steps in at most 200 points: means of three."""
    records = [step(number, float(number % 3)) for number in range(1, 402)]
    page = render(read_runs([write_run("many", records)]))
    assert "means of neighbouring steps: 3 in many" in page
    line = curves_of(page, "training loss")["c0"]
    assert len(line) == 134
    assert [y for _, y in line[:-1]] == pytest.approx([1.0] * 133, abs=0.01)


def test_page_holds_the_tables(write_run: WriteRun) -> None:
    finished = write_run("finished", history([0.5] * 4), evaluation=EVALUATION)
    running = write_run("other", history([0.75]), recipe={"optimization": {"lr": 0.5}})
    figures_, recipes, classes, confusions = Page(render(read_runs([finished, running]))).tables
    assert figures_[0] == ["", *FIGURES]
    assert figures_[1][:5] == ["finished", "finished", "4/4", "0.300", "50.0%"]
    assert figures_[2][:5] == ["other", "stopped", "1/4", "1.800", "75.0%"]
    assert recipes == [["", "finished", "other"], ["lr", "0.001", "0.5"]]
    assert classes == [["", "finished"], ["walk", "50.0\xa0%"], ["jump", "100.0\xa0%"], ["fly", "-"]]
    assert confusions[1] == ["finished", "walk", "jump", "1"]


def test_page_is_one_file_that_escapes_what_it_is_given(write_run: WriteRun) -> None:
    evil = "<script>alert('1')<b>&"
    evaluation = EVALUATION | {
        "classes": [{"label": evil, "videos": 1, "correct": 0, "recall": 0.0}],
        "confusion_matrix": [[1]],
        "confusions": [{"label": evil, "taken_for": evil, "videos": 1}],
    }
    folders = [
        write_run("<img src=x>&one", history([0.5]), evaluation=evaluation),
        write_run("two", [step(number, 1.0) for number in range(1, 300)], recipe={"model": {"arm": evil}}),
    ]
    page = render(read_runs(folders))
    assert not {"script", "link", "img", "b", "iframe"} & {tag for tag, _ in Page(page).tags}
    assert not re.search(r"https?://|url\(|@import", page)
    assert "&lt;img src=x&gt;&amp;one" in page
    assert Page(page).tables[1][1] == ["arm", "tiny.safetensors", evil]
    assert Page(page).tables[3][1] == ["<img src=x>&one", evil, evil, "1"]


def test_page_draws_the_confusion_matrix(write_run: WriteRun) -> None:
    page = render(read_runs([write_run("finished", history([0.5] * 4), evaluation=EVALUATION)]))
    picture = page.split('<svg class="matrix"')[1].split("</svg>")[0]
    cells = re.findall(r'<title>([^<]*)</title><rect x="([\d.]+)" y="([\d.]+)" width="200.00".*?>(\d+)</text>', picture)
    assert cells == [  # columns are what a class was taken for; 150 pixels are for the labels
        ("jump taken for jump: 2 of 2 videos", "150.00", "150.00", "2"),
        ("walk taken for jump: 1 of 2 videos", "150.00", "350.00", "1"),
        ("walk taken for walk: 1 of 2 videos", "350.00", "350.00", "1"),
    ]
    assert picture.count(">fly</text>") == 2
    many = [f"class {number}" for number in range(700)]
    diagonal = np.diag([3] * 700).tolist()
    large = confusion_picture(many, diagonal)
    assert (large.count("<rect"), large.count("<text")) == (701, 0)
    assert "class 5 taken for class 5: 3 of 3 videos" in large


def test_the_best_epoch_is_that_of_the_monitor(write_run: WriteRun) -> None:
    records = [
        {"kind": "epoch", "epoch": number, "loss": 1.0, "top1": top1, "macro_f1": f1, "held_out_loss": loss}
        for number, (top1, f1, loss) in enumerate([(0.9, 0.1, 2.0), (0.6, 0.3, 1.0), (0.5, 0.2, 1.0)], start=1)
    ]
    found = {}
    for monitor in ("top1", "macro-f1", "loss"):
        folder = write_run(monitor, records, recipe={"optimization": {"monitor": monitor}})
        found[monitor] = read_run(folder).best
    assert found == {"top1": (0.9, 1), "macro-f1": (0.6, 2), "loss": (0.5, 3)}


def test_many_runs_are_told_apart(write_run: WriteRun) -> None:
    page = render(read_runs([write_run(f"run{number}", history([0.5])) for number in range(10)]))
    lines = curves_of(page, "training loss")
    assert sorted(lines) == sorted([f"c{number}" for number in range(8)] + ["c0 again", "c1 again"])


def test_command_prints_and_writes(write_run: WriteRun, uniformerv2: Run, tmp_path: Path) -> None:
    first, second = write_run("first", history([0.5])), write_run("second", history([0.75]))
    before = sorted(file.name for file in first.iterdir())
    status, output, errors = uniformerv2("runs", first, second, "--html", tmp_path / "report.html")
    assert (status, errors) == (0, "")
    assert "training loss" in output
    assert "75.0%" in output
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(read_runs([first, second]))
    assert sorted(file.name for file in first.iterdir()) == before  # the runs are left as they are
    assert_refused(uniformerv2("runs", first, "--html", tmp_path / "absent" / "report.html"), "absent")


def test_report_is_whole_or_absent(write_run: WriteRun, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent"):
        write_report(tmp_path / "absent" / "report.html", [read_run(write_run())])


def test_run_that_has_just_begun(write_run: WriteRun) -> None:
    assert "Nothing is recorded yet" in render([read_run(write_run())])
