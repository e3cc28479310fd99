"""THUMOS14 and MultiTHUMOS: a text file for each class, with a video, a start and an end in seconds on a line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from uniformerv2.spans.formats.label_file import LabelFile, SpanRow, timed

AMBIGUOUS = "ambiguous in THUMOS"
_LINE = re.compile(r"(?![\d.]+\s)(\S+)\s+(\S+)\s+(\S+)")


def is_thumos(file: LabelFile) -> bool:
    first = next(filter(None, map(str.strip, file.text.splitlines())), "")
    found = _LINE.fullmatch(first)
    return bool(found and all(re.fullmatch(r"[\d.]+", found[place]) for place in (2, 3)))


def read_thumos(file: LabelFile) -> Iterator[SpanRow]:
    """The class is the name of the file."""
    label = re.sub(r"_(val|test)$", "", file.path.stem)
    for number, line in enumerate(file.text.splitlines(), start=1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.strip())
        if not found:
            yield SpanRow(number, ("",), label, wrong=f"found {line.strip()[:80]!r}, expected VIDEO START END")
            continue
        row = timed(SpanRow(number, (found[1],), label, split=split_of_video(found[1])), found[2], found[3])
        yield row._replace(skip=AMBIGUOUS) if label.casefold() == "ambiguous" else row


def split_of_video(name: str) -> str:
    """What a video is for: models are trained on the validation videos, as the training videos have no spans."""
    return {"video_validation": "train", "video_test": "test"}.get(name.rpartition("_")[0], "")
