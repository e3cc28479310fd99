"""Folders and manifests, and what is held out of them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from uniformerv2.data.annotations import Annotation, class_names
from uniformerv2.data.sources import read_annotations
from uniformerv2.data.split import split_annotations
from uniformerv2.errors import AnnotationError, RecipeError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def manifest(folder: Path, text: str, *, encoding: str = "utf-8") -> Path:
    path = folder / "list.csv"
    path.write_bytes(text.encode(encoding))
    return path


def rows(*names: str, split: str | None = None) -> list[Annotation]:
    """Annotations as from a folder: the class is the folder's name."""
    return [Annotation(Path("/data") / name, Path(name).parts[0], split=split) for name in names]


def names(annotations: list[Annotation]) -> list[str]:
    return [annotation.path.relative_to("/data").as_posix() for annotation in annotations]


PEOPLE = [f"{label}/{person}_{label}.avi" for label in ("run", "walk") for person in ("daria", "ido", "lyova", "moshe")]


# folders


def test_a_folder_per_class(tmp_path: Path) -> None:
    touch(tmp_path, "walk/b.mp4", "walk/a.AVI", "jump/x.webm", ".cache/y.mp4", "walk/.hidden.mp4", "notes.txt")
    assert read_annotations(tmp_path) == [
        Annotation(tmp_path / "jump/x.webm", "jump"),
        Annotation(tmp_path / "walk/a.AVI", "walk"),
        Annotation(tmp_path / "walk/b.mp4", "walk"),
    ]


def test_folders_of_frames_and_deeper_files(tmp_path: Path) -> None:
    touch(tmp_path, "run/one/2.jpg", "run/one/1.jpg", "run/group/deep/v.mov", "walk/two/0.png", "walk/three/0.PNG")
    assert [str(row.path.relative_to(tmp_path)) for row in read_annotations(str(tmp_path))] == [
        "run/group/deep/v.mov",
        "run/one",
        "walk/three",
        "walk/two",
    ]


def test_other_files_are_counted_in_one_warning(tmp_path: Path) -> None:
    touch(tmp_path, "walk/a.mp4", "walk/a.srt", "walk/b.xml", "walk/sub/cover.jpg", "walk/sub/v.mp4", "run/a.mp4")
    with pytest.warns(UserWarning, match=r"ignored 3 file\(s\)") as caught:
        assert len(read_annotations(tmp_path)) == 3
    assert len(caught) == 1


def test_a_folder_of_videos_only_warns_of_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "walk/a.mp4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_annotations(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.mp4", "b.mp4"], "no class folders in it; expected .*/CLASS/VIDEO"),
        ([], "no class folders in it"),
        (["walk/a.mp4", "run/readme.txt"], "run: no video in this class folder"),
    ],
)
def test_folders_that_say_too_little(tmp_path: Path, files: list[str], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_annotations(touch(tmp_path, *files))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="missing: no such folder or manifest"):
        read_annotations(tmp_path / "missing")


# manifests


def test_a_manifest(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "sub/b, c.mp4")
    header = "label, note,path,start,end,split"
    text = f'{header}\nwalk,x,a.mp4,1.5,4,train\nzażółć,,"sub/b, c.mp4",,,VAL\n\nwalk,,a.mp4,5,,test\n'
    for encoding in ("utf-8", "utf-8-sig"):  # with and without a byte order mark
        assert read_annotations(manifest(tmp_path, text, encoding=encoding)) == [
            Annotation(tmp_path / "a.mp4", "walk", 1.5, 4.0, "train"),
            Annotation(tmp_path / "sub/b, c.mp4", "zażółć", None, None, "val"),
            Annotation(tmp_path / "a.mp4", "walk", 5.0, None, "test"),
        ]


