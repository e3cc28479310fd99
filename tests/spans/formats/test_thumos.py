"""THUMOS14 and MultiTHUMOS: a file for each class."""

from __future__ import annotations

from pathlib import Path

import pytest

from spans.rows import seconds, text
from uniformerv2.spans.files import read_rows
from uniformerv2.spans.formats.label_file import UnknownFormat

LINES = "video_validation_0000051  67.5  75.9\nvideo_validation_0000051  85.9 90.6\n\nvideo_test_0000004  0.2  1.1\n"


def test_the_class_is_the_name_of_the_file(tmp_path: Path) -> None:
    file = text(tmp_path / "BaseballPitch_val.txt", LINES)
    assert seconds(file) == [
        ("video_validation_0000051", "BaseballPitch", 67.5, 75.9),
        ("video_validation_0000051", "BaseballPitch", 85.9, 90.6),
        ("video_test_0000004", "BaseballPitch", 0.2, 1.1),
    ]
    assert [(row.line, row.split) for row in read_rows(file)] == [(1, "train"), (2, "train"), (4, "test")]
    assert {row.label for row in read_rows(text(tmp_path / "StandUp.txt", LINES))} == {"StandUp"}  # MultiTHUMOS


def test_ambiguous_is_no_class(tmp_path: Path) -> None:
    assert [row.skip for row in read_rows(text(tmp_path / "Ambiguous_val.txt", LINES))] == ["ambiguous in THUMOS"] * 3


def test_a_line_that_is_wrong(tmp_path: Path) -> None:
    rows = list(
        read_rows(text(tmp_path / "Diving_test.txt", LINES + "video_test_0000004 1.0\nvideo_test_0000004 a 2\n"))
    )
    assert [bool(row.wrong) for row in rows] == [False, False, False, True, True]
    assert rows[3].line == 5
    assert "found 'video_test_0000004 1.0', expected VIDEO START END" in rows[3].wrong


@pytest.mark.parametrize("other", ["7 BaseballPitch\n9 BasketballDunk\n", "0.5 1.5 speech\n", "read me\n", ""])
def test_lists_and_tables_beside_them_are_others(tmp_path: Path, other: str) -> None:
    with pytest.raises(UnknownFormat, match="no spans in a known format"):
        list(read_rows(text(tmp_path / "detclasslist.txt", other)))
