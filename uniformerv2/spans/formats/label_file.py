"""A file of labels before its format is known, and what every format makes of it: rows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from uniformerv2.data.tables import utf8_text
from uniformerv2.errors import AnnotationError
from uniformerv2.spans.formats.xml import Element, parse_xml
from uniformerv2.spans.frames import FrameTimes
from uniformerv2.spans.span import Spans
from uniformerv2.text import parse_json, short_json


class FormatError(AnnotationError):
    """A file of a format, or of a version of one, that is not read."""


class UnknownFormat(FormatError):
    """A file of none of the formats that are read."""


class SpanRow(NamedTuple):
    """A span as a file has it. It has either seconds or frames, unless `skip` or `wrong` says why not."""

    line: int  # of the file, from 1; in JSON, the number of the entry
    names: tuple[str, ...]  # what its video may be called, best first
    label: str = ""
    start: float | None = None  # seconds
    end: float | None = None  # seconds
    frames: tuple[int, int] | None = None  # the first one, from 0, and the one after the last
    score: float = 1.0
    split: str = ""  # as the file says it
    tier: str = ""  # of tools that label in several
    skip: str = ""  # why it is left out
    wrong: str = ""  # why it is invalid

    def times(self, frames: Callable[[], FrameTimes], *, frame_rate: float | None = None) -> tuple[float, float]:
        """Start and end in seconds.

        Args:
            frames: gives the times of the video's frames; it is called if the row has frames.
            frame_rate: frames/s in which the tool counted; None: its frames are the video's.

        Raises:
            IndexError: a frame that the video does not have.
        """
        if self.frames is None:
            assert self.start is not None, "a row without times is skipped or wrong"
            assert self.end is not None
            return self.start, self.end
        first, past = self.frames
        if frame_rate is not None:
            return first / frame_rate, past / frame_rate
        return frames().seconds(first), frames().seconds(past)


@dataclass(frozen=True)
class LabelFile:
    """The content of a file, parsed as far as that does not depend on the format."""

    path: Path
    text: str
    json: Any = None  # of a text that begins as JSON does
    xml: Element | None = None  # of a text that begins as XML does


def open_label_file(path: Path) -> LabelFile:
    """Raises AnnotationError: not in UTF-8, or damaged JSON or XML; names the line."""
    text = utf8_text(path)
    match text.lstrip()[:1]:
        case "{" | "[":
            try:
                return LabelFile(path, text, json=parse_json(text))
            except json.JSONDecodeError as error:
                raise AnnotationError(f"{path}, line {error.lineno}: cannot be read as JSON: {error.msg}") from None
            except ValueError as error:
                raise AnnotationError(f"{path}: cannot be read as JSON: {error}") from None
        case "<":
            return LabelFile(path, text, xml=parse_xml(path, text))
    return LabelFile(path, text)


FrameSource = Callable[[str], FrameTimes]  # the frames of a video, by the name that its spans go by
Writer = Callable[[Spans, FrameSource], str]


# --- what several formats need


def timed(row: SpanRow, start: object, end: object, *, per_second: int = 1) -> SpanRow:
    """The row with these times.

    Args:
        row: without times.
        start, end: numbers, or texts of numbers.
        per_second: how many of their unit are a second.
    """
    times = [number(start), number(end)]
    if times[0] is None or times[1] is None:
        found = " and ".join(short_json(time, longest=40) for time in (start, end))
        return row._replace(wrong=f"found the times {found}, expected two numbers")
    return row._replace(start=times[0] / per_second, end=times[1] / per_second)


def number(value: object) -> float | None:
    """A finite number, also one that is written as a text; None: there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def clock_seconds(text: str) -> float | None:
    """[hours:]minutes:seconds, with "." or "," before thousandths, in seconds; None: no such time."""
    found = re.fullmatch(r"(?:(\d{1,6}):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,6}))?", text.strip())
    if not found:
        return None
    whole = int(found[1] or 0) * 3600 + int(found[2]) * 60 + int(found[3])
    return float(f"{whole}.{found[4] or 0}")


def clock(seconds: float, point: str) -> str:
    """hours:minutes:seconds with thousandths behind `point`."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def entries(value: Any) -> list[Any]:
    """Those of a list of JSON; what is no list is one entry, so that it is told to be wrong; none of null."""
    return value if isinstance(value, list) else [] if value is None else [value]


def table(value: object) -> Mapping[str, Any]:
    """An object of JSON; empty for what is none."""
    return value if isinstance(value, dict) else {}
