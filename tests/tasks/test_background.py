"""A training with background: an ordinary class for everything but the step that draws it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from drawn_films import drawn_stretches, write_film
from helpers import Run, assert_error_line, assert_refused, tiny_recipe
from uniformerv2.data.annotations import Annotation
from uniformerv2.errors import AnnotationError, RecipeError
from uniformerv2.predict import Predictor
from uniformerv2.tasks.classification.training import train_classifier
from uniformerv2.tasks.rehearsal import find_batch_size
from uniformerv2.tasks.run import split_data, train_model
from uniformerv2.train.recipe import Recipe
from uniformerv2.weights.loading import load_model

CLASSES = ("background", "blue", "green", "red")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of six films of coloured stretches between dark pauses, two of them held out."""
    folder = tmp_path_factory.mktemp("films")
    lines = ["path,label,start,end,split"]
    for number in range(6):
        name, split = f"{number}.mp4", "train" if number < 4 else "val"
        rows = write_film(folder / name, drawn_stretches(number), split)
        lines += [f"{name},{row.label},{row.start},{row.end},{split}" for row in rows]
    (folder / "films.csv").write_text("\n".join(lines) + "\n")
    return folder / "films.csv"


@pytest.fixture
def recipe(image_model: Path) -> Recipe:
    return tiny_recipe(image_model, epochs=1, warmup_epochs=0, background=0.2)


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as file:
        return list(csv.DictReader(file))


def test_pauses_are_told_from_actions(films: Path, image_model: Path, tmp_path: Path) -> None:
    cached = {"frozen_backbone": True, "fixed_views": 1, "cache_features": "fp32", "layout": "scene"}
    recipe = tiny_recipe(image_model, epochs=8, background=0.25, global_after=(1, 2), evaluate_every=8, **cached)
    result = train_classifier(films, recipe, tmp_path / "run", workers=0)
    assert load_model(result.last).labels == CLASSES
    found = {row.label: row for row in result.evaluation.classes}
    assert found["background"].videos == 3  # of ten spans and them
    assert found["background"].correct == 3
    pause = Annotation(films.parent / "5.mp4", "", 0.0, 0.7)  # before the first stretch
    assert Predictor(result.last).predict(pause).label == "background"
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["optimization"]["background"] == 0.25


@pytest.mark.parametrize(("task", "label"), [("classification", "background"), ("multilabel", "")])
def test_a_run_has_its_windows_as_rows_and_goes_on_with_them(
    uniformerv2: Run, films: Path, recipe: Recipe, tmp_path: Path, task: str, label: str
) -> None:
    run = tmp_path / "run"
    result = train_model(films, recipe, run, workers=0, task=task)
    assert load_model(result.last).labels == (CLASSES if label else CLASSES[1:])
    counts = [Counter(row["label"] == label for row in rows_of(run / f"{side}.csv")) for side in ("train", "held_out")]
    assert counts == [{False: 20, True: 5}, {False: 10, True: 2}]
    before = (run / "train.csv").read_text(), (run / "held_out.csv").read_text()
    status, _, errors = uniformerv2("train", "--resume", "--output", run, "--workers", 0)
    assert (status, "windows of background" in errors) == (0, False)
    again = train_model(films, recipe, run, workers=0, task=task, resume=True)
    assert (again.history, again.evaluation.to_json()) == (result.history, result.evaluation.to_json())
    assert ((run / "train.csv").read_text(), (run / "held_out.csv").read_text()) == before
    with pytest.raises(RecipeError, match="background"):
        train_model(films, recipe.vary(background=0.4), run, workers=0, task=task, resume=True)


def test_the_command_line_tells_how_much_is_drawn(
    uniformerv2: Run, films: Path, image_model: Path, tmp_path: Path
) -> None:
    options: list[Any] = ["--arm", image_model, "--num-frames", 4, "--size", 32, "--epochs", 1, "--workers", 0]
    told = "5 windows of background from 4 training films", "2 windows of background from 2 held-out films"
    for command in (["rehearse", "dry-run", films], ["train", films, "--output", tmp_path / "run"]):
        status, _, errors = uniformerv2(*command, *options, "--background", 0.2)
        assert status == 0
        assert all(line in errors for line in told)
    assert "25 training videos of 4 classes, 12 held out" in errors


@pytest.mark.parametrize("share", ["1", "-0.1", "nan"])
def test_a_share_is_a_share(uniformerv2: Run, films: Path, image_model: Path, tmp_path: Path, share: str) -> None:
    ended = uniformerv2("train", films, "--arm", image_model, "-o", tmp_path / "run", f"--background={share}")
    assert ended[0] == 2
    assert_error_line(ended[2], "background must be in [0, 1)", share)


def test_trimmed_videos_have_no_outside(uniformerv2: Run, colours: Path, image_model: Path, tmp_path: Path) -> None:
    ended = uniformerv2("train", colours, "--arm", image_model, "-o", tmp_path / "run", "--background", 0.2)
    assert_refused(ended, "has an end", "--background")
    assert not (tmp_path / "run").exists()


def test_one_class_and_background_are_two(films: Path, recipe: Recipe) -> None:
    red = [
        Annotation(films.parent / row["path"], "red", float(row["start"]), float(row["end"])) for row in rows_of(films)
    ]
    with pytest.raises(AnnotationError, match="at least 2 are needed"):
        split_data(red, recipe.vary(background=0.0), task="classification")
    assert split_data(red, recipe, task="classification").labels == ("background", "red")
    assert find_batch_size(red, recipe, largest=1).largest == 1
