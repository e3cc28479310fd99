"""Edit decision lists (CMX 3600): an event for each span, one after the other, for video editors."""

from __future__ import annotations

import re
from collections.abc import Iterator

from uniformerv2.spans.formats.label_file import FormatError, FrameSource, LabelFile, SpanRow, number
from uniformerv2.spans.formats.subtitles import one_line, plain_text
from uniformerv2.spans.span import Spans

_EVENT = re.compile(r"\d{3,}\s+\S+\s+\S+\s+\S.*?\s(\S+)\s+(\S+)\s+\S+\s+\S+\s*")
_CLIP, _LABEL, _RATE = "* FROM CLIP NAME: ", "* COMMENT: ", "* FRAME RATE: "


def is_edl(file: LabelFile) -> bool:
    return file.text.startswith("TITLE:") and "FCM:" in file.text[:1000]


def read_edl(file: LabelFile) -> Iterator[SpanRow]:
    """The source times of events; the label is the comment below one.

    Timecode counts frames, but does not tell how many are in a second: that is read from a comment such as
    `* FRAME RATE: 29.97`, which goes for the events below it.
    """
    rate = 0.0
    row: SpanRow | None = None
    for place, line in enumerate(file.text.split("\n"), start=1):
        if line.startswith(_RATE):
            rate = number(line.removeprefix(_RATE)) or 0.0
        elif found := _EVENT.fullmatch(line):
            if row:
                yield row
            if rate <= 0:
                raise FormatError(
                    f"{file.path}, line {place}: timecodes without their rate; add the line '{_RATE}25' above (frames "
                    "in a second)"
                )
            row = SpanRow(place, (file.path.stem,))
            frames = [_frame(timecode, _base(rate)) for timecode in found.groups()]
            if frames[0] is None or frames[1] is None:
                row = row._replace(wrong=f"found {found[1]} and {found[2]}, expected timecodes as HH:MM:SS:FF")
            else:
                row = row._replace(start=frames[0] / rate, end=frames[1] / rate)
        elif row and line.startswith(_CLIP):
            row = row._replace(names=(plain_text(line.removeprefix(_CLIP)),))
        elif row and line.startswith(_LABEL):
            row = row._replace(label=plain_text(line.removeprefix(_LABEL)))
    if row:
        yield row


def write_edl(spans: Spans, frames: FrameSource) -> str:
    """Timecode counts frames at the average rate of the video, as editors make it constant, without drops."""
    lines = ["TITLE: spans", "FCM: NON-DROP FRAME"]
    event, rate = 0, 0.0
    record = 0.0  # seconds of timecode
    for video, of_video in spans.items():
        film = frames(video)
        former, rate = rate, film.rate
        base = _base(rate)
        if rate != former:
            lines += ["", f"{_RATE}{rate:.9g}"]
        for span in of_video:
            event += 1
            first = min(round(span.start * rate), len(film) - 1)
            past = max(round(span.end * rate), first + 1)
            placed = round(record * base)
            edges = (first, past, placed, placed + past - first)
            record = edges[3] / base
            lines.append(f"{event:03d}  AX       V     C        {' '.join(_timecode(edge, base) for edge in edges)}")
            lines += [f"{_CLIP}{one_line(video)}", f"{_LABEL}{one_line(span.label)}"]
    return "\n".join([*lines, ""])


def _base(rate: float) -> int:
    """The frames of a second of timecode: 30 at 29.97 frames/s."""
    return max(1, round(rate))


def _timecode(frame: int, base: int) -> str:
    seconds = frame // base
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{frame % base:02d}"


def _frame(timecode: str, base: int) -> int | None:
    found = re.fullmatch(r"(\d{1,4}):(\d\d):(\d\d)[:;](\d{2,4})", timecode)
    if not found:
        return None
    hours, minutes, seconds, frames = map(int, found.groups())
    return ((hours * 60 + minutes) * 60 + seconds) * base + frames
