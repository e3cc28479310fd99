"""Files appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from uniformerv2.atomic import whole_file, whole_folder, write_text


def test_a_file_takes_its_place_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("before")
    with whole_file(path) as partial:
        partial.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert [file.name for file in tmp_path.iterdir()] == ["x.txt"]


def test_nothing_is_left_of_what_goes_wrong(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), whole_file(path) as partial:
        partial.write_text(f"half {1 / 0}")
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "folder") as folder:
        (folder / "one").write_text(f"half {1 / 0}")
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["x.txt"]


def test_a_folder_takes_the_place_of_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with whole_folder(tmp_path / "folder") as partial:
        (partial / "one").write_text("1")
    assert (tmp_path / "folder" / "one").read_text() == "1"


def test_others_may_read_what_is_written_as_the_mask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "x.txt", "é")
    finally:
        os.umask(before)
    assert (tmp_path / "x.txt").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "x.txt").read_bytes() == "é".encode()
