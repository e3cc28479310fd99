"""Tables are read with their line numbers, and written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from uniformerv2.data.annotations import Annotation
from uniformerv2.data.sources import read_annotations, write_manifest
from uniformerv2.data.tables import csv_rows, read_rows, text_lines, utf8_text
from uniformerv2.errors import AnnotationError

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
