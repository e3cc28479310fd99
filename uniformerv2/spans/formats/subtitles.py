"""SubRip (.srt) and WebVTT (.vtt): a label is the text of a cue, and the file is called like its video."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from uniformerv2.spans.formats.label_file import FrameSource, LabelFile, SpanRow, clock, clock_seconds
from uniformerv2.spans.span import Spans

_TIMES = re.compile(r"\s*([\d:.,]+)\s*-->\s*([\d:.,]+)(\s.*)?")
_TAG = re.compile(r"<[^<>]*>")


def is_srt(file: LabelFile) -> bool:
    lines = [line for line in file.text.splitlines() if line.strip()][:2]
    return any(_TIMES.fullmatch(line) for line in lines)


def is_vtt(file: LabelFile) -> bool:
    return bool(re.match(r"WEBVTT(\s|$)", file.text))


def read_cues(file: LabelFile) -> Iterator[SpanRow]:
    """Lines of one cue are joined by spaces; tags are dropped, and references such as &amp; are resolved."""
    names = tuple(dict.fromkeys((file.path.stem, file.path.stem.rpartition(".")[0] or file.path.stem)))  # film.en.srt
    line = 1
    for block in re.split(r"(\n[ \t]*(?=\n))", file.text):
        lines = block.split("\n")
        place = next((place for place, text in enumerate(lines) if _TIMES.fullmatch(text)), None)
        is_comment = lines[0].startswith(("NOTE", "STYLE", "REGION")) or (
            len(lines) > 1 and not lines[0].strip() and lines[1].startswith(("NOTE", "STYLE", "REGION"))
        )
        if place is not None and not is_comment:
            found = _TIMES.fullmatch(lines[place])
            assert found
            label = plain_text(" ".join(filter(None, map(str.strip, lines[place + 1 :]))))
            start, end = clock_seconds(found[1]), clock_seconds(found[2])
            row = SpanRow(line + place, names, label)
            if start is None or end is None:
                yield row._replace(wrong=f"found {lines[place].strip()[:80]!r}, expected HH:MM:SS,mmm --> HH:MM:SS,mmm")
            else:
                yield row._replace(start=start, end=end)
        line += block.count("\n")


def write_srt(spans: Spans, _frames: FrameSource) -> str:
    return "\n".join(
        f"{number}\n{clock(span.start, ',')} --> {clock(span.end, ',')}\n{one_line(span.label)}\n"
        for number, span in enumerate(next(iter(spans.values())), start=1)
    )


def write_vtt(spans: Spans, _frames: FrameSource) -> str:
    cues = (
        f"\n{clock(span.start, '.')} --> {clock(span.end, '.')}\n{_escaped(span.label)}\n"
        for span in next(iter(spans.values()))
    )
    return "WEBVTT\n" + "".join(cues)


def plain_text(text: str) -> str:
    """What a line of a subtitle says."""
    return html.unescape(_TAG.sub("", text)).strip()


def one_line(label: str) -> str:
    """A label as a line that `plain_text` reads: as it is, where that is read back, else escaped as in WebVTT."""
    is_plain = plain_text(label) == label and "\n" not in label and "\r" not in label and "-->" not in label
    return label if is_plain else _escaped(label)


def _escaped(label: str) -> str:
    return html.escape(label, quote=False).replace("\n", "&#10;").replace("\r", "&#13;")
