"""`train --resume --output RUN`: the run knows its recipe and its data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers import Run, assert_refused, before_call, files_below, interrupt, logged
from uniformerv2 import fine_tune
from uniformerv2.tasks.classification.task import Classification

OPTIONS = ["--epochs", 3, "--seed", 7, "--no-flip", "--holdout", 0.4, "--head-dropout", 0.1, "--layout", "scene"]


@pytest.fixture
def command(colours: Path, tiny: list[object]) -> list[object]:
    return ["train", colours, *tiny, *OPTIONS]


def broken_off(uniformerv2: Run, monkeypatch: pytest.MonkeyPatch, command: Sequence[object]) -> None:
    with monkeypatch.context() as patch:
        before_call(patch, Classification, "loss", 4, interrupt)  # in the second epoch
        assert uniformerv2(*command)[0] == 130


def test_a_run_goes_on_without_another_option(
    uniformerv2: Run, command: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert uniformerv2(*command, "-o", whole)[0] == 0
    broken_off(uniformerv2, monkeypatch, [*command, "-o", broken])
    status, output, errors = uniformerv2("train", "--resume", "--output", broken, "--workers", 0)
    assert status == 0, errors
    assert "of 6 held-out videos right" in output
    assert logged(broken) == logged(whole)
    for name in ("recipe.json", "train.csv", "held_out.csv", "evaluation.json"):
        assert (broken / name).read_text() == (whole / name).read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--epochs", 5], "epochs 3 is now 5"),
        (["--batch-size", 2], "batch_size 4 is now 2"),
        (["--arm", "other.safetensors"], "other.safetensors"),
    ],
)
def test_what_differs_is_named_with_the_way_on(
    uniformerv2: Run,
    command: list[object],
    image_model: Path,
    tmp_path: Path,
    options: list[object],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    assert uniformerv2(*command, "--epochs", 1, "-o", run)[0] == 0
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["optimization"] |= {"epochs": 3, "warmup_epochs": 0.3}
    (run / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
    (tmp_path / "other.safetensors").write_bytes(image_model.read_bytes())
    monkeypatch.chdir(tmp_path)
    before = files_below(tmp_path)
    found = uniformerv2("train", "--resume", "-o", run, "--workers", 0, *options)
    assert_refused(found, said, f"--checkpoint {run / 'last.safetensors'}")
    assert files_below(tmp_path) == before


def test_other_videos_are_told_the_way_on(
    uniformerv2: Run, command: list[object], colours: Path, tmp_path: Path
) -> None:
    run, fewer = tmp_path / "run", tmp_path / "videos"
    assert uniformerv2(*command, "--epochs", 1, "-o", run)[0] == 0
    for label in ("red", "green"):
        (fewer / label).parent.mkdir(exist_ok=True)
        (fewer / label).symlink_to(colours / label)
    found = uniformerv2("train", fewer, "--resume", "-o", run, "--workers", 0)
    assert_refused(found, "train.csv", f"--checkpoint {run / 'last.safetensors'}")


def test_a_run_that_is_not_named_or_not_there_is_said(uniformerv2: Run, colours: Path, tmp_path: Path) -> None:
    assert_refused(uniformerv2("train", "--resume", "-o", tmp_path / "absent"), "absent", "no run to resume here")
    assert_refused(uniformerv2("train", colours, "--recipe", "own-small-vit", "--resume"), "give --output")


def test_fine_tune_goes_on_with_the_recipe_of_the_run(
    colours: Path, image_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uniformerv2: Run
) -> None:
    options = {"arm": image_model, "epochs": 3, "batch_size": 4, "size": 32, "num_frames": 4, "short_side": 300}
    for name in ("python", "command"):
        with monkeypatch.context() as patch:
            before_call(patch, Classification, "loss", 4, interrupt)
            with pytest.raises(KeyboardInterrupt):
                fine_tune(colours, output=tmp_path / name, workers=0, **options)
    tuned = fine_tune(colours, output=tmp_path / "python", resume=True, workers=0)
    assert tuned.recipe.augmentation.short_side == 300
    assert uniformerv2("train", "--resume", "-o", tmp_path / "command", "--workers", 0)[0] == 0
    assert logged(tmp_path / "command") == logged(tmp_path / "python")


def test_a_run_goes_on_where_its_videos_are_now(
    uniformerv2: Run, command: list[object], colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, now = tmp_path / "before", tmp_path / "now"
    shutil.copytree(colours, before)
    broken_off(uniformerv2, monkeypatch, ["train", before, *command[2:], "-o", tmp_path / "run"])
    before.rename(now)
    resume = ["train", "--resume", "-o", tmp_path / "run", "--workers", 0]
    assert_refused(uniformerv2(*resume), before)
    status, output, errors = uniformerv2(*resume, "--root", now)
    assert status == 0, errors
    assert "of 6 held-out videos right" in output
