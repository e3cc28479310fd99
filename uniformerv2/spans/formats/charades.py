"""Charades: a CSV file with a row for each video, whose column `actions` holds its spans: `c092 11.90 21.20;...`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from uniformerv2.data.tables import csv_rows, text_lines
from uniformerv2.spans.formats.label_file import LabelFile, SpanRow, UnknownFormat, timed

_CLASSES = "Charades_v1_classes.txt"


def is_charades(file: LabelFile) -> bool:
    return {"id", "actions"} <= {*file.text.partition("\n")[0].split(",")}


def read_charades(file: LabelFile) -> Iterator[SpanRow]:
    """Labels are the names in Charades_v1_classes.txt where that lies beside the file, else as `c092`."""
    names = _class_names(file.path.with_name(_CLASSES))
    rows = csv_rows(file.path)
    header = next(rows)[1]
    if not {"id", "actions"} <= {*header}:
        raise UnknownFormat(f"{file.path}, line 1: found the columns {','.join(header)[:200]}, expected id and actions")
    video, actions = header.index("id"), header.index("actions")
    split = next((split for split in ("train", "test") if split in file.path.stem.casefold()), "")
    for line, cells in rows:
        if len(cells) != len(header):
            yield SpanRow(line, ("",), wrong=f"found {len(cells)} cells, expected {len(header)}")
            continue
        row = SpanRow(line, (cells[video].strip(),), split=split)
        for action in filter(None, map(str.strip, cells[actions].split(";"))):
            match action.split():
                case [label, start, end]:
                    yield timed(row._replace(label=names.get(label, label)), start, end)
                case _:
                    yield row._replace(wrong=f"found {action[:80]!r}, expected CLASS START END")


def _class_names(file: Path) -> dict[str, str]:
    lines = text_lines(file) if file.is_file() else ()
    return {number: name for _, line in lines for number, _, name in [line.partition(" ")]}
