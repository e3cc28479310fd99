"""The file that X-AnyLabeling's video classifier keeps beside a video: segments in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator

from uniformerv2.spans.formats.label_file import FormatError, LabelFile, SpanRow, entries, table, timed
from uniformerv2.text import short_json


def is_x_anylabeling(file: LabelFile) -> bool:
    return table(file.json).get("type") == "video_classification" and "segments" in file.json


def read_x_anylabeling(file: LabelFile) -> Iterator[SpanRow]:
    """Its frame numbers are computed from the times at a constant rate, so the times count."""
    version = str(file.json.get("version", ""))
    if version.partition(".")[0] != "1":
        raise FormatError(f"{file.path}: version {version!r} of X-AnyLabeling's video labels; expected 1")
    names = tuple(filter(None, (str(file.json.get("video") or ""), file.path.stem)))
    for number, segment in enumerate(entries(file.json["segments"]), start=1):
        match segment:
            case {"label": str() as label, "start_ms": start, "end_ms": end}:
                yield timed(SpanRow(number, names, label), start, end, per_second=1000)
            case _:
                found = short_json(segment, longest=80)
                yield SpanRow(number, names, wrong=f"found {found}, expected label, start_ms and end_ms")
