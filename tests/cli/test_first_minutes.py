"""What a newcomer types first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers import Run, assert_refused
from uniformerv2.train.recipes import RECIPES
from uniformerv2.weights.image_files import read_image_source


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch, image_model: Path) -> None:
    """The image transformer of the recipes is the tiny one."""
    monkeypatch.setattr(
        "uniformerv2.weights.loading.read_image_source",
        lambda source, *options, **others: read_image_source(image_model, *options, **others),
    )


def saved(run: str) -> dict[str, dict[str, object]]:
    return json.loads(Path(run, "recipe.json").read_text())


@pytest.mark.usefixtures("no_download")
def test_train_needs_the_videos_alone(uniformerv2: Run, colours: Path) -> None:
    name = f"{colours.name}-run"
    small = ["--size", 32, "--num-frames", 2, "--workers", 0, "--epochs", 1]  # for the time that it takes
    for run in (name, f"{name}2"):
        status, output, errors = uniformerv2("train", colours, *small)
        assert status == 0, errors
        assert "recipe own-small-vit, for 15 videos" in errors
        assert output.splitlines()[-1].startswith(f"{run}/last.safetensors: ")
        assert saved(run)["model"]["arm"] == RECIPES["own-small-vit"].recipe.model.arm
    assert saved(name)["optimization"]["warmup_epochs"] == 0.1  # two of twenty epochs


@pytest.mark.parametrize(("limit", "size"), [(15, "medium"), (16, "small")])
@pytest.mark.usefixtures("no_download")
def test_the_number_of_videos_decides_the_recipe(
    uniformerv2: Run, colours: Path, monkeypatch: pytest.MonkeyPatch, limit: int, size: str
) -> None:
    monkeypatch.setattr("uniformerv2.train.recipes.own.SIZES", (("small", limit), ("medium", 100_000)))
    options = ["--size", 32, "--num-frames", 2, "--workers", 0, "--batch-size", 8, "--epochs", 1]
    for given, name in (([], f"own-{size}-vit"), (["--recipe", "own-small-vit"], "own-small-vit")):
        status, _, errors = uniformerv2("train", colours, *options, *given, "-o", name, "--overwrite")
        assert status == 0, errors
        wanted = RECIPES[name].recipe.lasting(1)
        assert saved(name)["augmentation"]["num_ops"] == wanted.augmentation.num_ops
        assert saved(name)["optimization"]["batch_size"] == 8  # as given, although it is that of the small recipe


def test_no_folder_is_replaced_by_a_guess(uniformerv2: Run, colours: Path, tiny: list[object]) -> None:
    assert_refused(uniformerv2("train", colours, *tiny, "--overwrite"), "give --output")


def test_rehearsals_need_the_videos_alone(uniformerv2: Run, colours: Path, no_download: None) -> None:
    small = ["--size", 32, "--num-frames", 2, "--workers", 0]
    status, output, errors = uniformerv2("rehearse", "dry-run", colours, *small)
    assert (status, "everything works" in output) == (0, True), errors
    assert "recipe own-small-vit, for 15 videos" in errors
