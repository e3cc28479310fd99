"""Which class a clip that is played backwards shows, and trainings with such clips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers import Run, assert_refused, logged, tiny_recipe, train
from uniformerv2.errors import RecipeError
from uniformerv2.tasks.classification.reversing import find_reversing
from uniformerv2.tasks.video_task import Counterparts
from uniformerv2.train.recipe import Recipe
from uniformerv2.train.recipes import RECIPES
from uniformerv2.video.augmentation import Augmentation

LABELS = ["close", "open", "sit_down", "stand_up", "wave", "walk"]


def reversing(asked: str, labels: list[str] = LABELS) -> Counterparts:
    return find_reversing(Augmentation(reverse_labels=asked), labels)


def test_pairs_change_places_and_others_are_never_reversed() -> None:
    asked = "sit_down , stand_up;open,close;wave,wave"
    found = reversing(asked)
    assert (found.pairs, found.classes) == (asked, (1, 0, 3, 2, 4, None))
    assert found.notes == (
        "reverse_labels: 'sit_down' and 'stand_up', 'open' and 'close' change places where a clip is played backwards",
        "reverse_labels: clips of 'wave' are played backwards, too, and keep their label",
    )
    assert reversing("wave,wave").classes == (None, None, None, None, 4, None)
    assert reversing("none") == Counterparts()


def test_names_are_compared_as_labels_are() -> None:
    """In composed form, as file names of macOS are not; whole, and in the case that they have."""
    assert reversing("schlie\u00dfe T\u00fcr,\u00f6ffne", ["o\u0308ffne", "schlie\u00dfe Tu\u0308r"]).classes == (1, 0)
    for other in ("Open", "op", "open door"):
        with pytest.raises(RecipeError, match=f"no class is called '{other}'"):
            reversing(f"close,{other}")


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        ("sit_down,stand", "no class is called 'stand'"),
        ("open,close;close,wave", "'close' stands in 2 pairs"),
        ("wave,wave;wave,walk", "'wave' stands in 2 pairs"),
        ("open,close;close,open", "'open' stands in 2 pairs"),
        ("open", "'open' is no pair"),
        ("open,close,wave", "'open,close,wave' is no pair"),
        ("open,close;", "'' is no pair"),
        ("", "'' is no pair"),
        ("open,", "no class is called ''"),
        ("auto", "'auto' is no pair"),
    ],
)
def test_what_is_wrong_is_told_with_the_classes_there_are(asked: str, wrong: str) -> None:
    with pytest.raises(RecipeError) as error:
        reversing(asked)
    line = str(error.value)
    assert line.startswith(f"reverse_labels {asked}: {wrong}; it takes none or pairs of class names, each in one pair")
    assert line.endswith("the classes are 'close', 'open', 'sit_down', 'stand_up', 'wave' and 1 more")


def test_no_recipe_reverses_unasked() -> None:
    assert {named.recipe.augmentation.reverse_labels for named in RECIPES.values()} == {"none"}


def test_a_single_frame_has_no_order(image_model: Path) -> None:
    with pytest.raises(RecipeError, match="reverse_labels needs clips of several frames, got num_frames 1"):
        tiny_recipe(image_model, num_frames=1, reverse_labels="open,close")
    tiny_recipe(image_model, num_frames=1)


# --- in a training


@pytest.fixture
def recipe(image_model: Path) -> Recipe:
    return tiny_recipe(image_model, epochs=1, mixup=0.4, repeats=2)


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in logged(run, "step")]


def test_a_run_goes_on_with_its_pairs_alone(colours: Path, recipe: Recipe, tmp_path: Path) -> None:
    run, plain = tmp_path / "run", tmp_path / "plain"
    reversed_too = recipe.vary(reverse_labels="red,green")
    train(colours, reversed_too, run)
    train(colours, recipe, plain)
    assert losses(run) != losses(plain)
    before = (run / "metrics.jsonl").read_text()
    train(colours, reversed_too, run, resume=True)
    assert (run / "metrics.jsonl").read_text() == before
    with pytest.raises(RecipeError, match="reverse_labels red,green is now none"):
        train(colours, recipe, run, resume=True)


def test_a_run_that_is_older_than_the_field_goes_on(colours: Path, recipe: Recipe, tmp_path: Path) -> None:
    train(colours, recipe, tmp_path)
    saved = json.loads((tmp_path / "recipe.json").read_text())
    assert saved["augmentation"].pop("reverse_labels") == "none"
    assert Recipe.from_fields(saved).augmentation.reverse_labels == "none"
    (tmp_path / "recipe.json").write_text(json.dumps(saved, indent=2) + "\n")
    train(colours, recipe, tmp_path, resume=True)
    with pytest.raises(RecipeError, match="reverse_labels none is now red,red"):
        train(colours, recipe.vary(reverse_labels="red,red"), tmp_path, resume=True)


def test_the_command_line_tells(uniformerv2: Run, colours: Path, tmp_path: Path, image_model: Path) -> None:
    tiny = ["--arm", image_model, "--size", 32, "--num-frames", 4, "--batch-size", 4, "--workers", 0]
    options = [colours, *tiny, "--epochs", 1, "--warmup-epochs", 0, "--precision", "fp32"]
    run, told = tmp_path / "run", "reverse_labels: 'red' and 'green' change places where a clip is played backwards\n"
    asked = ["--reverse-labels", "red,green"]
    status, _, errors = uniformerv2("train", *options, "-o", run, *asked)
    assert status == 0, errors
    assert told in errors
    assert json.loads((run / "recipe.json").read_text())["augmentation"]["reverse_labels"] == "red,green"
    status, _, errors = uniformerv2("train", "-o", run, "--resume")
    assert status == 0, errors
    assert told in errors
    assert told in uniformerv2("rehearse", "dry-run", *options, *asked)[2]
    assert "backwards" not in uniformerv2("train", *options, "-o", tmp_path / "plain")[2]
    refused = uniformerv2("train", *options, "-o", tmp_path / "refused", "--reverse-labels", "red,grean")
    assert_refused(refused, "reverse_labels red,grean: no class is called 'grean'", "'blue', 'green', 'red'")
    assert not (tmp_path / "refused").exists()
