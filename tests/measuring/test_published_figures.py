from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from uniformerv2.data.annotations import Annotation
from uniformerv2.inference.precision import InferencePrecision
from uniformerv2.measuring.published_figures import VALIDATION_VIDEOS, Published, published_figure
from uniformerv2.model.config import Preprocessing
from uniformerv2.video.views import Views
from uniformerv2.weights.labels import class_list
from uniformerv2.weights.zoo import list_models, zoo_entry


def published_model(**changes: Any) -> Any:
    entry = zoo_entry("b16-k400-8x224")
    fields = {"origin": entry.name, "labels": class_list("kinetics400"), "preprocessing": entry.preprocessing()}
    return SimpleNamespace(**fields | changes)


def validation_set(videos: int = 19_404, classes: int = 400) -> list[Annotation]:
    names = class_list("kinetics400")[:classes]
    return [Annotation(Path(f"{number}.mp4"), names[number % classes], split="val") for number in range(videos)]


AS_PUBLISHED = Views(clips=4, crops=3)


def figure(
    model: Any,
    rows: list[Annotation],
    views: Views = AS_PUBLISHED,
    *,
    precision: InferencePrecision = "fp32",
    skipped: int = 0,
) -> Published | None:
    return published_figure(model, rows, views=views, precision=precision, skipped=skipped)


def test_the_published_figure_of_an_equal_measurement() -> None:
    found = figure(published_model(), validation_set())
    assert found == Published("b16-k400-8x224", "kinetics400", "8x3x4", 84.4, 96.3, ())


@pytest.mark.parametrize(
    ("model", "rows", "views", "skipped", "difference"),
    [
        ({}, {}, Views(clips=1, crops=3), 0, "measured with 8x3x1 views"),
        ({}, {}, Views(clips=4, crops=3, average="logits"), 0, "averaged logits"),
        ({"preprocessing": Preprocessing(num_frames=16)}, {}, AS_PUBLISHED, 0, "measured with 16x3x4 views"),
        ({"preprocessing": Preprocessing(size=(256, 256))}, {}, AS_PUBLISHED, 0, "256x256 pixels"),
        ({}, {}, AS_PUBLISHED, 7, "7 videos could not be read"),
        ({}, {"videos": 1000}, AS_PUBLISHED, 0, "measured on 1,000 videos, the validation set has about 19,906"),
        ({}, {"videos": 38_685}, AS_PUBLISHED, 0, "measured on 38,685 videos"),
        ({}, {"classes": 390}, AS_PUBLISHED, 0, "measured without 10 of its 400 classes"),
    ],
)
def test_what_cannot_be_compared_is_said(
    model: dict[str, Any], rows: dict[str, int], views: Views, skipped: int, difference: str
) -> None:
    found = figure(published_model(**model), validation_set(**rows), views, skipped=skipped)
    assert len(found.differences) == 1
    assert difference in found.differences[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"origin": ""},
        {"origin": "trained on colours, from b16-k400-8x224"},
        {"labels": class_list("kinetics600")},  # another head
        {"origin": "l14-k710-8x224-mmaction2", "labels": class_list("kinetics710")},  # no accuracy was published
    ],
)
def test_of_what_is_not_known_nothing_is_said(changes: dict[str, Any]) -> None:
    assert figure(published_model(**changes), validation_set()) is None


def test_rows_of_another_split_are_said_to_be_others() -> None:
    rows = [replace(row, split="test") for row in validation_set()]
    found = figure(published_model(), rows)
    assert found.differences == ("measured on the split test",)


def test_another_precision_is_a_difference() -> None:
    found = figure(published_model(), validation_set(), precision="bf16")
    assert found.differences == ("measured in bf16",)


def test_every_published_accuracy_can_be_compared_with_something() -> None:
    for entry in list_models():
        assert entry.dataset == "kinetics710" or entry.dataset in VALIDATION_VIDEOS, entry.name
