"""ELAN's .eaf: annotations in tiers, between time slots in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from urllib.parse import unquote

from uniformerv2.spans.formats.label_file import FormatError, LabelFile, SpanRow, number, timed
from uniformerv2.spans.formats.xml import Element
from uniformerv2.video.suffixes import VIDEO_SUFFIXES

NO_TIMES = "no times of its own"


def is_elan(file: LabelFile) -> bool:
    return file.xml is not None and file.xml.tag == "ANNOTATION_DOCUMENT"


def read_elan(file: LabelFile) -> Iterator[SpanRow]:
    """The label is the value of an annotation, or the name of its tier where the value is empty.

    Annotations that refer to others, and those between slots without a time, are skipped.
    """
    root = file.xml
    assert root is not None
    version = root.attributes.get("FORMAT", "")
    units = next((header.attributes.get("TIME_UNITS", "") for header in root.all("HEADER")), "")
    if version.partition(".")[0] not in ("2", "3"):
        raise FormatError(f"{file.path}, line {root.line}: version {version!r} of ELAN's format; expected 2 or 3")
    if units not in ("", "milliseconds"):
        raise FormatError(f"{file.path}: times in {units}; ELAN writes milliseconds, and no others are read")
    names, origin = _video(file)
    slots = {
        slot.attributes.get("TIME_SLOT_ID", ""): slot.attributes.get("TIME_VALUE")
        for slot in root.all("TIME_ORDER", "TIME_SLOT")
    }
    for tier in root.all("TIER"):
        name = tier.attributes.get("TIER_ID", "")
        for annotation in tier.all("ANNOTATION"):
            for found in annotation.children:
                label = found.text_of("ANNOTATION_VALUE") or name
                row = SpanRow(found.line, names, label, tier=name)
                times = [slots.get(found.attributes.get(f"TIME_SLOT_REF{end}", "")) for end in (1, 2)]
                if None in times:
                    yield row._replace(skip=NO_TIMES)
                    continue
                yield timed(
                    row, *(time if (ms := number(time)) is None else ms + origin for time in times), per_second=1000
                )


def _video(file: LabelFile) -> tuple[tuple[str, ...], float]:
    """Names of the first video that the file is linked to, and the millisecond of it at which its time begins."""
    assert file.xml is not None
    for media in file.xml.all("HEADER", "MEDIA_DESCRIPTOR"):
        name = PurePosixPath(unquote(media.attributes.get("MEDIA_URL", "").replace("\\", "/"))).name
        if _is_video(media, name):
            return (name, file.path.stem), number(media.attributes.get("TIME_ORIGIN", "0")) or 0.0
    return (file.path.stem,), 0.0


def _is_video(media: Element, name: str) -> bool:
    return media.attributes.get("MIME_TYPE", "").startswith("video/") or PurePosixPath(name).suffix in VIDEO_SUFFIXES