def test_root_of_a_manifest(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "a.mp4")
    path = manifest(tmp_path, "path,label\na.mp4,walk\n")
    assert read_annotations(path, root=videos)[0].path == videos / "a.mp4"
    with pytest.raises(AnnotationError, match="1 of its videos do not exist"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 must name the columns .* path and label missing, found nothing"),
        ("path,class\na.mp4,walk\n", "line 1 must name .* label missing, found path, class"),
        ("path,label\n", "no rows below"),
        ("path,label\na.mp4,walk\na.mp4,\n", "line 3: empty label"),
        ("path,label\n,walk\n", "line 2: empty path"),
        ("path,label\na.mp4\n", "line 2: empty label"),
        ("path,label\na, b.mp4,walk\n", "line 2: more values than columns"),
        ("path,label,start,end\na.mp4,walk,3,3\n", "line 2: the interval from 3 s to 3 s is empty"),
        ("path,label,start,end\na.mp4,walk,3,2.5\n", "line 2: the interval from 3 s to 2.5 s is empty"),
        ("path,label,end\na.mp4,walk,0\n", "line 2: the interval from 0 s to 0 s is empty"),
        ("path,label,start\na.mp4,walk,-1\n", "line 2: start is -1; it must be 0 or more seconds"),
        ("path,label,start\na.mp4,walk,nan\n", "line 2: start is nan; it must be 0 or more seconds"),
        ("path,label,end\na.mp4,walk,00:05\n", "line 2: end is '00:05'; it must be a number of seconds"),
        ("path,label,split\na.mp4,walk,dev\n", "line 2: split is 'dev'; it must be train, val, test or empty"),
    ],
)
def test_rows_that_make_no_sense(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path, "a.mp4")
    with pytest.raises(AnnotationError, match=message) as caught:
        read_annotations(manifest(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path / "list.csv"))
    assert "\n" not in str(caught.value)


def test_missing_videos_are_counted_and_named(tmp_path: Path) -> None:
    touch(tmp_path, "there.mp4")
    text = (
        "path,label\n" + "".join(f"gone{number}.mp4,walk\n" for number in range(5)) + "there.mp4,walk\ngone0.mp4,run\n"
    )
    with pytest.raises(AnnotationError, match=r"5 of its .* do not exist: .*gone0.mp4, .*gone2.mp4, ...; paths"):
        read_annotations(manifest(tmp_path, text))


@pytest.mark.parametrize("content", [b"\0\0\0\x18ftypmp42\xff\xfe\x80", "path,label\nä.mp4,walk\n".encode("utf-16")])
def test_a_file_that_is_no_manifest(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(AnnotationError, match=r"list\.csv"):
        read_annotations(path)


# classes


def test_class_names_are_sorted() -> None:
    assert class_names(rows("walk/a.avi", "run/a.avi", "walk/b.avi"), minimum=2) == ["run", "walk"]


def test_one_class_is_not_enough_to_train() -> None:
    assert class_names(rows("walk/a.avi")) == ["walk"]
    with pytest.raises(AnnotationError, match=r"found 1 class\(es\) \(walk\) in /data/walk, but at least 2"):
        class_names(rows("walk/a.avi", "walk/b.avi"), minimum=2)


# splits


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


@pytest.mark.parametrize("holdout", [0.0, 1.0, -0.2, 20.0])
def test_holdout_out_of_range(holdout: float) -> None:
    with pytest.raises(RecipeError, match="holdout must lie between 0 and 1"):
        split_annotations(rows(*PEOPLE), holdout=holdout)


def test_nothing_to_hold_out() -> None:
    with pytest.raises(AnnotationError, match=r"a holdout of 0.2 leaves nothing held out of 2 videos"):
        split_annotations(rows("run/a.avi", "walk/a.avi"))


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
    with pytest.raises(AnnotationError, match="the split column leaves nothing held out"):
        split_annotations(rows(*PEOPLE, split="train"))


def test_the_split_of_the_weizmann_clips(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "held.txt"
    path.write_text("lyova_*\nmoshe_*\nshahar_*\n")
    annotations = read_annotations(shared / "data" / "weizmann")
    assert len(class_names(annotations, minimum=2)) == 10
    training, held_out = split_annotations(annotations, holdout_list=path)
    assert (len(training), len(held_out)) == (60, 30)


# many rows


def test_rows_of_one_file_share_its_path(tmp_path: Path) -> None:
    """Manifests may have millions of rows."""
    text = "path,label,start,end\n" + "".join(f"a.mp4,walk,{start},{start + 1}\n" for start in range(1000))
    read = read_annotations(manifest(touch(tmp_path, "a.mp4"), text))
    assert len({id(row.path) for row in read}) == len({id(row.label) for row in read}) == 1
    assert not hasattr(read[0], "__dict__")


def test_videos_may_be_missing_where_that_is_asked_for(tmp_path: Path) -> None:
    path = manifest(tmp_path, "path,label\ngone.mp4,walk\n")
    assert read_annotations(path, must_exist=False) == [Annotation(tmp_path / "gone.mp4", "walk")]


def test_a_quote_that_never_closes_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    with pytest.raises(AnnotationError, match=r"list.csv, line 3: cannot be read as CSV"):
        read_annotations(manifest(tmp_path, 'path,label\na.mp4,"walk\nb.mp4,run\n'))


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"list.csv, line 2: byte 0xf3 at position 7 is not UTF-8"):
        read_annotations(manifest(tmp_path, "path,label\na.mp4,\xf3 \n", encoding="latin-1"))
