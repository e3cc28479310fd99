"""CVAT for video 1.1."""

from __future__ import annotations

from pathlib import Path

import pytest

from spans.rows import UNEVEN, seconds, text
from uniformerv2.errors import AnnotationError
from uniformerv2.spans.files import read_rows, write_spans
from uniformerv2.spans.formats.label_file import FormatError
from uniformerv2.spans.span import Span


def box(frame: int, outside: int = 0, keyframe: int = 1) -> str:
    return (
        f'<box frame="{frame}" keyframe="{keyframe}" outside="{outside}" occluded="0" xtl="1.0" ytl="2.0" xbr="9.0" '
        'ybr="8.0" z_order="0"><attribute name="who">anna</attribute></box>'
    )


def document(tracks: str, version: str = "1.1", meta: str = "") -> str:
    meta = meta or (
        "<task><id>7</id><name>morning</name><size>6</size><mode>interpolation</mode><overlap>0</overlap>"
        "<start_frame>0</start_frame><stop_frame>5</stop_frame><frame_filter></frame_filter>"
        "<labels><label><name>wave</name><color>#ff0000</color><type>any</type><attributes></attributes></label></labels>"
        "<original_size><width>64</width><height>48</height></original_size><source>film.mp4</source></task>"
        "<dumped>2024-05-01 10:00:00.000000+00:00</dumped>"
    )
    head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n'
    return f"{head}<version>{version}</version>\n<meta>{meta}</meta>\n{tracks}\n</annotations>\n"


def track(*shapes: str, label: str = "wave", **attributes: str) -> str:
    given = "".join(f' {name}="{value}"' for name, value in attributes.items())
    return f'<track id="0" label="{label}" source="manual"{given}>\n' + "\n".join(shapes) + "\n</track>"


def test_frames_are_timed_by_the_video(tmp_path: Path) -> None:
    """A track is dumped frame by frame, and then once outside; one that lasts to the end has no such shape."""
    tracks = track(box(1), box(2, keyframe=0), box(3, outside=1)) + track(
        box(4), box(5, keyframe=0), label="sit &amp; x"
    )
    file = text(tmp_path / "annotations.xml", document(tracks))
    assert seconds(file) == [("film.mp4", "wave", 0.04, 0.5), ("film.mp4", "sit & x", 0.54, 1.0)]
    assert [row.line for row in read_rows(file)] == [6, 10]


def test_a_track_that_comes_back_is_two_spans(tmp_path: Path) -> None:
    shapes = [box(0), box(1, outside=1), box(3), box(4, outside=1)]
    assert [row[2:] for row in seconds(text(tmp_path / "a.xml", document(track(*shapes))))] == [
        (0.0, 0.04),
        (0.5, 0.54),
    ]
    reverse = document(track(*reversed(shapes)))  # whatever their order
    assert [row[2:] for row in seconds(text(tmp_path / "b.xml", reverse))] == [(0.0, 0.04), (0.5, 0.54)]


def test_tracks_of_a_project_know_their_video(tmp_path: Path) -> None:
    tasks = "".join(
        f"<task><id>{number}</id><name>t{number}</name><source>{name}</source></task>"
        for number, name in ((3, "a.mp4"), (4, "b.mp4"))
    )
    meta = f"<project><id>1</id><name>p</name><tasks>{tasks}</tasks></project>"
    tracks = track(box(0), task_id="3") + track(box(1), task_id="4")
    assert [row[0] for row in seconds(text(tmp_path / "p.xml", document(tracks, meta=meta)))] == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (document("", version="1.0"), "version '1.0' of CVAT's XML; expected 1.1"),
        (
            document('<image id="0" name="frame_000000"><tag label="wave"/></image>'),
            "export the task as 'CVAT for video",
        ),
    ],
)
def test_other_versions_are_refused_by_file_and_line(tmp_path: Path, content: str, reason: str) -> None:
    with pytest.raises(FormatError, match=rf"x\.xml, line \d+: .*{reason}"):
        list(read_rows(text(tmp_path / "x.xml", content)))


def test_a_track_that_is_wrong(tmp_path: Path) -> None:
    content = document(track() + track('<box frame="-1" outside="0"/>') + track(box(1, outside=1)))
    rows = read_rows(text(tmp_path / "x.xml", content))
    assert [(row.skip, row.wrong) for row in rows] == [
        ("track without shapes", ""),
        ("", "found a shape whose frame is no number"),
    ]


def test_written_tracks_end_where_the_video_ends(tmp_path: Path) -> None:
    spans = {"film.mp4": [Span(0.04, 0.5, "a"), Span(0.54, 1.0, "b"), Span(0.9, 1.0, "c")]}
    write_spans(spans, tmp_path / "out.xml", frames=lambda _: UNEVEN)
    written = (tmp_path / "out.xml").read_text()
    assert [line.split('"')[1:6:4] for line in written.splitlines() if line.startswith("<box")] == [
        ["1", "0"],
        ["3", "1"],
        ["4", "0"],
        ["5", "0"],  # a shape at frame 6 would be refused
        ["5", "0"],
    ]
    assert "<size>6</size>" in written
    assert 'xbr="64.00" ybr="48.00"' in written


def test_what_xml_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="XML cannot hold the character"):
        write_spans({"film.mp4": [Span(0.0, 1.0, "a\x01b")]}, tmp_path / "out.xml", frames=lambda _: UNEVEN)
    assert not list(tmp_path.iterdir())
