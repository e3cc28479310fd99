"""Annotations out of folders, manifests and whatever else holds videos; tables are written whole or not at all."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import touch
from uniformerv2.data.annotations import Annotation
from uniformerv2.data.manifest import write_manifest
from uniformerv2.data.shards import write_shards
from uniformerv2.data.sources import find_videos, read_annotations
from uniformerv2.data.tables import csv_rows, read_rows, text_lines, utf8_text
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
        ("path,note\na.mp4,walk\n", "line 1 must name .* label missing, found path, note"),
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
        ("path,label,end\na.mp4,walk,00:75\n", "line 2: end is '00:75'; it must be a number of seconds"),
        ("path,label,split\na.mp4,walk,hold\n", "line 2: split is 'hold'; it must be train, val, test or empty"),
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


ODD = [
    ('wave/a, "b".mp4', 'wave, "fast"', 0.5, 2.25, "train"),
    ("jump/zażółć.mp4", "jump", None, None, None),
    ("deep/er/line\nbreak.mp4", "jump", 1 / 3, None, "val"),
]


def odd_rows(root: Path) -> list[Annotation]:
    return [Annotation(root / path, *cells) for path, *cells in ODD]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["m.csv", "m.parquet", "m.pq"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    if name != "m.csv":
        pytest.importorskip("pyarrow")
    assert write_manifest(tmp_path / name, iter(odd_rows(tmp_path))) == 3
    assert read_annotations(tmp_path / name, must_exist=False) == odd_rows(tmp_path)


def test_paths_are_short_below_the_root_only(tmp_path: Path) -> None:
    rows = [Annotation(tmp_path / "a" / "x.mp4", "l"), Annotation(tmp_path / "ab" / "y.mp4", "l")]
    (tmp_path / "a").mkdir()
    write_manifest(tmp_path / "a" / "m.csv", rows)
    assert (tmp_path / "a" / "m.csv").read_text().splitlines() == [
        "path,label,start,end,split",
        "x.mp4,l,,,",
        f"{tmp_path}/ab/y.mp4,l,,,",
    ]
    write_manifest(tmp_path / "a" / "m.csv", rows, root=tmp_path)
    assert read_annotations(tmp_path / "a" / "m.csv", root=tmp_path, must_exist=False) == rows


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_nothing_is_half_written(tmp_path: Path, name: str) -> None:
    if name != "m.csv":
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_text("before")

    def rows() -> Iterator[Annotation]:
        yield from odd_rows(tmp_path) * 50_000  # more than is held at a time
        raise AnnotationError("the 150001st row is invalid")

    with pytest.raises(AnnotationError, match="150001st"):
        write_manifest(tmp_path / name, rows())
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "before"


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"m.csv: .*udcff.mp4.* cannot be written in UTF-8; rename that file"):
        write_manifest(tmp_path / "m.csv", [Annotation(tmp_path / os.fsdecode(b"\xff.mp4"), "l")])
    assert not list(tmp_path.iterdir())


def test_no_folder_to_write_to(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"m.csv: there is no folder .*none to write to"):
        write_manifest(tmp_path / "none" / "m.csv", [])


def test_written_files_are_as_public_as_others(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_manifest(tmp_path / "m.csv", odd_rows(tmp_path))
    assert (tmp_path / "m.csv").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_lines_are_numbered_as_editors_do(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b\r\n\r\n"x\r\ny", z \r\n1,2')
    assert list(csv_rows(path)) == [(1, ["a", "b"]), (4, ["x\r\ny", "z "]), (5, ["1", "2"])]
    path.write_bytes(b'\xef\xbb\xbfa;b "c\n\n d ;e')
    assert list(csv_rows(path, delimiter=";", quotes=False)) == [(1, ["a", 'b "c']), (3, ["d ", "e"])]
    assert list(text_lines(path)) == [(1, 'a;b "c'), (3, "d ;e")]


@pytest.mark.parametrize("read", [lambda path: list(csv_rows(path)), lambda path: list(text_lines(path)), utf8_text])
def test_the_line_that_is_not_utf8_is_named(tmp_path: Path, read: object) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,b\n" * 30_000 + b"c\xe9,d\n" + b"a,b\n" * 30_000)
    with pytest.raises(AnnotationError, match=r"t.csv, line 30001: byte 0xe9 at position 2 is not UTF-8"):
        read(path)  # type: ignore[operator]


@pytest.mark.parametrize("content", ['a,b\n1,"2\n3,4\n', 'a,b\n1,"2"x\n'])
def test_quotes_that_make_no_sense(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(AnnotationError, match=r"t.csv, line \d: cannot be read as CSV: .*; check its double quotes"):
        list(csv_rows(tmp_path / "t.csv"))


def test_parquet_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_text("path,label\n")
    with pytest.raises(AnnotationError, match=r"t.parquet: cannot be read as Parquet") as caught:
        list(read_rows(tmp_path / "t.parquet"))
    assert "\n" not in str(caught.value)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    for call in (lambda: list(read_rows(tmp_path / "t.parquet")), lambda: write_manifest(tmp_path / "t.parquet", [])):
        with pytest.raises(AnnotationError, match=r'pip install "uniformerv2\[data\]"'):
            call()
    assert not list(tmp_path.iterdir())
