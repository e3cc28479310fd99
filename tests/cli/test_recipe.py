"""`uniformerv2 train --recipe NAME`, and options that differ from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import Run
from uniformerv2.train.recipe import Recipe
from uniformerv2.train.recipes import RECIPES


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes that would have been trained; nothing is."""
    recipes: list[Recipe] = []

    class Trained:
        last = Path("last.safetensors")

        class evaluation:
            summary = "0 of 0 held-out videos right"

    def train(data: Path, recipe: Recipe, output: Path, **options: Any) -> type[Trained]:
        recipes.append(recipe)
        return Trained

    monkeypatch.setattr("uniformerv2.tasks.run.train_model", train)
    return recipes


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_trained_as_it_is(uniformerv2: Run, trained: list[Recipe], name: str) -> None:
    status, output, errors = uniformerv2("train", "videos", "--output", "run", "--recipe", name)
    assert (status, output) == (0, "last.safetensors: 0 of 0 held-out videos right\n")
    assert trained == [RECIPES[name].recipe.resolved()]
    assert errors.splitlines() == RECIPES[name].lines()


def test_options_replace_what_the_recipe_says(uniformerv2: Run, trained: list[Recipe]) -> None:
    status, *_ = uniformerv2(
        *("train", "videos", "--output", "run", "--recipe=b16-ssv2-16x224"),
        *("--lr", 1e-5, "--flip", "--num-frames", 8, "--head-dropout", 0.25, "--clips", 2, "--repeats", 1),
    )
    assert status == 0
    expected = RECIPES["b16-ssv2-16x224"].recipe.vary(
        lr=1e-5, flip=0.5, num_frames=8, head_dropout=0.25, clips=2, repeats=1
    )
    assert trained == [expected]


def test_another_start_takes_the_place_of_the_recipes(uniformerv2: Run, trained: list[Recipe]) -> None:
    name = "b16-k400-k710-8x224"
    uniformerv2("train", "videos", "--output", "run", "--recipe", name, "--checkpoint", "mine.safetensors")
    uniformerv2("train", "videos", "--output", "run", "--recipe", name, "--arm", "vit.safetensors")
    before = RECIPES[name].recipe.model
    assert [recipe.model for recipe in trained] == [
        replace(before, checkpoint="mine.safetensors"),
        replace(before, checkpoint=None, map_head=None, arm="vit.safetensors"),
    ]


def test_scaling_with_the_batch_is_said(uniformerv2: Run, trained: list[Recipe]) -> None:
    *_, errors = uniformerv2(
        *("train", "videos", "--output", "run", "--recipe", "b16-k400-8x224"),
        *("--batch-size", 64, "--lr-base-batch", 256),
    )
    assert "scaled with the batch size: end_lr 1e-06 is now 2.5e-07, lr 1e-05 is now 2.5e-06" in errors
    assert trained[0].optimization.lr == pytest.approx(2.5e-6)


def test_help_shows_the_values_of_the_recipe(uniformerv2: Run) -> None:
    def help_of(*arguments: str) -> str:
        """Without spaces: names are broken at their hyphens."""
        return "".join(uniformerv2("train", *arguments, "--help")[1].replace("│", "").split())

    text = help_of("--recipe", "l14-ssv1-32x224")
    for default in ("2e-05", "l14-ssv1-32x224", "openai/clip-vit-large-patch14", "bgr"):
        assert f"(default:{default})" in text
    assert "(default:0.0003)" in help_of()


@pytest.mark.parametrize("recipe", [[], ["--recipe", "b16-k400-8x224"]])
def test_an_unknown_option_is_told_the_nearest(uniformerv2: Run, recipe: list[str]) -> None:
    status, _, errors = uniformerv2("train", "videos", "--output", "run", *recipe, "--warmup-epoch", 3)
    assert status == 2
    assert "--warmup-epochs" in errors


def test_what_was_scaled_is_what_is_saved(uniformerv2: Run, colours: Path, image_model: Path, tmp_path: Path) -> None:
    status, _, errors = uniformerv2(
        *("train", colours, "--output", tmp_path / "run", "--recipe", "own-small-vit", "--arm", image_model),
        *("--size", 32, "--num-frames", 4, "--batch-size", 4, "--epochs", 1, "--warmup-epochs", 0, "--workers", 0),
        *("--lr", 4e-3, "--lr-base-batch", 8),
    )
    assert status == 0, errors
    saved = json.loads((tmp_path / "run" / "recipe.json").read_text())["optimization"]
    assert (saved["lr"], saved["lr_base_batch"], saved["batch_size"]) == (2e-3, 4, 4)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps[0]["lr"] == pytest.approx(2e-3)


def test_recipes_are_listed_and_say_what_they_change(uniformerv2: Run) -> None:
    status, output, _ = uniformerv2("recipes")
    assert status == 0
    assert [line.split(":")[0] for line in output.splitlines()] == list(RECIPES)
    changes = uniformerv2("recipes", "--show", "l14-ssv2-32x224")[1].splitlines()
    assert changes[0] == RECIPES["l14-ssv2-32x224"].lines()[0]
    assert "changes of b16-k400-8x224:" in changes
    assert "  num_frames 32 instead of 8" in changes
    assert not any("weight_decay" in line for line in changes)  # it is the same
    assert "changes of own-small-vit:" in uniformerv2("recipes", "--show", "own-large-clip")[1]
    assert "weight_decay 0.05" in uniformerv2("recipes", "--show", "own-small-vit")[1]  # all of it
