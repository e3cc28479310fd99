"""Annotations out of folders, manifests and whatever else holds videos."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from helpers import touch
from uniformerv2.data.annotations import Annotation
from uniformerv2.data.shards import write_shards
from uniformerv2.data.sources import find_videos, read_annotations
from uniformerv2.errors import AnnotationError


def manifest(folder: Path, text: str, *, encoding: str = "utf-8") -> Path:
    path = folder / "list.csv"
    path.write_bytes(text.encode(encoding))
    return path


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


def test_rows_of_one_file_share_its_path(tmp_path: Path) -> None:
    """Manifests may have millions of rows."""
    text = "path,label,start,end\n" + "".join(f"a.mp4,walk,{start},{start + 1}\n" for start in range(1000))
    read = read_annotations(manifest(touch(tmp_path, "a.mp4"), text))
    assert len({id(row.path) for row in read}) == len({id(row.label) for row in read}) == 1
    assert not hasattr(read[0], "__dict__")


def test_videos_may_be_missing_where_that_is_asked_for(tmp_path: Path) -> None:
    path = manifest(tmp_path, "path,label\ngone.mp4,walk\n")
    assert read_annotations(path, must_exist=False) == [Annotation(tmp_path / "gone.mp4", "walk")]


# videos without labels


def test_videos_without_labels(colours: Path, tmp_path: Path) -> None:
    long = colours / "red" / "red0.mp4"
    frames = tmp_path / "films" / "deep" / "frames"
    touch(tmp_path / "films", "deep/frames/1.jpg", "a.mp4", "notes.txt", ".hidden.mp4")
    (tmp_path / "list.csv").write_text(f"path,label,start,end,split\n{long},long,1,2,val\n{long},long,2,3,train\n")
    found = find_videos([long, tmp_path / "films", tmp_path / "list.csv"], split="val")
    assert found == [
        Annotation(long, ""),
        Annotation(tmp_path / "films" / "a.mp4", ""),
        Annotation(frames, ""),
        Annotation(long, "long", 1.0, 2.0, "val"),
    ]
    assert find_videos([frames]) == [Annotation(frames, "")]
    assert len(find_videos([colours])) == 15
    for source in (tmp_path / "absent", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(AnnotationError, match=source.name):
            find_videos([source])


def test_videos_of_shards(colours: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    rows = [Annotation(colours / "red" / "red0.mp4", "long", 1, 2, "val")]
    write_shards([*rows, Annotation(colours / "red" / "red1.mp4", "long", 2, 3, "train")], tmp_path / "shards")
    assert [(row.label, row.start) for row in find_videos([tmp_path / "shards"], split="val")] == [("long", 1.0)]
