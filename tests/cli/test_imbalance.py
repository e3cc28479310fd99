"""Training where some classes have far fewer videos than others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import Run, tiny_recipe, train
from uniformerv2.data.loader import Batch
from uniformerv2.measuring.evaluation import HeldOut
from uniformerv2.measuring.results import Evaluation, VideoResult
from uniformerv2.runs.folder import read_run
from uniformerv2.tasks.classification.task import Classification
from uniformerv2.train.recipe import Recipe


@pytest.fixture
def imbalanced(colours: Path, tmp_path: Path) -> Path:
    """Manifest of five red, two green and one blue video to train on; a green and a blue one are held out."""
    training = [f"red{take}" for take in range(5)] + ["green0", "green1", "blue0"]
    splits = dict.fromkeys(training, "train") | {"green4": "val", "blue4": "val"}
    rows = [f"{video[:-1]}/{video}.mp4,{video[:-1]},{split}" for video, split in splits.items()]
    manifest = tmp_path / "videos.csv"
    manifest.write_text("\n".join(["path,label,split", *rows]) + "\n")
    return manifest


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How many clips of each class are trained on."""
    counts: Counter[int] = Counter()
    loss = Classification.loss

    def counted(task: Classification, model: Any, batch: Batch) -> Any:
        counts.update(batch.labels.tolist())
        return loss(task, model, batch)

    monkeypatch.setattr(Classification, "loss", counted)
    return counts


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [("none", (15, 6, 3)), ("balanced", (8, 8, 8)), ("square-root", (11.5, 7.3, 5.2))],  # of 24: sqrt(5) : sqrt(2) : 1
)
def test_sampling_decides_how_often_a_class_is_trained_on(
    uniformerv2: Run,
    imbalanced: Path,
    colours: Path,
    tiny: list[object],
    tmp_path: Path,
    trained: Counter[int],
    sampling: str,
    expected: tuple[float, ...],
) -> None:
    command = ["train", imbalanced, "--root", colours, "--output", tmp_path / "run", *tiny, "--epochs", 3]
    assert uniformerv2(*command, "--sampling", sampling, "--class-weights", "balanced")[0] == 0
    assert trained.total() == 24
    for number, count in zip((2, 1, 0), expected, strict=True):  # each epoch rounds up or down
        assert abs(trained[number] - count) < 3
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())["optimization"]
    assert (recipe["sampling"], recipe["class_weights"]) == (sampling, "balanced")


@pytest.fixture
def recipe(image_model: Path) -> Recipe:
    return tiny_recipe(image_model, epochs=2, sampling="balanced", class_weights="balanced")


def test_balanced_losses_do_not_depend_on_the_number_of_processes(
    together: Callable[..., list[Any]], imbalanced: Path, colours: Path, recipe: Recipe, tmp_path: Path
) -> None:
    def losses(name: str) -> list[float]:
        return [record["loss"] for record in train(imbalanced, recipe, tmp_path / name, root=colours).history]

    first, second = together(2, lambda: losses("two"))
    assert first == second == pytest.approx(losses("one"), rel=1e-4)


def test_features_of_every_view_that_sampling_repeats_are_cached(
    imbalanced: Path, colours: Path, recipe: Recipe, tmp_path: Path
) -> None:
    """The blue video comes two or three times in the one epoch, with a view of its own each time."""
    recipe = recipe.vary(epochs=1, frozen_backbone=True, fixed_views=3, layout="scene", global_after=(1, 2))
    clips = train(imbalanced, recipe, tmp_path / "clips", root=colours)
    features = train(imbalanced, recipe.vary(cache_features="fp32"), tmp_path / "features", root=colours)
    assert features.skipped == ()
    assert features.history[0]["loss"] == pytest.approx(clips.history[0]["loss"], rel=1e-5)


@pytest.mark.parametrize(("monitor", "best"), [("top1", 1), ("mean-class-accuracy", 2), ("macro-f1", 2), ("loss", 3)])
def test_the_monitor_decides_which_epoch_is_the_best(
    uniformerv2: Run,
    imbalanced: Path,
    colours: Path,
    tiny: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    monitor: str,
    best: int,
) -> None:
    """Epoch 1 is right on the frequent class alone, 2 on some of both, 3 has the lowest loss."""
    targets = [2, 2, 2, 2, 2, 2, 0, 0]
    taken = iter([([2] * 8, 0.999), ([2, 2, 2, 2, 0, 0, 0, 2], 0.999), ([0] * 8, 0.4)])
    labels = ("blue", "green", "red")

    def evaluated(held_out: HeldOut, model: Any) -> Evaluation:
        numbers, confidence = next(taken)
        scores = np.full((8, 3), (1 - confidence) / 2, dtype=np.float32)
        scores[range(8), numbers] = confidence
        return Evaluation(labels, scores, tuple(VideoResult("x.mp4", labels[number], (), ()) for number in targets))

    monkeypatch.setattr(HeldOut, "evaluate", evaluated)
    command = ["train", imbalanced, "--root", colours, "--output", tmp_path / "run", *tiny, "--epochs", 3]
    assert uniformerv2(*command, "--monitor", monitor)[0] == 0
    run = read_run(tmp_path / "run")
    assert run.best is not None
    assert run.best[1] == best
    last, kept = ((tmp_path / "run" / f"{name}.safetensors").read_bytes() for name in ("last", "best"))
    assert (kept == last) == (best == 3)
    assert {"mean_class_accuracy", "macro_f1"} <= run.epochs[0].keys()
