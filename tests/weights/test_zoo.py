"""The table of published checkpoints, against the facts that were collected of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from uniformerv2.errors import CheckpointError
from uniformerv2.model.counting import count_parameters
from uniformerv2.weights import zoo
from uniformerv2.weights.zoo import ZooEntry, fetch_entry, list_models, nearest, zoo_entry

SHORT = {
    **{f"kinetics{classes}": f"k{classes}" for classes in (400, 600, 700, 710)},
    **{"moments_in_time": "mit", "something_something_v1": "ssv1", "something_something_v2": "ssv2"},
    **{"activitynet": "anet", "hacs": "hacs"},
}
HUB_SHA256 = "743da61c97f6281bd11ef1d364c2101698c8e89ff7722ee957378e36ef344005"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no mirror, no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("UNIFORMERV2_HUB", raising=False)
    return tmp_path / "cache"


def entry(name: str) -> ZooEntry:
    found = zoo_entry(name)
    assert found is not None, name
    return found


def official(dataset: str) -> list[ZooEntry]:
    return [one for one in list_models(dataset=dataset) if one.format == "official"]


def name_of_experiment(experiment: str) -> str:
    """Our name of an official experiment: exp/k400/frozen_k400+k710_l14_f8x336 -> frozen-l14-k400-k710-8x336."""
    frozen, dataset, k710, size, frames, pixels = re.fullmatch(
        r"exp/\w+/(frozen_)?([a-z0-9]+?)(\+k710)?_([bl]1[46])_f?(\d+)x(\d+)", experiment
    ).groups()  # type: ignore[union-attr]
    return f"{'frozen-' if frozen else ''}{size}-{dataset}{'-k710' if k710 else ''}-{frames}x{pixels}"


# --- the table


def test_there_are_49_official_models_and_23_of_mmaction2() -> None:
    assert Counter(one.format for one in list_models()) == {"official": 49, "mmaction2": 23}
    assert len({one.url for one in list_models()}) == 72


def test_names_say_what_a_model_is() -> None:
    for one in list_models():
        k710 = "-k710" if one.pretraining == "CLIP+K710" else ""
        size = {"B/16": "b16", "L/14": "l14", "L/14@336": "l14"}[one.size]
        name = f"{'frozen-' * one.frozen}{size}-{SHORT[one.dataset]}{k710}-{one.num_frames}x{one.image_size}"
        assert one.name == name + ("-mmaction2" if one.format == "mmaction2" else "")
        assert zoo_entry(one.name.upper()) is one
    assert zoo_entry("b16-k400") is None


def test_every_official_experiment_is_there_with_its_parameters_and_multiply_adds(shared: Path) -> None:
    experiments = json.loads((shared / "facts" / "official_structures.json").read_text())["experiments"]
    assert len(experiments) == 49
    assert {name_of_experiment(name) for name in experiments} == {
        one.name for one in list_models() if one.format == "official"
    }
    for name, published in experiments.items():
        one = entry(name_of_experiment(name))
        backbone, layout, _, variant = published["structure"].split("|")
        assert (one.layout, one.frozen) == (layout, variant == "frozen"), name
        assert {"B/16": "b16", "L/14": "l14", "L/14@336": "l14_336"}[one.size] == backbone.removeprefix("uniformerv2_")
        assert (one.num_frames, one.image_size) == (published["frames"], published["crop"]), name
        assert one.config().num_classes == published["num_classes"], name
        assert one.parameters == published["params"], name
        # the keys and values of the global query are never formed: docs/models.md
        assert 0.92 <= one.multiply_adds / 1e9 / published["gmacs_per_view"] <= 0.98, name


def test_parameters_are_those_of_the_model_itself() -> None:
    for name in ("frozen-l14-k600-8x336", "l14-ssv2-16x224"):
        assert entry(name).parameters == count_parameters(entry(name).config())


def test_the_published_accuracies(shared: Path) -> None:
    lines = (shared / "facts" / "paper.yaml").read_text().splitlines()
    published: dict[str, list[tuple[str, float]]] = {}
    for line in lines[: next(number for number, line in enumerate(lines) if line.startswith("kinetics710:"))]:
        if heading := re.match(r"  (\w+): *(?:\[(.*)\])?", line):
            name = heading[1].removesuffix("_v1") if heading[1].startswith("moments") else heading[1]
            published[name] = [("", float(top1)) for top1 in (heading[2] or "").split(",") if top1]
        elif row := re.search(r"views: (\w+), +top1: ([\d.]+), source: zoo", line):
            published[name].append((row[1], float(row[2])))
    assert {name: len(rows) for name, rows in published.items()} == {
        **{f"kinetics{number}": 10 for number in (400, 600, 700)},
        **{"moments_in_time": 3, "something_something_v1": 4, "something_something_v2": 4},
        **{"activitynet": 2, "hacs": 2},
    }
    for dataset, rows in published.items():
        views = [views or published["kinetics400"][number][0] for number, (views, _) in enumerate(rows)]
        assert [(one.views, one.top1) for one in official(dataset)] == list(
            zip(views, (top1 for _, top1 in rows), strict=True)
        )


def test_the_figures_of_mmaction2() -> None:
    figures = {one.name: (one.top1, one.top5) for one in list_models() if one.format == "mmaction2"}
    assert figures["b16-k400-8x224-mmaction2"] == (84.3, 96.4)
    assert figures["l14-k600-k710-32x336-mmaction2"] == (89.8, 98.5)
    assert figures["l14-mit-8x336-mmaction2"] == (47.7, 76.8)
    assert figures["l14-k710-8x336-mmaction2"] == (None, None)


def test_views_begin_with_the_frames_of_the_clip() -> None:
    for one in list_models():
        assert one.views == "" or one.views.split("x")[0] == str(one.num_frames), one.name
        assert (one.views == "") == (one.top1 is None), one.name


def test_names_of_files_agree_with_the_table() -> None:
    for one in list_models():
        file = one.url.rsplit("/", 1)[1]
        if one.format == "official":
            size = {"B/16": "b16", "L/14": "l14", "L/14@336": "l14"}[one.size]
            assert file.endswith(f"_{size}_{one.num_frames}x{one.image_size}.pyth")
            assert file.startswith("frozen_") == one.frozen
        else:
            assert f"-res{one.image_size}_" in file
            assert f"u{one.num_frames}_" in file
            assert file.startswith(f"uniformerv2-{'base' if one.size == 'B/16' else 'large'}-")
            assert re.search(f"_20\\d{{6}}-{one.sha256_head}.pth$", file)


def test_every_head_of_a_hash_belongs_to_one_file() -> None:
    heads = [one.sha256_head for one in list_models() if one.format == "mmaction2"]
    assert len(set(heads)) == 23
    assert all(re.fullmatch("[0-9a-f]{8}", head) for head in heads)


def test_states_claim_no_more_than_is_known() -> None:
    states = {one.name: one.availability for one in list_models()}
    assert Counter(states.values()) == {"gone": 47, "untested": 23, "on the hub": 2}
    assert states["b16-k400-k710-8x224"] == states["b16-mit-8x224"] == "on the hub"
    for one in list_models():
        assert (one.availability == "gone") == ("aliyuncs.com" in one.url), one.name
        assert one.sha256 == (HUB_SHA256 if one.name == "b16-k400-k710-8x224" else "")
        assert one.availability in zoo.AVAILABILITY


def test_preprocessing_belongs_to_the_checkpoint() -> None:
    for one in list_models():
        preprocessing = one.preprocessing()
        assert preprocessing.size == (one.image_size, one.image_size) == one.config().image_size
        assert (preprocessing.num_frames, preprocessing.mean[0], preprocessing.std[0]) == (one.num_frames, 0.45, 0.225)
        assert preprocessing.channel_order == ("bgr" if "-ssv" in one.name else "rgb")


def test_licences_state_the_contradiction() -> None:
    assert all(word in entry("b16-k400-8x224").licence for word in ("Apache-2.0", "MIT"))
    assert "MIT" not in entry("b16-k400-8x224-mmaction2").licence


@pytest.mark.parametrize("dataset", ["kinetics400", "K400", "k400"])
def test_datasets_go_by_any_of_their_names(dataset: str) -> None:
    assert len(list_models(dataset=dataset)) == 16
    assert {one.dataset for one in list_models(dataset=dataset)} == {"kinetics400"}
    assert list_models(dataset="sthv2") == list_models(dataset="SSv2") == list_models(dataset="something_something_v2")


@pytest.mark.parametrize("dataset", ["k500", "ucf101", ""])
def test_a_dataset_that_nothing_was_published_for(dataset: str) -> None:
    with pytest.raises(CheckpointError) as error:
        list_models(dataset=dataset)
    assert all(name in str(error.value) for name in (repr(dataset), "kinetics400", "hacs"))
    assert "\n" not in str(error.value)


# --- fetching


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        ("b16-k400-8x224", "b16-k400-8x224-mmaction2"),  # the same pretraining
        ("l14-k400-k710-16x224", "l14-k400-k710-16x224-mmaction2"),
        ("l14-k600-k710-64x336", "l14-k600-k710-32x336-mmaction2"),  # the same size, fewer frames
        ("frozen-l14-k700-8x336", "l14-k700-k710-32x336-mmaction2"),
        ("b16-k600-8x224", "b16-k600-k710-8x224-mmaction2"),
        ("l14-mit-8x336", "l14-mit-8x336-mmaction2"),
    ],
)
def test_what_is_gone_names_the_nearest_that_is_not(gone: str, left: str) -> None:
    assert nearest(entry(gone)) == entry(left)
    with pytest.raises(CheckpointError) as error:
        fetch_entry(entry(gone))
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in (gone, entry(gone).url, "NoSuchBucket", f" {left} ", "UNIFORMERV2_HUB"))


@pytest.mark.parametrize("gone", ["b16-ssv1-16x224", "l14-anet-16x224", "l14-hacs-32x224"])
def test_what_is_gone_without_a_substitute(gone: str) -> None:
    assert nearest(entry(gone)) is None
    with pytest.raises(CheckpointError, match=rf"no other {entry(gone).dataset} model"):
        fetch_entry(entry(gone))


def test_a_mirror_has_what_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "k400_uniformerv2_b16_8x224.pyth"
    file.write_bytes(b"weights")
    monkeypatch.setenv("UNIFORMERV2_HUB", str(tmp_path))
    assert fetch_entry(entry("b16-k400-8x224")) == file


def test_the_hash_of_a_mirrored_file_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFORMERV2_HUB", str(tmp_path))
    one = entry("b16-k400-8x224-mmaction2")
    file = tmp_path / one.url.rsplit("/", 1)[1]
    file.write_bytes(b"weights")
    with pytest.raises(CheckpointError, match=r"e29fc968"):
        fetch_entry(one)
    digits = hashlib.sha256(b"weights").hexdigest()
    renamed = replace(one, url=one.url.replace("e29fc968", digits[:8]))
    file.rename(tmp_path / renamed.url.rsplit("/", 1)[1])
    assert fetch_entry(renamed).read_bytes() == b"weights"


def test_files_on_the_hub_are_looked_up_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = entry("b16-mit-8x224")
    with pytest.raises(CheckpointError, match=r"Andy1621/uniformerv2/mit_uniformerv2_b16_8x224\.pyth"):
        fetch_entry(one)
    file = tmp_path / "Andy1621" / "uniformerv2" / "mit_uniformerv2_b16_8x224.pyth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    monkeypatch.setenv("UNIFORMERV2_HUB", str(tmp_path))
    assert fetch_entry(one) == file
    file.with_name("k400+k710_uniformerv2_b16_8x224.pyth").write_bytes(b"weights")
    with pytest.raises(CheckpointError, match=HUB_SHA256):
        fetch_entry(entry("b16-k400-k710-8x224"))


def test_what_was_not_tried_is_downloaded(cache: Path) -> None:
    one = entry("b16-k400-8x224-mmaction2")
    with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE") as error:
        fetch_entry(one)
    assert one.url in str(error.value)
