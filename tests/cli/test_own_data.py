"""Data as people have them: folders of splits, links, copies, sources, lists, other people's tables, moved folders."""

from __future__ import annotations

import csv
import json
import os
import shutil
import unicodedata
from pathlib import Path

import pytest

from helpers import Run, assert_refused
from uniformerv2.data.annotations import Annotation
from uniformerv2.data.manifest import note_root, write_manifest
from uniformerv2.data.sources import find_videos, read_annotations
from uniformerv2.data.split import split_annotations, with_groups
from uniformerv2.errors import AnnotationError


def touch(folder: Path, *names: str) -> Path:
    """Files that differ from each other."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def table(folder: Path, text: str, name: str = "list.csv") -> Path:
    (folder / name).write_bytes(text.encode())
    return folder / name


def held_out(run: Path) -> set[str]:
    return {row.path.name for row in read_annotations(run / "held_out.csv")}


# --- folders of splits


@pytest.fixture
def divided(colours: Path, tmp_path: Path) -> Path:
    """The videos of `colours` in Train/CLASS and VALIDATION/CLASS."""
    for video in colours.rglob("*.mp4"):
        split = "VALIDATION" if video.stem.endswith("4") else "Train"
        target = tmp_path / "data" / split / video.parent.name / video.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(video, target)
    return tmp_path / "data"


def test_folders_of_splits_are_trained_on_and_evaluated_as_such(
    uniformerv2: Run, divided: Path, tiny: list[object], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.warns(
        UserWarning, match=r"are splits, not classes: Train \(12 videos\), VALIDATION \(3 videos\); .*manifest"
    ):
        status, _, errors = uniformerv2("train", divided, "-o", run, *tiny, "--epochs", 1, "--warmup-epochs", 0)
    assert status == 0, errors
    assert "12 training videos of 3 classes, 3 held out" in errors
    assert held_out(run) == {"red4.mp4", "green4.mp4", "blue4.mp4"}
    with pytest.warns(UserWarning, match="are splits"):
        status, output, _ = uniformerv2("evaluate", run, divided, "-o", tmp_path / "a.json", "--workers", 0)
    assert (status, "3 videos" in output) == (0, True)


@pytest.mark.filterwarnings("ignore:.*are splits")
def test_folders_of_splits_are_checked_and_imported_as_such(uniformerv2: Run, divided: Path, tmp_path: Path) -> None:
    clean, imported = tmp_path / "clean.csv", tmp_path / "imported.csv"
    assert uniformerv2("data", "check", divided, "-o", clean, "--workers", 0)[0] == 0
    assert uniformerv2("data", "import", "folder", "--videos", divided, "-o", imported)[0] == 0
    for file, root in ((clean, divided), (imported, None)):
        rows = read_annotations(file, root=root)
        assert {row.label for row in rows} == {"red", "green", "blue"}
        assert [row.split for row in rows].count("val") == 3
        assert [row.split for row in rows].count("train") == 12


def test_splits_in_every_class(tmp_path: Path) -> None:
    touch(tmp_path, "walk/train/a.mp4", "walk/test/b.mp4", "run/train/c.mp4")
    with pytest.warns(UserWarning, match="the folders in each class are splits"):
        rows = read_annotations(tmp_path)
    assert [(row.label, row.split) for row in rows] == [("run", "train"), ("walk", "test"), ("walk", "train")]


def test_what_splits_hold_without_a_class_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "train/walk/a.mp4", "train/run/b.mp4", "test/c.mp4", "notes/readme.txt")
    with pytest.warns(UserWarning, match=r"left out 1 video\(s\) of splits .*test/c.mp4"):
        rows = read_annotations(tmp_path)
    assert {(row.label, row.split) for row in rows} == {("walk", "train"), ("run", "train")}


def test_a_class_that_is_called_train(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.mp4", "train/deep/b.mp4", "bus/c.mp4")
    with pytest.warns(UserWarning, match="train beside bus is read as a class"):
        assert [row.label for row in read_annotations(tmp_path)] == ["bus", "train", "train"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("train/a.mp4", "val/b.mp4"), "train, val would be splits, but hold no class folders .* in a manifest"),
        (("train/x/a.mp4", "val/x/b.mp4", "extra/c.mp4"), "train, val are named like splits, but extra beside them"),
        (("train/x/a.mp4", "val/y/readme.txt"), "y: no video in this class folder"),
    ],
)
def test_folders_that_may_be_splits_or_classes(
    uniformerv2: Run, tmp_path: Path, files: tuple[str, ...], message: str
) -> None:
    touch(tmp_path, *files)
    with pytest.raises(AnnotationError, match=message):
        read_annotations(tmp_path)
    assert_refused(uniformerv2("data", "check", tmp_path, "-o", tmp_path / "clean.csv"))


# --- links and copies


def test_a_folder_that_links_into_itself_is_read_once(tmp_path: Path) -> None:
    touch(tmp_path, "videos/walk/a.mp4", "videos/run/deep/b.mp4", "elsewhere/c.mp4")
    (tmp_path / "videos/walk/loop").symlink_to(tmp_path / "videos")
    (tmp_path / "videos/run/all").symlink_to(tmp_path)
    (tmp_path / "videos/run/again").symlink_to(tmp_path / "videos/run/deep")
    (tmp_path / "videos/run/other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "videos/run/itself").symlink_to(tmp_path / "videos/run/itself")
    with pytest.warns(UserWarning, match=r"3 link\(s\) to folders that are read already are left out"):
        rows = read_annotations(tmp_path / "videos")
    names = [row.path.relative_to(tmp_path / "videos").as_posix() for row in rows]
    assert names == ["run/deep/b.mp4", "run/other/c.mp4", "walk/a.mp4"]
    with pytest.warns(UserWarning, match="left out"):
        assert len(find_videos(tmp_path / "videos")) == 3


def test_a_class_that_links_to_another_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "walk/a.mp4", "run/b.mp4")
    (tmp_path / "stroll").symlink_to(tmp_path / "walk")
    with (
        pytest.warns(UserWarning, match="left out, such as stroll"),
        pytest.raises(AnnotationError, match=r"stroll: a link to .*walk, which is read already"),
    ):
        read_annotations(tmp_path)


@pytest.mark.parametrize("again", [os.symlink, os.link, shutil.copyfile])
def test_a_file_under_two_names_is_on_one_side(tmp_path: Path, again: object) -> None:
    touch(tmp_path, *(f"{label}/{number}.mp4" for label in ("walk", "run") for number in range(5)))
    for video in sorted(tmp_path.rglob("*.mp4")):
        again(video, video.with_name(f"z{video.name}"))  # type: ignore[operator]
    for seed in range(5):
        with pytest.warns(
            UserWarning, match="10 of 20 files have the content of another file, 0 of them under another label"
        ):
            training, held = split_annotations(read_annotations(tmp_path), seed=seed)
        assert not {row.path.read_text() for row in training} & {row.path.read_text() for row in held}
        assert [row.label for row in held] == ["run"] * 2 + ["walk"] * 2  # a file of five of each class, twice


def test_copies_in_shards_are_on_one_side(colours: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    from uniformerv2.data.shards import write_shards

    rows = read_annotations(colours)
    for row in rows:
        target = tmp_path / "copies" / row.label / row.path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(row.path, target)
    write_shards([*rows, *read_annotations(tmp_path / "copies")], tmp_path / "shards")
    with pytest.warns(UserWarning, match="15 of 30 files have the content of another"):
        training, held = split_annotations(read_annotations(tmp_path / "shards"))
    assert not {row.path.name for row in training} & {row.path.name for row in held}


# --- sources


def test_clips_of_a_source_are_on_one_side(uniformerv2: Run, colours: Path, tiny: list[object], tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--group", r"(\d)\.mp4$", "--holdout", 0.4]
    status, _, errors = uniformerv2("train", colours, "-o", run, *tiny, *options, "--epochs", 1, "--warmup-epochs", 0)
    assert status == 0, errors
    held = sorted(held_out(run))
    takes = {name[-5] for name in held}
    assert len(takes) == 2
    assert held == sorted(f"{label}{take}.mp4" for label in ("blue", "green", "red") for take in takes)


def test_sources_of_a_manifest_and_classes_that_cannot_be_held_out(tmp_path: Path) -> None:
    people = [f"{label}/{person}_{take}.mp4" for label in ("run", "walk") for person in "abcdefgh" for take in (1, 2)]
    touch(tmp_path, *people, "fall/a_1.mp4", "fall/a_2.mp4")
    rows = [
        f"{path},{path.split('/')[0]},{path.split('/')[1][0]}\n" for path in [*people, "fall/a_1.mp4", "fall/a_2.mp4"]
    ]
    manifest = table(tmp_path, "path,label,group\n" + "".join(rows))
    for seed in range(5):
        with pytest.warns(UserWarning, match="nothing is held out of class 'fall'"):
            training, held = split_annotations(read_annotations(manifest), holdout=0.25, seed=seed)
        assert not {row.group for row in training} & {row.group for row in held}
        assert [row.label for row in held] == ["run"] * 4 + ["walk"] * 4
        assert "a" not in {row.group for row in held}


def test_expressions_that_find_no_source(uniformerv2: Run, colours: Path, tiny: list[object], tmp_path: Path) -> None:
    command = ("train", colours, "-o", tmp_path / "run", *tiny)
    assert_refused(uniformerv2(*command, "--group", "(person"), "is no regular expression")
    assert_refused(uniformerv2(*command, "--group", "red|green"), "matches nothing in 'blue/blue0.mp4'")


def test_sources_are_looked_for_below_the_data(tmp_path: Path) -> None:
    rows = [Annotation(tmp_path / "anna" / "walk" / "ben.mp4", "walk")]
    assert with_groups(rows, "anna|ben", tmp_path / "anna")[0].group == "ben"


# --- rows that contradict each other


def test_two_labels_of_one_video_are_an_error_that_names_both_rows(
    uniformerv2: Run, checkpoint: Path, colours: Path, tiny: list[object], tmp_path: Path
) -> None:
    video = colours / "red" / "red0.mp4"
    os.link(video, tmp_path / "same.mp4")
    for other in (video, tmp_path / "same.mp4"):
        manifest = table(tmp_path, f"path,label\n{video},red\n{other},blue\n")
        for command in (["train", manifest, *tiny, "-o", tmp_path / "run"], ["evaluate", checkpoint, manifest]):
            reason = f"line 2: {video} and {manifest}, line 3: {other}: one video at the same time is"
            assert_refused(uniformerv2(*command), reason, "--task multilabel")


def test_times_tell_labels_of_one_video_apart(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    rows = "a.mp4,walk,0,2\na.mp4,run,2,\na.mp4,jump,1,3\n"
    assert len(read_annotations(table(tmp_path, f"path,label,start,end\n{rows}"))) == 3
    for more in ("a.mp4,sit,,\n", "a.mp4,sit,1,3\n"):
        with pytest.raises(AnnotationError, match=r"line \d: .* and .*line 5: .* 'sit'"):
            read_annotations(table(tmp_path, f"path,label,start,end\n{rows}{more}"))


# --- lists and tables of others


@pytest.mark.parametrize("name", ["l.txt", "l.csv", "l.list"])
def test_a_list_of_paths_and_class_numbers(
    uniformerv2: Run, checkpoint: Path, colours: Path, tmp_path: Path, name: str
) -> None:
    classes = table(tmp_path, "red\nblue\ngreen\n", "classes.txt")
    written = table(
        tmp_path, "".join(f"{colours}/{c}/{c}1.mp4 {n}\n" for n, c in enumerate(("red", "blue", "green"))), name
    )
    command = ("evaluate", checkpoint, written, "-o", tmp_path / "a.json", "--workers", 0)
    assert_refused(uniformerv2(*command), "--classes FILE")
    assert uniformerv2(*command, "--classes", classes)[0] == 0
    found = [video["label"] for video in json.loads((tmp_path / "a.json").read_text())["videos"]]
    assert found == ["red", "blue", "green"]


@pytest.mark.parametrize("separator", [",", ", ", "\t", ";"])
def test_lists_have_any_separator(tmp_path: Path, separator: str) -> None:
    touch(tmp_path, "a b.mp4", "c.mp4")
    written = table(tmp_path, f"a b.mp4{separator}1\nc.mp4{separator}0\n")
    assert [row.label for row in read_annotations(written, classes=["x", "y"])] == ["y", "x"]
    with pytest.raises(AnnotationError, match="line 1: label '1' is neither"):
        read_annotations(written, classes=["x"])


def test_paths_alone_need_no_labels(tmp_path: Path) -> None:
    touch(tmp_path, "a b.mp4", "c.mp4")
    assert [row.path.name for row in find_videos(table(tmp_path, "a b.mp4\nc.mp4\n", "l.txt"))] == ["a b.mp4", "c.mp4"]
    assert len(find_videos(table(tmp_path, "File\na b.mp4\nc.mp4\n"))) == 2


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_columns_have_the_names_that_people_use(tmp_path: Path, separator: str) -> None:
    touch(tmp_path, "a.mp4")
    header = separator.join(("Video Path", "Category", "start_time", "END", "subset"))
    row = separator.join(("a.mp4", "walk", "00:00:01.5", "1:02:03", "Validation"))
    with pytest.warns(UserWarning, match="read") as told:
        rows = read_annotations(table(tmp_path, f"{header}\n{row}\n"))
    assert rows == [Annotation(tmp_path / "a.mp4", "walk", 1.5, 3723.0, "val")]
    assert len(told) == 2
    assert "'Video Path' as path, 'Category' as label, 'start_time' as start" in str(told[0].message)
    assert "times such as '00:00:01.5' are read as [hours:]minutes:seconds" in str(told[1].message)


def test_columns_that_may_both_be_meant(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    with pytest.raises(
        AnnotationError, match="columns 'file' and 'video' may both be the path; call one of them 'path'"
    ):
        read_annotations(table(tmp_path, "file,video,label\na.mp4,b,walk\n"))
    assert read_annotations(table(tmp_path, "video,path,label\nb,a.mp4,walk\n"))[0].path == tmp_path / "a.mp4"


@pytest.mark.parametrize(
    "written", [r"sub\café\a.mp4", " sub/café/a.mp4 ", unicodedata.normalize("NFD", "sub/café/a.mp4")]
)
def test_paths_are_found_under_another_spelling(uniformerv2: Run, video: Path, tmp_path: Path, written: str) -> None:
    target = tmp_path / "sub" / "café" / "a.mp4"
    target.parent.mkdir(parents=True)
    shutil.copyfile(video, target)
    manifest = table(tmp_path, f'path,label\n"{written}",walk\n')
    with pytest.warns(UserWarning, match=r"1 path\(s\) are spelled otherwise"):
        assert read_annotations(manifest)[0].path == target
    with pytest.warns(UserWarning, match="spelled otherwise"):
        assert uniformerv2("data", "check", manifest, "--workers", 0)[0] == 0
    with (tmp_path / "list.clean.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [written]


@pytest.mark.parametrize(
    "name", [" a.mp4", "a.mp4 ", "\ta.mp4", "a\rb.mp4", 'a".mp4', "a,b.mp4", "a\nb.mp4", r"a\b.mp4"]
)
def test_what_is_written_comes_back_exactly(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, f" {name} ")
    rows = [Annotation(tmp_path / name, "two  words"), Annotation(tmp_path / f" {name} ", "x", 1.5)]
    write_manifest(tmp_path / "m.csv", rows)
    assert read_annotations(tmp_path / "m.csv", must_exist=False) == rows
    assert read_annotations(write_one(tmp_path, rows[0]))[0].path == rows[0].path


def write_one(folder: Path, row: Annotation) -> Path:
    write_manifest(folder / "one.csv", [row])
    return folder / "one.csv"


# --- a moved data set


def test_a_moved_data_set_is_found_again(uniformerv2: Run, colours: Path, tiny: list[object], tmp_path: Path) -> None:
    before, after, run = tmp_path / "before", tmp_path / "after", tmp_path / "run"
    shutil.copytree(colours, before)
    train = ("train", before, "-o", run, *tiny, "--epochs", 1, "--warmup-epochs", 0)
    assert uniformerv2(*train)[0] == 0
    assert all(not row["path"].startswith("/") for row in csv.DictReader((run / "train.csv").open()))
    assert json.loads((run / "data.json").read_text())["root"] == str(before)
    assert len(read_annotations(run / "train.csv")) == 12
    before.rename(after)
    held = run / "held_out.csv"
    assert_refused(uniformerv2("evaluate", run / "last.safetensors", held), "--root FOLDER")
    for command in (
        ("evaluate", run, held, "-o", tmp_path / "a.json"),
        ("features", run, held, "-o", tmp_path / "f.npz"),
        ("predict", run, held),
        ("train", "--resume", "-o", run),
    ):
        status, _, errors = uniformerv2(
            *command, "--root", after, *(() if command[0] == "predict" else ("--workers", 0))
        )
        assert status == 0, errors
    assert len(read_annotations(held)) == 3  # resuming has noted the new place
    assert uniformerv2("train", after, *train[2:], "--resume")[0] == 0
    (after / "red" / "red0.mp4").rename(after / "red" / "new.mp4")
    gone, new = "1 row(s) no longer there, such as red/red0.mp4,red", "1 row(s) new, such as red/new.mp4,red"
    assert_refused(uniformerv2("train", after, *train[2:], "--resume"), gone, new)


def test_videos_and_run_move_together(tmp_path: Path) -> None:
    project = tmp_path / "project"
    rows = [Annotation(touch(project / "videos", "walk/a.mp4") / "walk/a.mp4", "walk")]
    (project / "run").mkdir()
    write_manifest(project / "run" / "train.csv", rows, root=project / "videos")
    note_root(project / "videos", [project / "run" / "train.csv"])
    project.rename(tmp_path / "moved")
    assert read_annotations(tmp_path / "moved" / "run" / "train.csv")[0].path.read_text() == "walk/a.mp4"
