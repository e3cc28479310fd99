"""`--task multilabel`: trained, gone on with, compared, measured and used."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import Run, assert_refused, before_call, interrupt, logged, noise, tiny_recipe, write_video
from uniformerv2 import Predictor, Views, evaluate, load_model
from uniformerv2.errors import RecipeError
from uniformerv2.measuring.multilabel import evaluate_multilabel
from uniformerv2.tasks.multilabel.task import Multilabel
from uniformerv2.tasks.run import train_model

COLOURS = ("red", "green", "blue")


def mixed(shown: tuple[int, ...], seed: int) -> list[np.ndarray]:
    """Frames of noise in which these channels are bright."""
    frames = list(noise(12, brightest=80, seed=seed))
    for frame in frames:
        frame[..., list(shown)] += 150
    return frames


@pytest.fixture(scope="module")
def lights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of four videos for each set of bright channels, none and all of them too; the last is held out."""
    folder = tmp_path_factory.mktemp("lights")
    rows = ["path,labels,split"]
    for number in range(8):
        shown = tuple(channel for channel in range(3) if number >> channel & 1)
        for take in range(4):
            write_video(folder / f"{number}{take}.mp4", mixed(shown, seed=10 * number + take))
            labels = ";".join(COLOURS[channel] for channel in shown)
            rows.append(f"{number}{take}.mp4,{labels},{'val' if take == 3 else 'train'}")
    (folder / "lights.csv").write_text("\n".join(rows) + "\n")
    return folder / "lights.csv"


