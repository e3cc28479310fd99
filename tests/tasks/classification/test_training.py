from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import logged, tiny_recipe, train
from uniformerv2 import load_model
from uniformerv2.data.sources import read_annotations
from uniformerv2.errors import AnnotationError, CheckpointError, RecipeError
from uniformerv2.measuring.evaluation import evaluate
from uniformerv2.model.config import Preprocessing
from uniformerv2.tasks import run as runs
from uniformerv2.tasks.run import TrainingResult
from uniformerv2.tasks.start import build_model
from uniformerv2.train.recipe import ClipRecipe, ModelRecipe, Recipe
from uniformerv2.video.views import Views


@pytest.fixture(scope="module")
def recipe(image_model: Path) -> Recipe:
    """Five epochs of a tiny armed model with dropout, so that randomness matters."""
    return tiny_recipe(image_model, epochs=5, head_dropout=0.1, drop_path=0.1)


@pytest.fixture(scope="module")
def run(colours: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return train(colours, recipe, tmp_path_factory.mktemp("runs") / "colours")


# --- training


def test_a_tiny_armed_model_learns_three_colours(run: TrainingResult) -> None:
    assert run.evaluation.top1 == 1.0
    assert run.evaluation.correct == len(run.evaluation.videos) == 3  # one of five files of each class
    assert [record["epoch"] for record in run.history] == [1, 2, 3, 4, 5]
    assert run.history[-1]["top1"] == 1.0
    assert run.history[-1]["held_out_loss"] < run.history[0]["held_out_loss"] / 2
    assert run.skipped == ()


def test_the_folder_of_a_run_tells_everything(run: TrainingResult, recipe: Recipe) -> None:
    folder = run.last.parent
    assert {file.name for file in folder.iterdir()} == {
        *("recipe.json", "train.csv", "held_out.csv", "data.json", "metrics.jsonl"),
        *("evaluation.json", "last.safetensors", "best.safetensors", "state"),
    }
    auto_is = {"compile": False, "flip_labels": "none", "monitor": "top1"}  # on a CPU, for classes without sides
    assert (folder / "recipe.json").read_text() == recipe.vary(**auto_is).to_json()
    training, held_out = (read_annotations(folder / name) for name in ("train.csv", "held_out.csv"))
    assert (len(training), len(held_out)) == (12, 3)
    assert not {row.path for row in training} & {row.path for row in held_out}
    assert (folder / "evaluation.json").read_text() == json.dumps(run.evaluation.to_json(), indent=2) + "\n"


def test_checkpoints_carry_labels_and_preprocessing(run: TrainingResult) -> None:
    for path in (run.last, run.best):
        model = load_model(path)
        assert model.labels == ("blue", "green", "red")
        assert model.preprocessing == Preprocessing(num_frames=4, size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
        assert model.config.head_dropout == 0.1


def test_the_last_checkpoint_is_the_model_that_was_evaluated(run: TrainingResult) -> None:
    again = evaluate(run.last, run.last.parent / "held_out.csv", workers=0)
    assert again == run.evaluation


def test_a_resumed_run_keeps_the_precision_that_it_began_with(
    run: TrainingResult, colours: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume = lambda precision: train(colours, recipe.vary(precision=precision), tmp_path / "run", resume=True)  # noqa: E731
    shutil.copytree(run.last.parent, tmp_path / "run")  # a run in fp32
    meaning = {"auto": "bf16"}
    monkeypatch.setattr(runs, "pick_training_precision", lambda wanted, *_, **__: meaning.get(wanted, wanted))
    resume("auto")
    assert logged(tmp_path / "run") == logged(run.last.parent)
    with pytest.raises(RecipeError, match="precision fp32 is now bf16"):
        resume("bf16")


def test_loader_workers_change_nothing(run: TrainingResult, colours: Path, recipe: Recipe, tmp_path: Path) -> None:
    train(colours, recipe, tmp_path / "run", workers=2)
    assert logged(tmp_path / "run") == logged(run.last.parent)


def test_another_seed_is_another_run(run: TrainingResult, colours: Path, recipe: Recipe, tmp_path: Path) -> None:
    train(colours, recipe.vary(epochs=1, seed=1), tmp_path / "run", holdout_list=None)
    assert logged(tmp_path / "run")[0]["loss"] != logged(run.last.parent)[0]["loss"]


def test_a_list_decides_what_is_held_out(colours: Path, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("*0.mp4\n*4.mp4\n")
    result = train(colours, recipe.vary(epochs=1), tmp_path / "run", holdout_list=tmp_path / "list.txt")
    assert sorted(Path(video.path).name for video in result.evaluation.videos) == [
        f"{colour}{take}.mp4" for colour in ("blue", "green", "red") for take in (0, 4)
    ]


def test_an_unreadable_training_video_is_named_and_the_others_are_learned(
    colours: Path, recipe: Recipe, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    manifest = tmp_path / "videos.csv"
    with manifest.open("w", newline="") as file:
        rows = [[row.path, row.label, "val" if "4" in row.path.stem else "train"] for row in read_annotations(colours)]
        csv.writer(file).writerows([["path", "label", "split"], *rows, [broken, "red", "train"]])
    result = train(manifest, recipe.vary(epochs=1, batch_size=13), tmp_path / "run")
    assert [video.path for video in result.skipped] == [str(broken)]
    assert logged(tmp_path / "run")[0]["clips"] == 12
    assert len(result.evaluation.videos) == 3


def test_nothing_is_written_before_everything_is_right(colours: Path, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "red").symlink_to(colours / "red")
    output = tmp_path / "run"
    for error, data, changed in (
        (AnnotationError, tmp_path / "one", recipe),  # a single class
        (AnnotationError, tmp_path / "absent", recipe),
        (CheckpointError, colours, replace(recipe, model=ModelRecipe(arm=str(tmp_path / "absent.safetensors")))),
        (RecipeError, colours, replace(recipe, model=ModelRecipe(model="XXL/7"))),
        (RecipeError, colours, replace(recipe, clip=ClipRecipe(size=40))),  # not divisible by 16
    ):
        with pytest.raises(error):
            train(data, changed, output)
        assert not output.exists()


def test_the_run_is_measured_with_the_views_of_the_recipe(colours: Path, recipe: Recipe, tmp_path: Path) -> None:
    one = recipe.vary(epochs=1, ema=0.9, clips=2, crops=3)
    result = train(colours, one, tmp_path / "run")
    held_out = result.last.parent / "held_out.csv"
    assert result.evaluation == evaluate(result.last, held_out, views=Views(2, 3), workers=0)
    again = train(colours, one, tmp_path / "run", resume=True)
    assert again.evaluation == result.evaluation


def test_a_frozen_backbone_stays_as_it_was_armed(colours: Path, recipe: Recipe, tmp_path: Path) -> None:
    one = recipe.vary(epochs=1, ema=0.9, frozen_backbone=True)
    trained = load_model(train(colours, one, tmp_path / "run").last).state_dict()
    armed = build_model(one, ["blue", "green", "red"]).state_dict()
    changed = {name for name in armed if not torch.equal(armed[name], trained[name])}
    assert {name for name in changed if name.startswith("backbone.") and ".local" not in name} == set()
    assert {"head.linear.weight", "mix", "backbone.blocks.0.local1.expand.weight"} <= changed
    assert "backbone.blocks.0.local1.norm.running_mean" in changed


def test_a_batch_is_counted_in_clips_whatever_is_repeated_or_accumulated(
    colours: Path, recipe: Recipe, tmp_path: Path
) -> None:
    one = recipe.vary(epochs=1, batch_size=12, accumulate=2, ema=0.9, repeats=3, mixup=0.4, cutmix=1.0, erasing=0.5)
    train(colours, one, tmp_path / "run")
    # of four videos, three clips each
    assert [record["clips"] for record in logged(tmp_path / "run", "step")] == [12, 12, 12]


def test_annotations_are_data_too(run: TrainingResult, colours: Path, recipe: Recipe, tmp_path: Path) -> None:
    train(read_annotations(colours), recipe.vary(epochs=1, warmup_epochs=0.0), tmp_path / "run")
    assert (tmp_path / "run" / "train.csv").read_text() == (run.last.parent / "train.csv").read_text()
