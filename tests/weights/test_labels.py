"""The class lists that ship with the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from uniformerv2.weights.labels import class_list

SETS = (400, 600, 700, 710)


@pytest.mark.parametrize("order", ["official", "mmaction2"])
@pytest.mark.parametrize("classes", SETS)
def test_every_list_is_complete(classes: int, order: str) -> None:
    names = class_list(f"kinetics{classes}", order)  # type: ignore[arg-type]
    assert len(names) == len(set(names)) == classes
    assert all(name == name.strip() and name for name in names)


def test_the_orders_differ() -> None:
    assert class_list("kinetics400", "official")[:3] == ("riding a bike", "marching", "dodgeball")
    assert class_list("kinetics400", "mmaction2")[:3] == ("abseiling", "air drumming", "answering questions")


def test_kinetics_400_is_the_head_of_710_in_the_official_order() -> None:
    assert class_list("kinetics710", "official")[:400] == class_list("kinetics400", "official")


@pytest.mark.parametrize("classes", [600, 700])
def test_the_published_index_lists_lead_from_710_name_to_name(shared: Path, classes: int) -> None:
    path = shared / "data" / "labels" / "InternVideo2" / f"label_mixto{classes}.json"
    merged = class_list("kinetics710", "official")
    aliases = json.loads((shared / "data" / "labels" / "VideoMAEv2" / "k710_identical_label_merge.json").read_text())
    same = {frozenset(pair) for pair in aliases.items()}
    for name, index in zip(class_list(f"kinetics{classes}", "official"), json.loads(path.read_text()), strict=True):  # type: ignore[arg-type]
        assert name == merged[index] or frozenset((name, merged[index])) in same, (name, merged[index])


def test_unknown_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="kinetics500"):
        class_list("kinetics500", "official")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alphabetical"):
        class_list("kinetics400", "alphabetical")  # type: ignore[arg-type]