@pytest.fixture(scope="module")
def run(lights: Path, image_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has learned them."""
    folder = tmp_path_factory.mktemp("runs") / "lights"
    recipe = tiny_recipe(image_model, epochs=6, mixup=0.2)
    result = train_model(lights, recipe, folder, workers=0, task="multilabel")
    assert result.evaluation.mean_average_precision > 0.95
    assert result.history[-1]["mean_average_precision"] == result.evaluation.mean_average_precision
    return folder


def test_all_labels_above_their_thresholds_are_named(run: Path, lights: Path, uniformerv2: Run, tmp_path: Path) -> None:
    predictor = Predictor(run)
    right = 0
    for number in range(8):
        found = predictor.predict(lights.parent / f"{number}3.mp4")
        needed = dict(zip(predictor.model.labels, predictor.model.thresholds, strict=True))
        assert all(score >= needed[label] for label, score in zip(found.labels, found.scores, strict=True))
        assert list(found.scores) == sorted(found.scores, reverse=True)
        assert found.label == (found.labels[0] if found.labels else None)
        right += {*found.labels} == {COLOURS[channel] for channel in range(3) if number >> channel & 1}
    assert right >= 7
    video = lights.parent / "73.mp4"
    assert predictor.predict(video, top_k=1).labels == predictor.predict(video).labels
    assert predictor.predict(video, threshold=1.0).labels == ()
    # one threshold in the place of all
    every = predictor.predict(lights.parent / "03.mp4", threshold=1e-6)
    assert {*every.labels} == {*COLOURS}
    status, output, _ = uniformerv2("predict", run, lights.parent / "03.mp4", video, "--workers", 0)
    assert (status, output.count("none of these")) == (0, 1)
    assert all(colour in output for colour in COLOURS)
    table = tmp_path / "found.csv"
    assert (
        uniformerv2("predict", run, lights.parent / "03.mp4", video, "-o", table, "--top-k", 2, "--workers", 0)[0] == 0
    )
    first, last = csv.DictReader(table.open())
    assert [first[name] for name in ("label", "label1", "label2")] == ["", "", ""]
    assert "" not in [last[name] for name in ("label", "label1", "label2")]


def test_thresholds_are_chosen_on_the_held_out_videos_and_kept(run: Path, lights: Path) -> None:
    model = load_model(run / "last.safetensors")
    recorded = json.loads((run / "evaluation.json").read_text())["classes"]
    assert list(model.thresholds) == [row["threshold"] for row in recorded]
    assert all(0 < threshold < 1 for threshold in model.thresholds)
    found = evaluate_multilabel(model, lights, workers=0)
    assert found.thresholds == model.thresholds
    again = json.loads((run / "evaluation.json").read_text())
    assert found.to_json()["classes"] == again["classes"]
    assert found.mean_average_precision == again["mean_average_precision"]
    with pytest.raises(RecipeError, match="evaluate_multilabel measures it"):
        evaluate(model, lights, workers=0)


def test_a_class_without_held_out_videos_keeps_a_half(lights: Path, image_model: Path, tmp_path: Path) -> None:
    few = [line for line in lights.read_text().splitlines() if "val" not in line or "blue" not in line]
    (lights.parent / "few.csv").write_text("\n".join(few) + "\n")
    result = train_model(
        lights.parent / "few.csv", tiny_recipe(image_model, epochs=1), tmp_path / "run", workers=0, task="multilabel"
    )
    blue, *others = result.evaluation.classes
    assert (blue.label, blue.videos, blue.average_precision, blue.threshold) == ("blue", 0, None, 0.5)
    assert result.evaluation.mean_average_precision == pytest.approx(
        sum(found.average_precision for found in others) / 2
    )
    assert load_model(result.last).thresholds[0] == 0.5


def test_nothing_held_out_leaves_all_thresholds_at_a_half(lights: Path, image_model: Path, tmp_path: Path) -> None:
    rows = [line.rpartition(",")[0] for line in lights.read_text().splitlines()]
    (lights.parent / "all.csv").write_text("\n".join(rows) + "\n")
    recipe = tiny_recipe(image_model, epochs=1)
    result = train_model(lights.parent / "all.csv", recipe, tmp_path / "run", workers=0, holdout=0, task="multilabel")
    assert result.evaluation is None
    assert load_model(result.last).thresholds == (0.5, 0.5, 0.5)


def test_evaluate_prints_and_writes_the_figures(run: Path, lights: Path, uniformerv2: Run, tmp_path: Path) -> None:
    target = tmp_path / "found.json"
    status, output, errors = uniformerv2(
        "evaluate", run, lights, "-o", target, "--workers", 0, "--clips", 2, "--average", "maximum"
    )
    assert status == 0, errors
    written = json.loads(target.read_text())
    assert f"mAP {written['mean_average_precision']:.1%}" in output
    assert written["views"] == {"clips": 2, "crops": 1, "average": "maximum"}
    assert [row["label"] for row in written["classes"]] == sorted(COLOURS)
    refused = uniformerv2("evaluate", run, lights, "-o", target, "--confusion", tmp_path / "matrix.csv")
    assert refused[0] == 2
    assert "are for models that name one label of a video" in refused[2]


def test_the_maximum_over_the_views_is_that_of_each_class(run: Path, lights: Path) -> None:
    """A video that is red in its first half and blue in its second shows both: each in one of two clips."""
    model = load_model(run / "last.safetensors")
    video = write_video(lights.parent / "halves.mp4", mixed((0,), 1)[:6] + mixed((2,), 2)[:6])
    predictors = {name: Predictor(model, views=Views(4, 1, name)) for name in ("probabilities", "maximum")}  # type: ignore[arg-type]
    clips = predictors["maximum"].clips(video)
    each = model(clips).sigmoid()
    for name, expected in (("probabilities", each.mean(0)), ("maximum", each.amax(0))):
        found = predictors[name].predict(video, threshold=1e-9)
        scores = dict(zip(found.labels, found.scores, strict=True))
        assert [scores[label] for label in model.labels] == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_maximum_is_for_several_labels_only(checkpoint: Path, video: Path) -> None:
    with pytest.raises(RecipeError, match="average maximum is for models that name several labels"):
        Predictor(checkpoint, views=Views(2, 1, "maximum")).predict(video)


def test_a_run_is_trained_broken_off_gone_on_with_and_compared(
    uniformerv2: Run, lights: Path, tiny: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--task", "multilabel", "--epochs", 2, "--loss", "asymmetric", "--class-weights", "balanced"]
    command = ["train", lights, *tiny, *options, "--sampling", "square-root"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    status, output, errors = uniformerv2(*command, "-o", whole)
    assert status == 0, errors
    assert "mAP" in output.splitlines()[-1]
    with monkeypatch.context() as patch:
        before_call(patch, Multilabel, "loss", 8, interrupt)
        assert uniformerv2(*command, "-o", broken)[0] == 130
    status, output, errors = uniformerv2("train", "--resume", "--output", broken, "--workers", 0)
    assert status == 0, errors
    assert logged(broken) == logged(whole)
    for name in ("recipe.json", "train.csv", "held_out.csv", "evaluation.json"):
        assert (broken / name).read_text() == (whole / name).read_text()
    models = [load_model(folder / "best.safetensors") for folder in (broken, whole)]
    assert models[0].thresholds == models[1].thresholds != (0.5, 0.5, 0.5)
    assert all(torch.equal(one, other) for one, other in zip(*(model.parameters() for model in models), strict=True))
    assert_refused(
        uniformerv2("train", "--resume", "-o", broken, "--task", "classification", "--workers", 0), "multilabel"
    )
    status, output, errors = uniformerv2("runs", whole, broken, "--html", tmp_path / "runs.html")
    assert (status, "best mAP" in output, "top-1" in output) == (0, True, False), errors
    page = (tmp_path / "runs.html").read_text()
    assert "held-out mAP" in page
    assert "Confusion" not in page


def test_it_is_rehearsed(uniformerv2: Run, lights: Path, tiny: list[object]) -> None:
    options = [lights, *tiny, "--task", "multilabel"]
    status, output, errors = uniformerv2("rehearse", "dry-run", *options)
    assert (status, "everything works" in output) == (0, True), errors
    status, output, errors = uniformerv2("rehearse", "overfit-batch", *options)
    assert (status, "the batch is learned" in output) == (0, True), output + errors


def test_what_belongs_to_another_task_is_refused(
    uniformerv2: Run, colours: Path, tiny: list[object], tmp_path: Path
) -> None:
    command: list[Any] = ["train", colours, *tiny, "-o", tmp_path / "run"]
    assert_refused(uniformerv2(*command, "--loss", "focal"), "no loss 'focal'; it has cross-entropy")
    assert_refused(uniformerv2(*command, "--task", "multilabel", "--monitor", "top1"), "it has map, micro-map")
    assert_refused(uniformerv2(*command, "--task", "multilable"), "did you mean multilabel?")
    assert not (tmp_path / "run").exists()


def test_cached_features_keep_the_labels_of_each_view(lights: Path, image_model: Path, tmp_path: Path) -> None:
    fixed = {"layout": "scene", "global_after": (1, 2), "frozen_backbone": True, "fixed_views": 1}
    recipe = tiny_recipe(image_model, epochs=2, warmup_epochs=0.0, **fixed)
    losses = [
        [epoch["loss"] for epoch in train_model(lights, chosen, tmp_path / name, workers=0, task="multilabel").history]
        for name, chosen in (("clips", recipe), ("features", recipe.vary(cache_features="fp32")))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_several_processes_choose_the_same_thresholds(
    together: Callable[..., list[Any]], lights: Path, image_model: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(image_model, epochs=1, warmup_epochs=0.0)

    def work() -> tuple[Any, ...]:
        result = train_model(lights, recipe, tmp_path / "run", workers=0, task="multilabel", parallel="fsdp")
        return result.evaluation.thresholds, result.evaluation.to_json(), load_model(result.last).thresholds

    first, second = together(2, work)
    assert first == second
    assert first[0] == first[2] != (0.5, 0.5, 0.5)
