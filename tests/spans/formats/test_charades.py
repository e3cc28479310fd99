"""Charades: the column `actions` of its tables."""

from __future__ import annotations

from pathlib import Path

from spans.rows import seconds, text
from uniformerv2.spans.files import read_rows

TABLE = """id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length
46GP8,HR43,Kitchen,6,7,Yes,"He cooks, then eats.",food;stove,"He cooks; eats",c092 11.90 21.20;c147 0.00 12.60,24.83
N11GT,0KZ7,Stairs,6,7,Yes,x,y,z,,31.0
Y1HGC,0KZ7,Stairs,6,7,Yes,x,y,z,c092 1.0,31.0
"""


def test_actions(tmp_path: Path) -> None:
    file = text(tmp_path / "Charades_v1_train.csv", TABLE)
    rows = list(read_rows(file))
    assert [(r.line, r.names[0], r.label, r.start, r.end, r.split) for r in rows[:2]] == [
        (2, "46GP8", "c092", 11.9, 21.2, "train"),
        (2, "46GP8", "c147", 0.0, 12.6, "train"),
    ]
    assert len(rows) == 3  # a video without actions has no row
    assert "found 'c092 1.0', expected CLASS START END" in rows[2].wrong


def test_names_of_classes_lie_beside_the_table(tmp_path: Path) -> None:
    text(tmp_path / "Charades_v1_classes.txt", "c092 Holding a broom\nc147 Someone is cooking something\n")
    file = text(tmp_path / "Charades_v1_test.csv", "\n".join(TABLE.splitlines()[:2]))
    assert [row[1] for row in seconds(file)] == ["Holding a broom", "Someone is cooking something"]
    assert {row.split for row in read_rows(file)} == {"test"}
