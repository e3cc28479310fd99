"""SRT and WebVTT."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from spans.rows import seconds, text
from uniformerv2.spans.files import read_rows, write_spans
from uniformerv2.spans.formats.subtitles import one_line, plain_text
from uniformerv2.spans.span import Span

SRT = (
    "\ufeff1\r\n00:00:01,000 --> 00:00:02,500\r\n<i>wave</i> &\r\nsmile\r\n\r\n"
    "2\r\n01:00:00,040 --> 01:00:03,007\r\nsit\r\n"
)
VTT = """WEBVTT - made by hand

STYLE
::cue { color: red }

NOTE a comment with
00:01.000 --> 00:02.000
in it

first
00:01.000 --> 00:02.500 align:start position:10%
<v Anna>wave &amp; <b>smile</b>

01:00:00.040 --> 01:00:03.007
sit
"""


def test_srt(tmp_path: Path) -> None:
    file = text(tmp_path / "film.en.srt", SRT)
    assert seconds(file) == [("film.en", "wave & smile", 1.0, 2.5), ("film.en", "sit", 3600.04, 3603.007)]
    assert [(row.line, row.names) for row in read_rows(file)] == [(2, ("film.en", "film")), (7, ("film.en", "film"))]


def test_vtt(tmp_path: Path) -> None:
    file = text(tmp_path / "film.vtt", VTT)
    assert seconds(file) == [("film", "wave & smile", 1.0, 2.5), ("film", "sit", 3600.04, 3603.007)]
    assert [row.line for row in read_rows(file)] == [11, 14]


def test_the_content_tells_the_format(tmp_path: Path) -> None:
    assert seconds(text(tmp_path / "film.txt", SRT)) == seconds(text(tmp_path / "film.srt", SRT.replace("\ufeff", "")))


def test_a_cue_without_text_and_one_with_wrong_times(tmp_path: Path) -> None:
    rows = list(read_rows(text(tmp_path / "a.srt", "1\n00:00:01,0 --> 00:00:02,0\n\n2\n1:2,0 --> 99\nx\n")))
    assert [(row.label, bool(row.wrong)) for row in rows] == [("", False), ("x", True)]


def test_srt_shows_what_can_be_shown_plainly(tmp_path: Path) -> None:
    """Players show the text of SRT as it is, so only what would be read otherwise is escaped."""
    labels = ["R & B", "a<b", "x > y", "a\nb", "&amp;", "<i>"]
    write_spans({"film": [Span(1.0, 2.0, label) for label in labels]}, tmp_path / "film.srt")
    lines = (tmp_path / "film.srt").read_text().splitlines()
    assert lines[:4] == ["1", "00:00:01,000 --> 00:00:02,000", "R & B", ""]
    assert lines[2::4] == ["R & B", "a<b", "x > y", "a&#10;b", "&amp;amp;", "&lt;i&gt;"]
    write_spans({"film": [Span(0.0, 3661.0005, "R & B")]}, tmp_path / "film.vtt")
    assert (tmp_path / "film.vtt").read_text() == "WEBVTT\n\n00:00:00.000 --> 01:01:01.000\nR &amp; B\n"


@given(st.text(st.characters(exclude_categories=("Cs", "Cc"), include_characters="\n\r")).map(str.strip))
def test_any_label_is_one_line(label: str) -> None:
    assert plain_text(one_line(label)) == label
    assert not {"\n", "\r"} & {*one_line(label)}
