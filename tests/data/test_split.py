"""Which rows are trained on, and which are held out."""

from __future__ import annotations

from pathlib import Path

import pytest

from uniformerv2.data.annotations import Annotation, class_names, of_split
from uniformerv2.data.sources import read_annotations
from uniformerv2.data.split import split_annotations
from uniformerv2.errors import AnnotationError, RecipeError


def rows(*names: str, split: str | None = None) -> list[Annotation]:
    """Annotations as from a folder: the class is the folder's name."""
    return [Annotation(Path("/data") / name, Path(name).parts[0], split=split) for name in names]


def names(annotations: list[Annotation]) -> list[str]:
    return [annotation.path.relative_to("/data").as_posix() for annotation in annotations]


PEOPLE = [f"{label}/{person}_{label}.avi" for label in ("run", "walk") for person in ("daria", "ido", "lyova", "moshe")]


def test_rows_of_a_split() -> None:
    rows = [Annotation(Path("a.mp4"), "a", split=split) for split in ("train", "val", "test", None)]
    train, val, test, none = rows
    assert of_split(rows, "held-out") == [val, test, none]
    assert of_split(rows, "test") == [test, none]
    assert of_split(rows, "all") == read_annotations(rows) == rows
    assert read_annotations(rows[:3], split="train") == [train]
    with pytest.raises(AnnotationError, match="'val'"):
        of_split([train], "val")


def test_holdout_is_a_share_of_every_class() -> None:
    files = [f"{label}/{number:02}.avi" for label in ("run", "walk") for number in range(20)]
    training, held_out = split_annotations(rows(*files), holdout=0.2)
    assert sorted(names(training) + names(held_out)) == files
    assert [row.label for row in held_out] == ["run"] * 4 + ["walk"] * 4
    assert names(training) == sorted(names(training))  # the given order


def test_holdout_follows_its_seed_and_not_the_order_or_the_folder() -> None:
    files = [f"{label}/{number:02}.avi" for label in ("run", "walk") for number in range(20)]
    first = split_annotations(rows(*files), seed=1)
    assert split_annotations(rows(*files), seed=1) == first
    assert set(names(split_annotations(rows(*reversed(files)), seed=1)[1])) == set(names(first[1]))
    assert set(names(split_annotations(rows(*files), seed=2)[1])) != set(names(first[1]))
    moved = [Annotation(Path("/elsewhere") / row.path.relative_to("/data"), row.label) for row in rows(*files)]
    assert [row.path.name for row in split_annotations(moved, seed=1)[1]] == [row.path.name for row in first[1]]


def test_small_classes_keep_a_training_file() -> None:
    training, held_out = split_annotations(rows("run/a.avi", "walk/a.avi", "walk/b.avi"), holdout=0.9)
    assert [row.label for row in training] == ["run", "walk"]  # one of two, and the only one
    assert [row.label for row in held_out] == ["walk"]
    few = [f"walk/{number}.avi" for number in range(3)]
    assert len(split_annotations(rows(*few), holdout=0.05)[1]) == 1


def test_rows_of_a_file_stay_together() -> None:
    files = [Path(f"/data/{number}.mp4") for number in range(10)]
    both = [Annotation(path, label, start) for path in files for start, label in enumerate(("run", "walk"))]
    training, held_out = split_annotations(both, holdout=0.3)
    assert len({row.path for row in held_out}) == 3
    assert not {row.path for row in training} & {row.path for row in held_out}


@pytest.mark.parametrize("holdout", [1.0, -0.2, 20.0])
def test_holdout_out_of_range(holdout: float) -> None:
    with pytest.raises(RecipeError, match="holdout must lie between 0 and 1"):
        split_annotations(rows(*PEOPLE), holdout=holdout)


def test_what_cannot_be_drawn_is_trained_on_unless_it_was_asked_for() -> None:
    few = rows("run/a.avi", "walk/a.avi")
    film = [Annotation(Path("film.mp4"), label, start) for start, label in enumerate(("run", "walk", "run"))]
    for videos in (few, film):
        assert split_annotations(videos) == (videos, [])
        with pytest.raises(
            AnnotationError, match=r"a holdout of 0.2 cannot be drawn from . file.*0 trains on everything"
        ):
            split_annotations(videos, holdout=0.2)
    assert split_annotations(rows(*PEOPLE), holdout=0) == (rows(*PEOPLE), [])


