"""Which videos are measured on, people kept apart, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evidence.data import DATA_SETS, DataSet, Sources, find_data_sets, split_into_folds
from evidence.scenes import TEXTURES, draw_scene
from helpers import touch
from uniformerv2 import Annotation, AnnotationError, RecipeError

PEOPLE = DataSet("people", "", "motion", folds=3)
SPLIT = DataSet("split", "", "motion")


def rows(people: str, *, labels: str = "ab", split: str | None = None) -> list[Annotation]:
    return [
        Annotation(Path(f"{person}{label}{number}.mp4"), label, group=person, split=split)
        for person in people
        for label in labels
        for number in range(2)
    ]


def test_everybody_is_left_out_once_and_never_on_both_sides() -> None:
    folds = split_into_folds(PEOPLE, rows("pqrst"))
    tested = [row.path for fold in folds for row in fold if row.split == "test"]
    assert len(folds) == 3
    assert sorted(tested) == sorted(row.path for row in rows("pqrst"))
    for fold in folds:
        sides = [{row.group for row in fold if row.split == side} for side in ("train", "test")]
        assert not sides[0] & sides[1]


@pytest.mark.parametrize(
    ("data_set", "given", "message"),
    [
        (PEOPLE, rows("pq"), "people: 2 people are named for 8 videos, and 3 folds need at least 3"),
        (PEOPLE, [Annotation(Path("x.mp4"), "a"), *rows("pqr")], "a name for each video"),
        (PEOPLE, [*rows("pq", labels="ab"), *rows("r", labels="c")], "people: no video to train on of class c"),
        (SPLIT, rows("pqr"), "split: needs a split, train or test, in every row"),
        (SPLIT, rows("pq", split="train") + rows("p", split="test"), "split: p on both sides of the split"),
        (SPLIT, rows("pq", labels="a", split="train") + rows("r", split="test"), "1 classes to train on"),
        (SPLIT, rows("pq", split="train") + rows("r", split="test"), "4 test videos; intervals need at least 10"),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_refused_in_a_line(data_set: DataSet, given: list[Annotation], message: str) -> None:
    with pytest.raises(AnnotationError, match=message) as refused:
        split_into_folds(data_set, given)
    assert "\n" not in str(refused.value)


def room(root: Path, *, without: str = "") -> Path:
    """A manifest of five people, each once in every transition but one, and walking."""
    labels = [*DATA_SETS["room_transitions"].labels, "walk"]
    names = [(label, person) for label in labels if label != without for person in "ABCDE"]
    touch(root, *(f"{label}/{person}.mp4" for label, person in names))
    lines = [f"{label}/{person}.mp4,{label},train,{person}" for label, person in names]
    (root / "manifest.csv").write_text("\n".join(["path,label,split,person", *lines]))
    return root / "manifest.csv"


def test_people_are_read_from_the_column_of_the_set(tmp_path: Path) -> None:
    sources = Sources({"room_actions": room(tmp_path)}, tmp_path / "cache")
    found = sources.rows(DATA_SETS["room_transitions"])
    assert {row.group for row in found} == set("ABCDE")
    assert {row.label for row in found} == set(DATA_SETS["room_transitions"].labels)


def test_a_missing_class_is_named(tmp_path: Path) -> None:
    sources = Sources({"room_actions": room(tmp_path, without="fall")}, tmp_path / "cache")
    with pytest.raises(AnnotationError, match="no video of class fall, which room_transitions needs"):
        sources.rows(DATA_SETS["room_transitions"])


def test_other_videos_have_another_digest(tmp_path: Path) -> None:
    manifest = room(tmp_path)
    sources = Sources({"room_actions": manifest}, tmp_path / "cache")
    before = sources.digest(DATA_SETS["room_transitions"])
    assert sources.digest(DATA_SETS["room_transitions"]) == before
    (tmp_path / "fall" / "B.mp4").write_bytes(b"changed")
    changed = sources.digest(DATA_SETS["room_transitions"])
    manifest.write_text(manifest.read_text().replace("fall/C.mp4,fall,train,C", "fall/C.mp4,fall,train,D"))
    assert len({before, changed, sources.digest(DATA_SETS["room_transitions"])}) == 3


def test_a_set_that_is_not_here_says_how_to_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVIDENCE_WEIZMANN", raising=False)
    sources = Sources.find({}, tmp_path)
    with pytest.raises(AnnotationError, match="--data weizmann=PATH or EVIDENCE_WEIZMANN"):
        sources.rows(DATA_SETS["weizmann"])
    monkeypatch.setenv("EVIDENCE_WEIZMANN", "somewhere")
    assert DATA_SETS["weizmann"] in Sources.find({}, tmp_path)


def test_names_of_own_sets() -> None:
    assert find_data_sets(["kitchen"])["kitchen"].kind == "unknown"
    assert find_data_sets(["room_actions"]) == DATA_SETS
    for name in ("motions", "no/name"):
        with pytest.raises(RecipeError, match="--data"):
            find_data_sets([name])


def test_drawn_sets_are_drawn_once_and_can_be_split(tmp_path: Path) -> None:
    sources = Sources({}, tmp_path, drawn={"train_clips": 1, "held_out_clips": 2})
    scenes = DATA_SETS["scenes"]
    (fold,) = split_into_folds(scenes, sources.rows(scenes))
    assert [sum(row.split == side for row in fold) for side in ("train", "test")] == [8, 16]
    drawn = fold[0].path.stat().st_mtime_ns
    assert sources.rows(scenes)[0].path.stat().st_mtime_ns == drawn


def test_scenes_are_told_by_their_texture_and_not_by_order() -> None:
    """The texture's wave is what all frames have in common; the drift has no direction on average."""
    frames = draw_scene("rows", np.random.default_rng(0)).astype(float).mean(1)  # (frames, height, width)
    along_columns, along_rows = frames.mean(2).std(1).mean(), frames.mean(1).std(1).mean()
    assert along_columns > 2 * along_rows
    assert len(TEXTURES) == 8
