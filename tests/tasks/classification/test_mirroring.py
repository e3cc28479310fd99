"""Which class a mirrored clip shows, by the names of the classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers import Run, logged, tiny_recipe, train
from uniformerv2.errors import RecipeError
from uniformerv2.tasks.classification.mirroring import find_mirroring
from uniformerv2.tasks.video_task import Counterparts
from uniformerv2.train.recipe import Recipe
from uniformerv2.train.recipes import RECIPES
from uniformerv2.video.augmentation import Augmentation


def mirrored(labels: Sequence[str], flip_labels: str = "left,right") -> dict[str, str | None]:
    """By class, the class that its mirrored clips show; None: they are not mirrored."""
    classes = find_mirroring(Augmentation(flip_labels=flip_labels), labels).classes
    return {label: None if other is None else labels[other] for label, other in zip(labels, classes, strict=True)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("push left", "push right"),
        ("Push LEFT", "push right"),
        ("push_left_2", "push_right_2"),
        ("PushLeft", "PushRight"),
        ("ATurnLeft2", "ATurnRight2"),
        ("left-to-right", "right-to-left"),
        ("left hand up, right hand down", "right hand up, left hand down"),
    ],
)
def test_words_change_places(one: str, other: str) -> None:
    labels = ["clap", one, other]
    assert mirrored(labels) == {"clap": "clap", one: other, other: one}
    assert mirrored(labels, "Right,Left") == mirrored(labels, "auto") == mirrored(labels)


def test_words_are_whole() -> None:
    labels = ["leftover", "rightover", "upright", "bright", "clef_t", "left", "right"]
    assert mirrored(labels) == {name: name for name in labels[:5]} | {"left": "right", "right": "left"}


def test_a_class_without_its_counterpart_is_not_mirrored_and_that_is_told() -> None:
    labels = ["jump", "swipe left", "swipe right", "TurnLeft", *(f"left {number}" for number in range(9))]
    found = find_mirroring(Augmentation(flip_labels="auto"), labels)
    assert (found.pairs, found.classes[:4], set(found.classes[4:])) == ("left,right", (0, 2, 1, None), {None})
    pair, alone = found.notes
    assert (
        pair == "flip_labels left,right: a mirrored clip has the label of the other of 'swipe left' and 'swipe right'"
    )
    assert alone.startswith("'TurnLeft' has no 'turn right', 'left 0' has no 'right 0', ")
    assert alone.endswith(" and 5 more: clips of such a class are not mirrored")


def test_two_classes_of_one_name_are_no_counterpart() -> None:
    assert mirrored(["turn left", "turn right", "turn_right"])["turn left"] is None


def test_several_pairs_and_pairs_of_several_words() -> None:
    labels = ["west wind", "east wind", "go left", "go right", "turn clockwise", "turn counter-clockwise"]
    found = mirrored(labels, "left,right;west,east;clockwise,counter-clockwise")
    assert list(found.values()) == [labels[number] for number in (1, 0, 3, 2, 5, 4)]
    found = mirrored(labels, "auto")
    assert list(found.values()) == [labels[number] for number in (0, 1, 3, 2, 5, 4)]
    assert mirrored(["Clockwise", "Counterclockwise"], "auto")["Clockwise"] == "Counterclockwise"


def test_words_of_any_script() -> None:
    labels = ["बाएँ मुड़ो", "दाएँ मुड़ो", "बाए मुड़ो"]  # the third differs in a mark of a vowel
    assert mirrored(labels, "बाएँ,दाएँ") == {labels[0]: labels[1], labels[1]: labels[0], labels[2]: labels[2]}


@pytest.mark.parametrize("labels", [["run", "walk"], ["turn left", "walk"], ["the left party", "a right angle"]])
def test_nothing_is_found_where_no_two_classes_are_told_apart_by_sides(labels: list[str]) -> None:
    assert find_mirroring(Augmentation(flip_labels="auto"), labels) == Counterparts()
    assert find_mirroring(Augmentation(), labels) == Counterparts()


def test_without_flips_nothing_changes() -> None:
    assert find_mirroring(Augmentation(flip=0.0, flip_labels="auto"), ["left", "right"]) == Counterparts()


def test_words_of_no_class_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"flip_labels west,east: no name of a class has either word; .*'go left'"):
        mirrored(["go left", "go right"], "left,right;west,east")


def test_published_recipes_exchange_no_labels_and_those_for_own_data_do() -> None:
    for named in RECIPES.values():
        assert named.recipe.augmentation.flip_labels == ("none" if named.published else "auto")
    found = find_mirroring(Augmentation(), ["go left", "go right"])
    assert (found.pairs, found.classes) == ("none", ())
    assert found.notes[0].startswith("'go left' and 'go right': mirrored clips keep their labels; flip_labels auto ")


# --- in a training


@pytest.fixture
def sides(colours: Path, tmp_path: Path) -> Path:
    """Three classes, two of which are each other's mirror image by their names."""
    for label, colour in (("turn left", "red"), ("turn right", "green"), ("wait", "blue")):
        (tmp_path / "videos" / label).parent.mkdir(exist_ok=True)
        (tmp_path / "videos" / label).symlink_to(colours / colour)
    return tmp_path / "videos"


