"""Plain tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from spans.rows import seconds, text
from uniformerv2.spans.files import read_rows

MANIFEST = 'path,label,start,end,split\na/film.mp4,"sit, down",1.5,3,val\nb.mp4,x,,,\n'


def test_a_manifest(tmp_path: Path) -> None:
    rows = list(read_rows(text(tmp_path / "a.csv", MANIFEST)))
    assert [(row.line, row.names[0], row.label, row.start, row.end, row.split) for row in rows[:1]] == [
        (2, "a/film.mp4", "sit, down", 1.5, 3.0, "val")
    ]
    assert rows[1].skip == "no times"


@pytest.mark.filterwarnings("ignore:.*read under other names")
def test_tables_of_others(tmp_path: Path) -> None:
    table = "Video;Class;Start time;End time;Score\nfilm.mp4;wave;0:01,5;1:00:02;0.25\nfilm.mp4;sit;3,25;2;\n"
    file = text(tmp_path / "a.csv", table)
    assert seconds(file) == [("film.mp4", "wave", 1.5, 3602.0), ("film.mp4", "sit", 3.25, 2.0)]
    assert [row.score for row in read_rows(file)] == [0.25, 1.0]


def test_rows_that_are_wrong(tmp_path: Path) -> None:
    table = "path,label,start,end,score\na.mp4,x,one,2,1\na.mp4,x,1,2,high\na.mp4,x,1,2,1,9\n"
    assert [row.wrong[:20] for row in read_rows(text(tmp_path / "a.csv", table))] == [
        'found the times "one',
        "found the score 'hig",
        "more values than col",
    ]
