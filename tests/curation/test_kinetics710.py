"""The merge of Kinetics-400, 600 and 700: who stays, who goes, and under which name."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from uniformerv2.curation.kinetics710 import EDITIONS, merge_kinetics, merged_names
from uniformerv2.data.sources import read_annotations
from uniformerv2.errors import AnnotationError
from uniformerv2.weights.labels import class_list

Rows = Sequence[tuple[str, str]]  # label, id


def owner_list(path: Path, rows: Rows, split: str = "train") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
        writer.writerows([label, video, 10, 20, split] for label, video in rows)
    return path


def lists(folder: Path, training: Mapping[str, Rows], held_out: Mapping[str, Rows]) -> dict[str, list[Path]]:
    """Short ids are made eleven characters long."""
    result = {}
    for edition in EDITIONS:
        files = ((training, "train"), (held_out, "val"))
        result[edition] = [
            owner_list(
                folder / f"{edition}_{split}.csv",
                [(label, f"{video:_>11}") for label, video in rows.get(edition, ())],
                split,
            )
            for rows, split in files
        ]
    return result


def written(folder: Path) -> list[dict[str, str]]:
    with (folder / "kinetics710.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_video_once_and_nobodys_test_videos(tmp_path: Path) -> None:
    given = lists(
        tmp_path,
        {
            "kinetics400": [("abseiling", "a"), ("zumba", "b"), ("zumba", "c"), ("zumba", "old")],
            "kinetics600": [("abseiling", "a"), ("abseiling", "b"), ("zumba", "d"), ("", "e")],
            "kinetics700": [("abseiling", "a"), ("abseiling", "a"), ("zumba", "c"), ("archery", "held")],
        },
        {"kinetics400": [("archery", "c")], "kinetics600": [("archery", "held")]},
    )
    merged = merge_kinetics(given, tmp_path / "out")
    assert [(row["youtube_id"].strip("_"), row["label"], row["edition"]) for row in written(tmp_path / "out")] == [
        ("a", "abseiling", "kinetics700"),
        ("b", "abseiling", "kinetics600"),  # the newer edition's label
        ("d", "zumba", "kinetics600"),
        ("old", "zumba", "kinetics400"),
    ]
    assert {row["path"] for row in written(tmp_path / "out")} >= {"__________a_000010_000020.mp4"}
    assert {row["split"] for row in written(tmp_path / "out")} == {"train"}
    left_out = {name: dict(edition.left_out) for name, edition in merged.editions.items()}
    assert left_out == {
        "kinetics700": {
            "repeats a video of kinetics700": 1,
            "in a validation or test set of kinetics400": 1,
            "in a validation or test set of kinetics600": 1,
        },
        "kinetics600": {"repeats a video of kinetics700": 1, "no label": 1},
        "kinetics400": {
            "repeats a video of kinetics700": 1,
            "repeats a video of kinetics600, of another class": 1,
            "in a validation or test set of kinetics400": 1,
        },
    }
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["videos"] == merged.videos == 4
    for name in EDITIONS:
        counts = report["editions"][name]
        assert counts["rows"] == counts["kept"] + sum(counts["left_out"].values()) == 4
    assert {name: n for name, n in report["videos_per_class"].items() if n} == {"abseiling": 2, "zumba": 2}


def test_no_id_is_in_two_places_and_classes_are_710(shared: Path, tmp_path: Path) -> None:
    """The published validation lists stand in for the training sets, their other halves for what is held out."""
    folder = shared / "data" / "labels" / "kinetics_csv"
    training: dict[str, Rows] = {}
    held_out: dict[str, Rows] = {}
    for edition in ("400", "600"):
        with (folder / f"kinetics-{edition}_val.csv").open(newline="") as file:
            rows = [(row["label"], row["youtube_id"]) for row in csv.DictReader(file)]
        training[f"kinetics{edition}"], held_out[f"kinetics{edition}"] = rows[::2], rows[1::2]
    # of Kinetics-700 there are only the names; every third video is one of Kinetics-600
    others = [video for _, video in training["kinetics600"]]
    names = class_list("kinetics700", order="mmaction2")
    rows = [(name, others[i] if i % 3 == 0 else f"k700{i:07}") for i, name in enumerate(names * 5)]
    training["kinetics700"], held_out["kinetics700"] = rows, [("abseiling", others[10]), ("abseiling", "k7000000001")]
    for order in ("official", "mmaction2"):
        out = tmp_path / order
        given = lists(tmp_path, training, held_out)
        merged = merge_kinetics(given, out, order=order)
        labels = (out / "labels.txt").read_text().splitlines()
        assert len(labels) == len(set(labels)) == 710
        assert labels == list(class_list("kinetics710", order=order))
        ids = [row["youtube_id"] for row in written(out)]
        assert len(ids) == len(set(ids)) == merged.videos
        assert not set(ids) & {video for rows in held_out.values() for _, video in rows}
        everything = {video for rows in training.values() for _, video in rows}
        assert set(ids) == everything - {video for rows in held_out.values() for _, video in rows}
        assert {row["label"] for row in written(out)} <= set(labels)
        if order == "mmaction2":
            assert not merged.empty_classes  # the official list names some classes twice, see docs/datasets.md


@pytest.mark.parametrize("edition", ["400", "600", "700"])
def test_maps_are_the_published_ones(shared: Path, tmp_path: Path, edition: str) -> None:
    labels = shared / "data" / "labels"
    given = lists(tmp_path, {"kinetics700": [("zumba", "a")]}, {})
    for order in ("official", "mmaction2"):
        merge_kinetics(given, tmp_path / order, order=order)
    maps = {
        order: json.loads((tmp_path / order / f"map_kinetics{edition}.json").read_text())
        for order in ("official", "mmaction2")
    }
    assert maps["mmaction2"] == json.loads((labels / "mmaction2" / f"map_k{edition}.json").read_text())
    if edition == "400":
        assert maps["official"] == list(range(400))
    else:
        assert maps["official"] == json.loads((labels / "InternVideo2" / f"label_mixto{edition}.json").read_text())


@pytest.mark.parametrize("order", ["official", "mmaction2"])
def test_videos_go_where_the_maps_point(order: str) -> None:
    """Class i of an edition, as it is numbered in that order, is class map[i]."""
    from uniformerv2.weights.labels import head_part, reordering

    whole = class_list("kinetics710", order=order)
    for edition in EDITIONS:
        own, published = class_list(edition, order=order), class_list(edition, order="mmaction2")
        place = reordering(own, "mmaction2")
        names, rows = merged_names(edition, order), head_part(whole, edition)[1]  # type: ignore[arg-type]
        assert [names(name) for name in published] == [whole[rows[at]] for at in place]


def test_the_published_renames(shared: Path) -> None:
    """Old and new name of a class lead to one class, but for three that the official maps treat otherwise."""
    renames = json.loads((shared / "data" / "labels" / "VideoMAEv2" / "k710_identical_label_merge.json").read_text())
    published = {edition: set(class_list(edition, order="mmaction2")) for edition in EDITIONS}
    apart: dict[str, set[str]] = {"official": set(), "mmaction2": set()}
    for order, found in apart.items():
        for old, new in renames.items():
            classes = {
                merged_names(edition, order)(name)  # type: ignore[arg-type]
                for edition in EDITIONS
                for name in (old, new)
                if name in published[edition]
            }
            if len(classes) > 1:
                found.add(old)
    assert apart["mmaction2"] == set()
    assert apart["official"] == {"hugging", "opening bottle", "throwing ball"}


# --- files


def test_files_are_looked_for(tmp_path: Path) -> None:
    """A row without a file leaves its place to an older edition's."""
    videos = tmp_path / "videos"
    for name in (
        "k700/zumba/__________a_000010_000020.mp4",
        "k400/zumba/__________a_000010_000020.mp4",
        "__________b.mkv",
    ):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).touch()
    training = {"kinetics700": [("zumba", "a"), ("zumba", "c")], "kinetics400": [("zumba", "b"), ("zumba", "c")]}
    merged = merge_kinetics(lists(tmp_path, training, {}), videos / "k710", videos=videos)
    rows = read_annotations(videos / "k710" / "kinetics710.csv")
    assert [str(row.path.relative_to(videos)) for row in rows] == [
        "k400/zumba/__________a_000010_000020.mp4",
        "__________b.mkv",
    ]
    assert [edition.left_out["no such file"] for edition in merged.editions.values()] == [1, 0, 1]