@pytest.fixture
def recipe(image_model: Path) -> Recipe:
    return tiny_recipe(image_model, epochs=1, mixup=0.4)


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in logged(run, "step")]


def test_a_run_records_what_auto_means_and_goes_on_with_it(sides: Path, recipe: Recipe, tmp_path: Path) -> None:
    run, plain = tmp_path / "run", tmp_path / "plain"
    train(sides, recipe, run)
    assert json.loads((run / "recipe.json").read_text())["augmentation"]["flip_labels"] == "left,right"
    before = (run / "metrics.jsonl").read_text()
    train(sides, recipe, run, resume=True)
    train(sides, recipe.vary(flip_labels="left,right"), run, resume=True)
    assert (run / "metrics.jsonl").read_text() == before
    with pytest.raises(RecipeError, match="flip_labels left,right is now none"):
        train(sides, recipe.vary(flip_labels="none"), run, resume=True)
    train(sides, recipe.vary(flip_labels="none"), plain)
    assert losses(plain) != losses(run)
    train(sides, recipe, plain, resume=True)  # auto is what the run began with


def test_losses_stay_where_no_label_changes(colours: Path, recipe: Recipe, tmp_path: Path) -> None:
    for flip_labels in ("auto", "none"):
        train(colours, recipe.vary(flip_labels=flip_labels, repeats=2), tmp_path / flip_labels)
    assert losses(tmp_path / "auto") == losses(tmp_path / "none")


def test_a_run_that_is_older_than_the_field_goes_on(colours: Path, recipe: Recipe, tmp_path: Path) -> None:
    train(colours, recipe, tmp_path)
    saved = json.loads((tmp_path / "recipe.json").read_text())
    del saved["augmentation"]["flip_labels"]
    (tmp_path / "recipe.json").write_text(json.dumps(saved, indent=2) + "\n")
    train(colours, recipe, tmp_path, resume=True)


def test_the_command_line_tells(uniformerv2: Run, sides: Path, tmp_path: Path, image_model: Path) -> None:
    tiny = ["--arm", image_model, "--size", 32, "--num-frames", 4, "--batch-size", 4, "--workers", 0]
    options = [sides, *tiny, "--epochs", 1, "--warmup-epochs", 0, "--precision", "fp32"]
    found = "a mirrored clip has the label of the other of 'turn left' and 'turn right'\n"
    status, _, errors = uniformerv2("train", *options, "-o", tmp_path / "run")
    assert status == 0, errors
    assert f"flip_labels left,right: {found}" in errors
    assert f"flip_labels left,right: {found}" in uniformerv2("rehearse", "dry-run", *options)[2]
    errors = uniformerv2("train", *options, "-o", tmp_path / "asked", "--flip-labels", "Left,Right;wait,go")[2]
    assert (
        f"flip_labels Left,Right;wait,go: {found}'wait' has no 'go': clips of such a class are not mirrored" in errors
    )
    assert json.loads((tmp_path / "asked" / "recipe.json").read_text())["augmentation"]["flip_labels"] in errors
    errors = uniformerv2("train", *options, "-o", tmp_path / "none", "--flip-labels", "none")[2]
    assert "'turn left' and 'turn right': mirrored clips keep their labels" in errors
    errors = uniformerv2("train", *options, "-o", tmp_path / "without", "--no-flip")[2]
    assert "mirrored" not in errors
