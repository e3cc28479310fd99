"""ELAN's .eaf."""

from __future__ import annotations

from pathlib import Path

import pytest

from spans.rows import seconds, text
from uniformerv2.spans.files import read_rows
from uniformerv2.spans.formats.label_file import FormatError

DOCUMENT = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" DATE="2024-05-01T10:00:00+01:00" FORMAT="3.0" VERSION="3.0"
 xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
 xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">
<HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">
<MEDIA_DESCRIPTOR MEDIA_URL="file:///home/a/talk.wav" MIME_TYPE="audio/x-wav" RELATIVE_MEDIA_URL="./talk.wav"/>
<MEDIA_DESCRIPTOR MEDIA_URL="file:///home/a/my%20film.mp4" MIME_TYPE="video/mp4" RELATIVE_MEDIA_URL="./my%20film.mp4"/>
<PROPERTY NAME="lastUsedAnnotationId">5</PROPERTY></HEADER>
<TIME_ORDER><TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="760"/><TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="1340"/>
<TIME_SLOT TIME_SLOT_ID="ts3"/><TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="2001"/></TIME_ORDER>
<TIER LINGUISTIC_TYPE_REF="default-lt" TIER_ID="gesture">
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">
<ANNOTATION_VALUE>wave &lt;left&gt;</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="ts2" TIME_SLOT_REF2="ts4">
<ANNOTATION_VALUE></ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a3" TIME_SLOT_REF1="ts3" TIME_SLOT_REF2="ts4">
<ANNOTATION_VALUE>x</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>
<TIER LINGUISTIC_TYPE_REF="notes" PARENT_REF="gesture" TIER_ID="notes">
<ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a4" ANNOTATION_REF="a1"><ANNOTATION_VALUE>note</ANNOTATION_VALUE>
</REF_ANNOTATION></ANNOTATION></TIER>
<LINGUISTIC_TYPE GRAPHIC_REFERENCES="false" LINGUISTIC_TYPE_ID="default-lt" TIME_ALIGNABLE="true"/>
</ANNOTATION_DOCUMENT>"""


def test_the_value_is_the_label_or_the_tier_where_it_is_empty(tmp_path: Path) -> None:
    file = text(tmp_path / "session.eaf", DOCUMENT)
    assert seconds(file) == [("my film.mp4", "wave <left>", 0.76, 1.34), ("my film.mp4", "gesture", 1.34, 2.001)]
    rows = list(read_rows(file))
    assert [(row.line, row.tier, row.skip) for row in rows] == [
        (12, "gesture", ""),
        (14, "gesture", ""),
        (16, "gesture", "no times of its own"),
        (19, "notes", "no times of its own"),
    ]
    assert rows[0].names == ("my film.mp4", "session")


def test_a_video_that_begins_later(tmp_path: Path) -> None:
    """TIME_ORIGIN: milliseconds of the video at which the time of the annotations begins."""
    moved = DOCUMENT.replace('MIME_TYPE="video/mp4"', 'MIME_TYPE="video/mp4" TIME_ORIGIN="5000"')
    assert [row[2:] for row in seconds(text(tmp_path / "x.eaf", moved))] == [(5.76, 6.34), (6.34, 7.001)]


def test_without_media_the_video_is_called_like_the_file(tmp_path: Path) -> None:
    alone = "\n".join(line for line in DOCUMENT.splitlines() if "MEDIA_DESCRIPTOR" not in line)
    assert seconds(text(tmp_path / "film.eaf", alone))[0][0] == "film"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [('FORMAT="3.0"', 'FORMAT="4.0"', "line 2: version '4.0'"), ("milliseconds", "PAL-frames", "times in PAL-frames")],
)
def test_other_versions_are_refused(tmp_path: Path, old: str, new: str, reason: str) -> None:
    with pytest.raises(FormatError, match=rf"x\.eaf.*{reason}"):
        list(read_rows(text(tmp_path / "x.eaf", DOCUMENT.replace(old, new))))
