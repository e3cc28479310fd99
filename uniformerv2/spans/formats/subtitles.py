"""SubRip (.srt) and WebVTT (.vtt): a label is the text of a cue, and the file is called like its video."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from itertools import groupby

from uniformerv2.spans.formats.label_file import FrameSource, LabelFile, SpanRow, clock, clock_seconds
from uniformerv2.spans.span import Spans

_TIMES = re.compile(r"\s*([\d:.,]+)\s*-->\s*([\d:.,]+)(\s.*)?")
_COMMENT = re.compile(r"(NOTE|STYLE|REGION)(\s|$)")
_TAG = re.compile(r"<[^<>]*>")


def is_srt(file: LabelFile) -> bool:
    lines = [line for line in file.text.splitlines() if line.strip()][:2]
    return any(_TIMES.fullmatch(line) for line in lines)


def is_vtt(file: LabelFile) -> bool:
    return bool(re.match(r"WEBVTT(\s|$)", file.text))


def read_cues(file: LabelFile) -> Iterator[SpanRow]:
    """Lines of one cue are joined by spaces; tags are dropped, and references such as &amp; are resolved."""
    names = tuple(dict.fromkeys((file.path.stem, file.path.stem.rpartition(".")[0] or file.path.stem)))  # film.en.srt
    lines = enumerate(file.text.split("\n"), start=1)
    for has_text, group in groupby(lines, key=lambda line: bool(line[1].strip())):
        block = list(group)
        if not has_text or _COMMENT.match(block[0][1]):
            continue
        for place, (number, line) in enumerate(block):
            if found := _TIMES.fullmatch(line):
                label = plain_text(" ".join(text.strip() for _, text in block[place + 1 :]))
                start, end = clock_seconds(found[1]), clock_seconds(found[2])
                wrong = f"found {line.strip()[:80]!r}, expected HH:MM:SS,mmm --> HH:MM:SS,mmm"
                wrong = wrong if start is None or end is None else ""
                yield SpanRow(number, names, label, start, end, wrong=wrong)
                break


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
