"""CMX 3600."""

from __future__ import annotations

from pathlib import Path

import pytest

from spans.rows import UNEVEN, seconds, text
from uniformerv2.spans.files import read_rows, write_spans
from uniformerv2.spans.formats.label_file import FormatError
from uniformerv2.spans.frames import FrameTimes
from uniformerv2.spans.span import Span

FILM = FrameTimes([number / 25 for number in range(2000 * 25)], 2000.0, 25.0, 64, 48)
NTSC = FrameTimes([number * 1001 / 30000 for number in range(3600)], 3600 * 1001 / 30000, 30000 / 1001, 64, 48)

EDITED = (
    "TITLE: Timeline 1\r\nFCM: NON-DROP FRAME\r\n* FRAME RATE: 2\r\n\r\n"
    "001  AX       V     D    024 00:00:00:01 00:00:01:01 01:00:00:00 01:00:01:00 \r\n"
    "* FROM CLIP NAME: film.mp4\r\n* COMMENT: wave\r\n\r\n"
    "002  AX       AA/V  C        00:00:02:00 00:00:03:00 01:00:01:00 01:00:02:00\r\n"
)


def test_events_of_a_film(tmp_path: Path) -> None:
    spans = {"film.mp4": [Span(1.0, 2.48, "wave"), Span(1500.0, 1501.0, "a\nb")]}
    write_spans(spans, tmp_path / "x.edl", frames=lambda _: FILM)
    assert (tmp_path / "x.edl").read_text().splitlines() == [
        "TITLE: spans",
        "FCM: NON-DROP FRAME",
        "",
        "* FRAME RATE: 25",
        "001  AX       V     C        00:00:01:00 00:00:02:12 00:00:00:00 00:00:01:12",
        "* FROM CLIP NAME: film.mp4",
        "* COMMENT: wave",
        "002  AX       V     C        00:25:00:00 00:25:01:00 00:00:01:12 00:00:02:12",
        "* FROM CLIP NAME: film.mp4",
        "* COMMENT: a&#10;b",
    ]


def test_timecode_counts_frames(tmp_path: Path) -> None:
    """At 29.97 frames/s, non-drop timecode 00:01:00:00 is frame 1800, which is shown after 60.06 seconds."""
    write_spans({"a": [Span(60.06, 61.061, "x")]}, tmp_path / "x.edl", frames=lambda _: NTSC)
    assert "00:01:00:00 00:01:01:00" in (tmp_path / "x.edl").read_text()
    assert "* FRAME RATE: 29.97003\n" in (tmp_path / "x.edl").read_text()
    (row,) = read_rows(tmp_path / "x.edl")
    assert (row.start, row.end) == pytest.approx((60.06, 61.061), abs=1e-6)


def test_events_of_an_editor(tmp_path: Path) -> None:
    file = text(tmp_path / "cut.edl", EDITED)
    assert seconds(file) == [("film.mp4", "wave", 0.5, 1.5), ("cut", "", 2.0, 3.0)]
    with pytest.raises(FormatError, match=r"x\.edl, line 4: timecodes without their rate"):
        list(read_rows(text(tmp_path / "x.edl", EDITED.replace("* FRAME RATE: 2\r\n", ""))))


def test_a_changing_rate_becomes_the_average_one(tmp_path: Path) -> None:
    """As editors show such films: six frames a second here, of which some last longer."""
    write_spans({"a": [Span(0.5, 0.9, "x")]}, tmp_path / "x.edl", frames=lambda _: UNEVEN)
    assert "00:00:00:03 00:00:00:05" in (tmp_path / "x.edl").read_text()
    assert seconds(tmp_path / "x.edl") == [("a", "x", 0.5, 5 / 6)]
