"""The class lists that ship with the package, their orders, and heads mapped from one to another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from uniformerv2.errors import CheckpointError
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.weights.labels import (
    DATASETS,
    ClassOrder,
    class_list,
    dataset_name,
    datasets_with,
    head_part,
    known_lists,
    known_order,
    map_head,
    matching,
    released_labels,
    reordering,
)
from weights.samples import small_model

SETS = (400, 600, 700, 710)
ORDERS: tuple[ClassOrder, ...] = ("official", "mmaction2")
MMACTION2 = {
    **{"moments_in_time": "mit", "something_something_v1": "sthv1", "something_something_v2": "sthv2"},
    **{"activitynet": "activitynet", "hacs": "activitynet", "ucf101": "ucf101", "hmdb51": "hmdb51"},
}


# --- the lists


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("dataset", "classes"), DATASETS.items())
def test_every_list_is_complete(dataset: str, classes: int, order: ClassOrder) -> None:
    names = class_list(dataset, order=order)
    assert len(names) == len({"".join(filter(str.isalnum, name.casefold())) for name in names}) == classes
    assert all(name == " ".join(name.split()) and name.isascii() and name for name in names)


def test_the_orders_differ() -> None:
    assert class_list("kinetics400", order="official")[:3] == ("riding a bike", "marching", "dodgeball")
    assert class_list("kinetics400", order="mmaction2")[:3] == ("abseiling", "air drumming", "answering questions")


def test_kinetics_400_is_the_head_of_710_in_the_official_order() -> None:
    assert class_list("kinetics710", order="official")[:400] == class_list("kinetics400", order="official")


@pytest.mark.parametrize("dataset", DATASETS)
def test_lists_are_the_published_ones(shared: Path, dataset: str) -> None:
    labels = shared / "data" / "labels"
    if dataset in MMACTION2:
        file = labels / "mmaction2" / MMACTION2[dataset] / "label_map.txt"
        assert class_list(dataset, order="official") == class_list(dataset, order="mmaction2")
    else:
        file = labels / "mmaction2" / f"label_map_k{dataset[-3:]}.txt"
        official = "710" if dataset == "kinetics400" else dataset[-3:]
        published = (labels / "VideoMAEv2" / f"label_map_k{official}.txt").read_text().splitlines()
        assert class_list(dataset, order="official") == tuple(published[: DATASETS[dataset]])
    assert class_list(dataset, order="mmaction2") == tuple(file.read_text().splitlines())


def test_datasets_have_short_names() -> None:
    names = {"k400": "kinetics400", "K710": "kinetics710", "mitv1": "moments_in_time", "anet": "activitynet"}
    names |= {"SSv2": "something_something_v2", "sthv1": "something_something_v1", "hmdb51": "hmdb51"}
    for name, dataset in {**names, "Something-Something-v2": "something_something_v2"}.items():
        assert dataset_name(name) == dataset
        assert class_list(name) == class_list(dataset, order="official")


def test_unknown_lists_are_refused() -> None:
    for call in (class_list, dataset_name):
        with pytest.raises(ValueError, match="kinetics500"):
            call("kinetics500")
    with pytest.raises(ValueError, match="alphabetical"):
        class_list("kinetics400", order="alphabetical")  # type: ignore[arg-type]


def test_datasets_of_a_number_of_classes() -> None:
    assert datasets_with(400) == ["kinetics400"]
    assert datasets_with(174) == ["something_something_v1", "something_something_v2"]
    assert datasets_with(200) == ["activitynet", "hacs"]
    assert datasets_with(1000) == []


@pytest.mark.parametrize("dataset", DATASETS)
def test_uncertain_labels_of_released_heads_have_a_note(dataset: str) -> None:
    labels, note = released_labels(dataset, "official")
    assert labels == class_list(dataset, order="official")
    assert ("inferred" if dataset.startswith("kinetics") else "unconfirmed") in note
    assert "\n" not in note
    labels, note = released_labels(dataset, "mmaction2")
    assert labels == class_list(dataset, order="mmaction2")
    assert bool(note) == (dataset == "hacs")  # mmaction2 publishes no list of HACS
    assert ("ActivityNet" in note) == (dataset == "hacs")


# --- orders


@pytest.mark.parametrize("classes", SETS)
def test_a_list_is_recognised_name_by_name(classes: int) -> None:
    for order in ORDERS:
        names = class_list(f"kinetics{classes}", order=order)
        assert known_order(list(names)) == (f"kinetics{classes}", order)
        assert known_order(names[::-1]) is None
        assert known_order(names[:-1]) is None
        assert known_order((*names[:-1], "another")) is None
    assert known_order(()) is None


def test_lists_of_one_order_are_recognised_too() -> None:
    for dataset in MMACTION2:
        known = known_order(class_list(dataset))
        assert known == ("activitynet" if dataset == "hacs" else dataset, "mmaction2")


@pytest.mark.parametrize("classes", SETS)
def test_there_and_back_is_where_one_was(classes: int) -> None:
    official, mmaction2 = (class_list(f"kinetics{classes}", order=order) for order in ORDERS)
    there, back = reordering(official, "mmaction2"), reordering(mmaction2, "official")
    assert sorted(there) == sorted(back) == [*range(classes)]
    assert [there[row] for row in back] == [*range(classes)]
    for labels, order in ((official, "official"), (mmaction2, "mmaction2")):
        assert reordering(labels, order) == [*range(classes)]  # type: ignore[arg-type]
    # nearly all names are spelled alike, so a wrong pair cannot hide
    odd = [(mmaction2[i], official[row]) for i, row in enumerate(there) if mmaction2[i] != official[row]]
    assert len(odd) == {400: 13, 600: 3, 700: 1, 710: 1}[classes]


def test_renamed_classes_are_paired() -> None:
    official, mmaction2 = (class_list("kinetics400", order=order) for order in ORDERS)
    rows = reordering(official, "mmaction2")
    pairs = {name: official[row] for name, row in zip(mmaction2, rows, strict=True) if name != official[row]}
    assert pairs["balloon blowing"] == "inflating balloons"
    assert pairs["dying hair"] == "dyeing hair"
    assert pairs["tying tie"] == "tying necktie"
    assert pairs["skiing (not slalom or crosscountry)"] == "skiing mono"
    assert pairs["hugging"] == "hugging baby"  # what the official list calls it


def test_unknown_labels_have_no_other_order() -> None:
    assert reordering(("a", "b"), "official") is None
    assert reordering(class_list("hmdb51"), "official") == [*range(51)]


def test_names_match_however_they_are_spelled() -> None:
    assert matching(["Brush hair", '"cartwheel"'], ["cartwheel", "brush_hair", "catch"]) == [1, 0]
    assert matching(["brush hair", "wave"], ["cartwheel", "brush-hair"]) is None


def test_known_lists_name_each_order_once() -> None:
    assert list(known_lists(400)) == ["the official kinetics400 order", "mmaction2's kinetics400 order"]
    assert list(known_lists(710)) == [
        "the official kinetics710 order",
        "mmaction2's kinetics710 order",
        "the alphabetical kinetics710 order",
    ]
    something = known_lists(174)
    assert list(something) == [  # the second version is in alphabetical order
        "mmaction2's something_something_v1 order",
        "mmaction2's something_something_v2 order",
    ]
    assert len({frozenset(labels) for labels in something.values()}) == 1
    assert known_lists(3) == {}


# --- parts of Kinetics-710


@pytest.mark.parametrize("classes", [400, 600, 700])
def test_head_rows_are_the_published_index_lists(shared: Path, classes: int) -> None:
    labels = shared / "data" / "labels"
    mmaction2 = json.loads((labels / "mmaction2" / f"map_k{classes}.json").read_text())
    assert head_part(class_list("k710", order="mmaction2"), f"k{classes}")[1] == mmaction2
    if classes == 400:  # row i is row i
        official = [*range(400)]
    else:
        official = json.loads((labels / "InternVideo2" / f"label_mixto{classes}.json").read_text())
    assert head_part(class_list("k710", order="official"), f"k{classes}")[1] == official


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("classes", [400, 600, 700])
def test_parts_stay_in_the_order_of_the_whole(classes: int, order: ClassOrder) -> None:
    whole = class_list("kinetics710", order=order)
    labels, rows = head_part(whole, f"k{classes}")
    assert labels == class_list(f"kinetics{classes}", order=order)
    assert len(set(rows)) == classes


def test_the_published_merge_is_ours(shared: Path) -> None:
    """The names that Kinetics-710 joined, as its authors list them, lead to the row of the joined class."""
    merge = json.loads((shared / "data" / "labels" / "VideoMAEv2" / "k710_identical_label_merge.json").read_text())
    whole = class_list("kinetics710", order="official")
    for old, new in merge.items():
        rows = matching([old], whole)
        assert whole[rows[0]] in (old, new)


@pytest.fixture
def model() -> UniFormerV2:
    model = small_model(class_list("kinetics710")).eval()
    model.loading_report = ("a",)
    return model


def test_a_mapped_head_gives_the_logits_of_those_classes(model: UniFormerV2) -> None:
    part = map_head(model, "k600")
    names = class_list("kinetics600", order="official")
    assert part.labels == names
    assert part.label_note == model.label_note == "a guess"
    assert part.loading_report[:-1] == model.loading_report == ("a",)
    assert "600 of the 710 rows" in part.loading_report[-1]
    assert (part.config.num_classes, part.head.linear.out_features) == (600, 600)
    clip = torch.randint(0, 256, (2, 3, 4, 16, 24), dtype=torch.uint8)
    with torch.inference_mode():
        whole, mapped = model(clip), part(clip)
    assert mapped.shape == (2, 600)
    rows = [model.labels.index(name) for name in names]  # the official names are the same in both lists
    assert torch.allclose(mapped, whole[:, rows], atol=1e-6)


def test_mapping_leaves_the_model_as_it_is_and_copies_nothing_but_the_head(model: UniFormerV2) -> None:
    part = map_head(model, "kinetics400")
    assert (model.config.num_classes, len(model.labels), model.head.linear.weight.shape[0]) == (710, 710, 710)
    assert not part.training
    theirs = dict(model.named_parameters())
    for name, parameter in part.named_parameters():
        assert parameter.requires_grad
        assert (parameter is theirs[name]) == (not name.startswith("head.linear")), name
    assert part.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ((), "none"),
        (class_list("kinetics400", order="mmaction2"), "kinetics400 in the mmaction2 order"),
        (class_list("kinetics710", order="official")[::-1], "710 others (bull fighting"),
    ],
)
def test_only_a_head_of_710_can_be_mapped(model: UniFormerV2, labels: tuple[str, ...], found: str) -> None:
    model.labels = labels
    with pytest.raises(CheckpointError) as error:
        map_head(model, "k400")
    assert found in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dataset", ["k710", "mit", "k500"])
def test_other_parts_are_refused(model: UniFormerV2, dataset: str) -> None:
    with pytest.raises(CheckpointError, match=dataset):
        map_head(model, dataset)