def test_manifests_will_do(tmp_path: Path) -> None:
    given = lists(tmp_path, {"kinetics600": [("zumba", "b")]}, {})
    name = "videos/zumba/-a_bcdefghi_000001_000011.mp4"
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    manifest = tmp_path / "k700.csv"
    manifest.write_text(
        f"path,label,start,end,split\n{name},zumba,,,train\nvideos/bbbbbbbbbbb.webm,archery,3,13,train\n"
    )
    given["kinetics700"][0] = manifest
    merge_kinetics(given, tmp_path / "out")
    first, second, third = written(tmp_path / "out")
    assert (first["path"], first["youtube_id"]) == (str(tmp_path / name), "-a_bcdefghi")
    assert (second["youtube_id"], second["start"], second["end"]) == ("bbbbbbbbbbb", "3.0", "13.0")
    assert third["edition"] == "kinetics600"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("absailing,aaaaaaaaaaa,1,2,train", "line 2: label 'absailing' is none of the 700 .* nearest is 'abseiling'"),
        ("abseiling,short,1,2,train", "line 2: youtube_id is 'short'; it must have 11"),
        ("abseiling,aaaaaaaaaaa,5,2,train", "line 2: the interval from 5 s to 2 s is empty"),
        ("abseiling,aaaaaaaaaaa,5", "line 2: found 3 cells, expected 5"),
    ],
)
def test_rows_that_make_no_sense(tmp_path: Path, row: str, message: str) -> None:
    given = lists(tmp_path, {}, {})
    given["kinetics700"][0].write_text(f"label,youtube_id,time_start,time_end,split\n{row}\n")
    with pytest.raises(AnnotationError, match=message) as caught:
        merge_kinetics(given, tmp_path / "out")
    assert str(caught.value).startswith(str(given["kinetics700"][0]))
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".csv"]  # nothing half-written


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    given = lists(tmp_path, {}, {})
    with pytest.raises(AnnotationError, match="every row was left out: the lists have no rows"):
        merge_kinetics(given, tmp_path / "out")
    with pytest.raises(AnnotationError, match="kinetics600: expected its training list and at least one"):
        merge_kinetics({**given, "kinetics600": given["kinetics600"][:1]}, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(AnnotationError, match="full: is there already"):
        merge_kinetics(given, tmp_path / "full")
    (tmp_path / "m.csv").write_text("path,label\nholiday.mp4,zumba\n")
    with pytest.raises(AnnotationError, match=r"m.csv, line 2: found the file 'holiday.mp4', expected a name that"):
        merge_kinetics({**given, "kinetics700": [tmp_path / "m.csv", given["kinetics700"][1]]}, tmp_path / "out")
