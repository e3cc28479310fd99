"""Labels of annotations matched with a model's, and models whose labels are in the order of another list."""

from __future__ import annotations

import random
from math import comb
from pathlib import Path

import pytest

from uniformerv2.data.annotations import Annotation
from uniformerv2.errors import AnnotationError
from uniformerv2.measuring.labels import Guess, chance_of, match_labels, order_warning
from uniformerv2.weights.labels import class_list


def labelled(*labels: str) -> list[Annotation]:
    return [Annotation(Path(f"{number}.mp4"), label) for number, label in enumerate(labels)]


def test_labels_are_matched_exactly_first() -> None:
    official = class_list("kinetics700", order="official")
    rows, renamed = match_labels(labelled("hugging baby", "hugging (not baby)"), official)
    assert [row.label for row in rows] == ["hugging baby", "hugging (not baby)"]
    assert renamed == {}
    rows, renamed = match_labels(labelled("hugging", "hugging baby"), official)
    assert [row.label for row in rows] == ["hugging (not baby)", "hugging baby"]
    assert renamed == {"hugging": "hugging (not baby)"}


def test_no_two_labels_become_one() -> None:
    with pytest.raises(AnnotationError, match=r"0\.mp4: label 'Brush_Hair'"):
        match_labels(labelled("Brush_Hair", "brush hair"), ["brush hair", "yoga"])
    rows, renamed = match_labels(labelled("Brush_Hair", "yoga"), ["brush hair", "yoga"])
    assert [row.label for row in rows] == ["brush hair", "yoga"]
    assert renamed == {"Brush_Hair": "brush hair"}


def test_unknown_labels_are_named() -> None:
    with pytest.raises(AnnotationError, match=r"2\.mp4: label 'nothing'.*2 label.*: nothing, stacking cups$"):
        match_labels(labelled("hugging", "stacking cups", "nothing"), class_list("kinetics400", order="official"))


OFFICIAL, MMACTION2 = class_list("kinetics400", order="official"), class_list("kinetics400", order="mmaction2")
BOTH = [name for name in OFFICIAL if name in MMACTION2]  # 387 names are spelled alike


def trained(order: tuple[str, ...], names: list[str], *, accuracy: float, videos: int = 4) -> list[Guess]:
    """Guesses of a model whose classifier is in `order`: right so often, and otherwise any class."""
    dice = random.Random(0)
    return [
        (order.index(name) if dice.random() < accuracy else dice.randrange(len(order)), name)
        for name in names
        for _ in range(videos)
    ]


def test_the_other_order_is_named_with_its_accuracy() -> None:
    guesses = trained(MMACTION2, BOTH, accuracy=0.8)
    right = sum(MMACTION2[row] == name for row, name in guesses)
    own = sum(OFFICIAL[row] == name for row, name in guesses)
    assert order_warning(OFFICIAL, guesses) == (
        f"top-1 {own / len(guesses):.1%} is what guessing gives with 400 classes: the labels are probably in another "
        f"order; as mmaction2's kinetics400 order top-1 would be {right / len(guesses):.1%}"
    )
    back = order_warning(MMACTION2, trained(OFFICIAL, BOTH, accuracy=1))
    assert back.endswith("as the official kinetics400 order top-1 would be 100.0%")


def test_the_renamed_classes_are_read_too() -> None:
    names = [name for name in OFFICIAL if name not in MMACTION2]
    pairs = {"inflating balloons": "balloon blowing", "hugging baby": "hugging", "smelling feet": "sniffing"}
    assert set(pairs) <= set(names)
    guesses = [(MMACTION2.index(theirs), ours) for ours, theirs in pairs.items()]
    assert "mmaction2's kinetics400 order top-1 would be 100.0%" in order_warning(OFFICIAL, guesses)


def test_labels_of_no_known_order_but_of_known_classes() -> None:
    shuffled = random.Random(1).sample(BOTH, len(BOTH)) + [name for name in MMACTION2 if name not in BOTH]
    guesses = trained(OFFICIAL, BOTH, accuracy=0.7)
    assert "as the official kinetics400 order top-1 would be 7" in order_warning(shuffled, guesses)


@pytest.mark.parametrize(
    ("labels", "order", "title"),
    [
        (class_list("ssv1"), class_list("ssv2"), "something_something_v2"),
        (class_list("ssv2"), class_list("ssv1"), "something_something_v1"),
        (class_list("anet"), tuple(sorted(class_list("anet"))), "alphabetical activitynet"),
        (class_list("k600", order="official"), class_list("k600", order="mmaction2"), "mmaction2's kinetics600"),
        (class_list("k710", order="mmaction2"), class_list("k710", order="official"), "official kinetics710"),
    ],
)
def test_other_datasets(labels: tuple[str, ...], order: tuple[str, ...], title: str) -> None:
    names = [name for name in labels if name in order]
    assert f"{title} order top-1 would be 5" in order_warning(labels, trained(order, names, accuracy=0.55))


@pytest.mark.parametrize("accuracy", [0.05, 0.3, 0.9])
def test_a_model_that_is_better_than_guessing_is_left_in_peace(accuracy: float) -> None:
    assert order_warning(OFFICIAL, trained(OFFICIAL, BOTH, accuracy=accuracy)) == ""


def test_an_untrained_model_is_not_said_to_have_another_order() -> None:
    for guesses in (
        trained(OFFICIAL, BOTH, accuracy=0),
        [(17, name) for name in BOTH],  # always the same class
        [(17, name) for name in (*BOTH[:5], MMACTION2[17]) for _ in range(50)],  # which is right here by accident
    ):
        warning = order_warning(OFFICIAL, guesses)
        assert "never learned" in warning
        assert "the official kinetics400 order, mmaction2's kinetics400 order" in warning
        assert "would be" not in warning


def test_few_videos_prove_nothing_unless_another_order_has_them_all() -> None:
    assert order_warning(OFFICIAL, trained(OFFICIAL, BOTH[:10], accuracy=0, videos=1)) == ""
    assert order_warning(OFFICIAL, trained(MMACTION2, BOTH[:1], accuracy=1)) == ""
    assert "100.0%" in order_warning(OFFICIAL, trained(MMACTION2, BOTH[:3], accuracy=1, videos=1))


def test_classes_that_no_list_has() -> None:
    names = [f"class {number}" for number in range(400)]
    assert order_warning(names, [(number, names[number - 1]) for number in range(400)]) == ""
    assert order_warning(("a", "b", "c"), [(0, "b")] * 100) == ""


@pytest.mark.parametrize(("trials", "probability"), [(10, 0.1), (40, 0.02), (25, 0.5)])
def test_the_bound_is_never_below_the_chance_and_near_it(trials: int, probability: float) -> None:
    def exact(hits: int) -> float:
        rest = 1 - probability
        return sum(comb(trials, k) * probability**k * rest ** (trials - k) for k in range(hits, trials + 1))

    for hits in range(trials + 1):
        assert chance_of(hits, trials, probability) >= exact(hits) * (1 - 1e-9)
        assert chance_of(hits, trials, probability) <= exact(hits) * 3 * (1 + hits) + (hits <= trials * probability)
    assert chance_of(trials, trials, probability) == pytest.approx(probability**trials)
