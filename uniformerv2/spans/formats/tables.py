"""Plain tables: the columns path,label,start,end of a manifest, under any of the names that manifests may have."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice

from uniformerv2.data.manifest import open_table
from uniformerv2.data.tables import csv_writer
from uniformerv2.errors import AnnotationError
from uniformerv2.spans.formats.label_file import FrameSource, LabelFile, SpanRow, clock_seconds, number, timed
from uniformerv2.spans.span import Spans

NO_TIMES = "no times"
_COLUMNS = ("path", "label", "start", "end", "split")


def is_table(file: LabelFile) -> bool:
    if file.json is not None or file.xml is not None:
        return False
    try:
        return {"path", "label", "start", "end"} <= open_table(file.path).places.keys()
    except AnnotationError:
        return False


def read_table(file: LabelFile) -> Iterator[SpanRow]:
    """Times are seconds or [hours:]minutes:seconds; a column `score` is read too."""
    table = open_table(file.path)
    places = [table.places.get(name, len(table.header)) for name in _COLUMNS]
    scores = next((place for place, name in enumerate(table.header) if name.casefold() == "score"), len(table.header))
    for line, cells in table.cells():
        padded = [cell.strip() for cell in islice([*cells, *[""] * (len(table.header) + 1)], len(table.header) + 1)]
        video, label, *times, split = (padded[place] for place in places)
        row = SpanRow(line, (video,), label, split=split)
        if len(cells) > len(table.header):
            yield row._replace(wrong="more values than columns; a label with a comma belongs in double quotes")
            continue
        if "" in times:
            yield row._replace(skip=NO_TIMES)
            continue
        if table.delimiter == ";":
            times = [time.replace(",", ".") for time in times]
        row = timed(row, *(clock if (clock := clock_seconds(time)) is not None else time for time in times))
        score = number(padded[scores] or "1")
        if score is None:
            row = row._replace(wrong=f"found the score {padded[scores][:40]!r}, expected a number")
        yield row._replace(score=score or 0.0)


def write_table(spans: Spans, _frames: FrameSource) -> str:
    """In full precision."""
    text = io.StringIO(newline="")
    write = csv_writer(text)
    write(("path", "label", "start", "end", "score"))
    for video, of_video in spans.items():
        for span in of_video:
            write((video, span.label, span.start, span.end, span.score))
    return text.getvalue()