def test_a_film_with_the_only_rows_of_a_class_is_trained_on() -> None:
    films = [Annotation(Path(f"{number}.mp4"), "talk", 0.0, 5.0) for number in range(5)]
    for number, film in enumerate(films):
        annotations = [*films, Annotation(film.path, f"only {number}", 5.0)]
        training, held_out = split_annotations(annotations, holdout=0.4)
        assert {row.label for row in training} == {"talk", f"only {number}"}
        assert not {row.path for row in training} & {row.path for row in held_out}


@pytest.mark.parametrize(
    "text",
    [
        "lyova_*\nmoshe_*\n",
        "*/lyova_*.avi\n*/moshe_*.avi",
        "# the test persons\n\nrun/lyova_run.avi\nmoshe_run.avi  # by name\nwalk/[lm]*\n",
        "\ufeff/data/run/lyova_run.avi\nwalk/lyova_walk.avi\n./run/moshe_run.avi\nwalk/moshe_walk.avi\n",
    ],
)
def test_holdout_list(tmp_path: Path, text: str) -> None:
    path = tmp_path / "held.txt"
    path.write_text(text, encoding="utf-8")
    training, held_out = split_annotations(rows(*PEOPLE, split="train"), holdout_list=path)  # before the column
    assert names(held_out) == [name for name in PEOPLE if "lyova" in name or "moshe" in name]
    assert len(training) + len(held_out) == len(PEOPLE)


def test_names_with_special_characters_are_taken_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "held.txt"
    path.write_text("walk/clip[1].mp4\nwalk/c#2.mp4\n")
    files = rows("walk/clip[1].mp4", "walk/clip1.mp4", "walk/c#2.mp4")
    assert names(split_annotations(files, holdout_list=path)[1]) == ["walk/clip[1].mp4", "walk/c#2.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lyova_*\nlyowa_run.avi\n", "held.txt, line 2: 'lyowa_run.avi' matches none of 8 videos"),
        ("yova_run.avi\n", "'yova_run.avi' matches none"),
        ("# nobody\n", "held.txt leaves nothing held out of 8 videos"),
        ("*\n", "held.txt leaves nothing to train on of 8 videos"),
        ("walk/*\n", "held.txt leaves no video to train on of class 'walk'"),
    ],
)
def test_holdout_lists_that_make_no_sense(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "held.txt"
    path.write_text(text)
    with pytest.raises(AnnotationError, match=message):
        split_annotations(rows(*PEOPLE), holdout_list=path)


def test_a_missing_holdout_list(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"none.txt: cannot be read as a list"):
        split_annotations(rows(*PEOPLE), holdout_list=tmp_path / "none.txt")


def test_split_column_decides_before_holdout() -> None:
    train, val, test = (rows(*PEOPLE[at::3], split=split) for at, split in enumerate(("train", "val", "test")))
    training, held_out = split_annotations([*train, *val, *test], holdout=0.5)
    assert (training, held_out) == (train, [*val, *test])


def test_split_columns_that_make_no_sense() -> None:
    with pytest.raises(AnnotationError, match=r"moshe_walk.avi: empty split"):
        split_annotations([*rows(*PEOPLE[:-1], split="train"), *rows(PEOPLE[-1])])
    with pytest.raises(AnnotationError, match="both trained on and held out"):
        split_annotations([*rows(*PEOPLE, split="train"), *rows(PEOPLE[0], split="val")])
    with pytest.raises(AnnotationError, match="the split column leaves nothing to train on"):
        split_annotations(rows(*PEOPLE, split="val"))


def test_the_split_of_the_weizmann_clips(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "held.txt"
    path.write_text("lyova_*\nmoshe_*\nshahar_*\n")
    annotations = read_annotations(shared / "data" / "weizmann")
    assert len(class_names(annotations, minimum=2)) == 10
    training, held_out = split_annotations(annotations, holdout_list=path)
    assert (len(training), len(held_out)) == (60, 30)


ROWS = [Annotation(Path("/data") / name, Path(name).parts[0]) for name in ("walk/a.avi", "run/a.avi", "walk/b.avi")]


def test_class_names_are_sorted() -> None:
    assert class_names(ROWS, minimum=2) == ["run", "walk"]


def test_one_class_is_not_enough_to_train() -> None:
    assert class_names(ROWS[:1]) == ["walk"]
    with pytest.raises(AnnotationError, match=r"found 1 class\(es\) \(walk\) in /data/walk, but at least 2"):
        class_names(ROWS[::2], minimum=2)
