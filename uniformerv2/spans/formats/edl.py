"""Edit decision lists (CMX 3600): an event for each span, one after the other, for video editors."""

from __future__ import annotations

import re
from collections.abc import Iterator

from uniformerv2.spans.formats.label_file import FormatError, FrameSource, LabelFile, SpanRow
from uniformerv2.spans.formats.subtitles import one_line, plain_text
from uniformerv2.spans.span import Spans

_EVENT = re.compile(r"\d{3,}\s+\S+\s+\S+\s+\S.*?\s(\S+)\s+(\S+)\s+\S+\s+\S+\s*")
_CLIP, _LABEL, _RATE = "* FROM CLIP NAME: ", "* COMMENT: ", "* FRAME RATE: "


def is_edl(file: LabelFile) -> bool:
    return file.text.startswith("TITLE:") and "FCM:" in file.text[:1000]


def read_edl(file: LabelFile) -> Iterator[SpanRow]:
    """The source times of events; the label is the comment below one. Frames are those of the video.

    How many frames a second of timecode has is no part of the format: it is read from a comment such as
    `* FRAME RATE: 25`, which goes for the events below it.
    """
    base = 0
    row: SpanRow | None = None
    for number, line in enumerate(file.text.split("\n"), start=1):
        if line.startswith(_RATE):
            stated = re.fullmatch(r"\s*(\d{1,4})\s*", line.removeprefix(_RATE))
            base = int(stated[1]) if stated else 0
        elif found := _EVENT.fullmatch(line):
            if row:
                yield row
            if not base:
                raise FormatError(
                    f"{file.path}, line {number}: timecodes without their rate; add the line '{_RATE}25' above (frames "
                    "in a second of timecode)"
                )
            frames = [_frame(timecode, base) for timecode in found.groups()]
            row = SpanRow(number, (file.path.stem,), frames=(frames[0] or 0, frames[1] or 0))
            if None in frames:
                row = row._replace(wrong=f"found {found[1]} and {found[2]}, expected timecodes as HH:MM:SS:FF")
        elif row and line.startswith(_CLIP):
            row = row._replace(names=(plain_text(line.removeprefix(_CLIP)),))
        elif row and line.startswith(_LABEL):
            row = row._replace(label=plain_text(line.removeprefix(_LABEL)))
    if row:
        yield row


def write_edl(spans: Spans, frames: FrameSource) -> str:
    """Timecode counts the frames of the video, at its rate rounded up to a whole number, without drops."""
    lines = ["TITLE: spans", "FCM: NON-DROP FRAME"]
    number, base = 0, 0
    record = 0.0
    for video, of_video in spans.items():
        film = frames(video)
        former, base = base, max(1, round(film.rate))
        if base != former:
            lines += ["", f"{_RATE}{base}"]
        for span in of_video:
            number += 1
            source = film.span(span.start, span.end)
            placed = round(record * base)
            edges = (*source, placed, placed + source[1] - source[0])
            record = edges[3] / base
            lines.append(f"{number:03d}  AX       V     C        {' '.join(_timecode(edge, base) for edge in edges)}")
            lines += [f"{_CLIP}{one_line(video)}", f"{_LABEL}{one_line(span.label)}"]
    return "\n".join([*lines, ""])


def _timecode(frame: int, base: int) -> str:
    seconds = frame // base
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{frame % base:02d}"


def _frame(timecode: str, base: int) -> int | None:
    found = re.fullmatch(r"(\d{1,4}):(\d\d):(\d\d)[:;](\d{2,4})", timecode)
    if not found:
        return None
    hours, minutes, seconds, frames = map(int, found.groups())
    return ((hours * 60 + minutes) * 60 + seconds) * base + frames
