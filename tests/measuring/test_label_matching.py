from __future__ import annotations

from pathlib import Path

import pytest

from uniformerv2.data.annotations import Annotation
from uniformerv2.errors import AnnotationError
from uniformerv2.measuring.labels import match_labels
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
