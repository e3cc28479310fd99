"""What is written is read back equal, to the resolution of the format."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import noise, write_video
from spans.rows import UNEVEN, text
from uniformerv2.cli.datasets import SpanFormat, WrittenFormat
from uniformerv2.errors import AnnotationError
from uniformerv2.spans.files import read_spans, write_spans
from uniformerv2.spans.formats.table import FORMATS, WRITTEN
from uniformerv2.spans.span import Span
from uniformerv2.text import normalised

EXACT, TO_FRAMES = ("activitynet", "activitynet_truth", "csv"), ("label_studio", "cvat")
SCORED = ("activitynet", "csv", "label_studio")

labels = (
    (
        st.text(st.characters(exclude_categories=("Cs", "Cc"), include_characters="\n\r"))
        | st.sampled_from(
            ['sit, "down"', "a;b\nc", "été 走る 🏃", "R&B <i>x</i>", "1", "NOTE", "00:01.0 --> 00:02.0", "' | \\"]
        )
    )
    .map(normalised)
    .filter(bool)
)
times = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)
spans = st.builds(lambda ends, label, score: Span(*ends, label, score), times, labels, st.floats(0, 1))
many = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("format", WRITTEN)
@given(found=st.lists(spans, min_size=1, max_size=5))
@many
def test_what_is_written_is_read_back(format: str, found: list[Span], tmp_path: Path) -> None:
    """Spans overlap, and are of any label. Times are off by half a frame, or half a millisecond, at most."""
    (file,) = write_spans({"film": found}, tmp_path / f"film{WRITTEN[format].suffix}", format, frames=lambda _: UNEVEN)
    read = read_spans(file, frames=lambda _: UNEVEN)  # the format is found by the content
    assert len(read) == 1
    (of_video,) = read.values()  # ActivityNet's own videos begin with v_
    assert [span.label for span in of_video] == [span.label for span in found]
    if format in SCORED:
        assert [span.score for span in of_video] == [span.score for span in found]
    for back, span in zip(of_video, found, strict=True):
        if format in EXACT:
            assert (back.start, back.end) == (span.start, span.end)
        elif format in TO_FRAMES:
            first, past = UNEVEN.span(span.start, span.end)
            assert (back.start, back.end) == (UNEVEN.seconds(first), UNEVEN.seconds(past))
        elif format == "edl":
            frames = 0.5 if span.end - span.start > 1 / UNEVEN.rate else 1.5  # an event has one at least
            off = frames / UNEVEN.rate + 1e-9
            assert (back.start, back.end) == pytest.approx((span.start, span.end), abs=off)
        else:
            assert (back.start, back.end) == pytest.approx((span.start, span.end), abs=0.0005 + 1e-9)


@pytest.mark.parametrize("format", TO_FRAMES)
@given(st.data())
@many
def test_what_ends_at_frames_is_read_back_exactly(format: str, tmp_path: Path, data: st.DataObject) -> None:
    """At a frame rate that changes."""
    frames = st.lists(st.integers(0, 6), min_size=2, max_size=2, unique=True).map(sorted)
    found = [
        Span(UNEVEN.seconds(first), UNEVEN.seconds(past), "x")
        for first, past in data.draw(st.lists(frames, min_size=1))
    ]
    (file,) = write_spans({"film": found}, tmp_path / f"film{WRITTEN[format].suffix}", format, frames=lambda _: UNEVEN)
    assert read_spans(file, frames=lambda _: UNEVEN) == {"film": found}


@pytest.mark.parametrize("format", [name for name, of in WRITTEN.items() if not of.one_video])
def test_several_videos_in_a_file(format: str, tmp_path: Path) -> None:
    several = {"v_a": [Span(0.0, 0.5, "x")], "v_b": [Span(0.5, 1.0, "y"), Span(0.0, 1.0, "x")]}
    (file,) = write_spans(several, tmp_path / f"all{WRITTEN[format].suffix}", format, frames=lambda _: UNEVEN)
    read = read_spans(file, frames=lambda _: UNEVEN)
    assert [*read.values()] == [*several.values()]
    assert [name.removeprefix("v_") for name in read] == ["a", "b"]


@pytest.mark.parametrize("format", [name for name, of in WRITTEN.items() if of.one_video])
def test_several_videos_need_a_folder_for_some_formats(format: str, tmp_path: Path) -> None:
    several = {"films/a.mp4": [Span(0.0, 0.5, "x")], "films/b.mp4": [Span(0.5, 1.0, "y")]}
    suffix = WRITTEN[format].suffix
    with pytest.raises(AnnotationError, match="holds the spans of one video, and these are of 2; give a new folder"):
        write_spans(several, tmp_path / f"all{suffix}", frames=lambda _: UNEVEN)
    assert not list(tmp_path.iterdir())
    files = write_spans(several, tmp_path / "out", format, frames=lambda _: UNEVEN)
    assert files == [tmp_path / "out" / f"a{suffix}", tmp_path / "out" / f"b{suffix}"]
    assert [next(iter(read_spans(file, frames=lambda _: UNEVEN).values())) for file in files] == [*several.values()]
    with pytest.raises(AnnotationError, match=r"films/a\.mkv and films/a\.mp4 would both be written"):
        write_spans({"films/a.mp4": [], "films/a.mkv": []}, tmp_path / "new", format, frames=lambda _: UNEVEN)


def test_frames_are_those_of_the_video_at_the_path(tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.mkv", noise(6), times=[0, 40, 100, 500, 540, 900])
    write_spans({str(film): [Span(0.1, 0.54, "x")]}, tmp_path / "x.json", "label_studio")
    (((name, (span,)),)) = read_spans(tmp_path / "x.json", frames=lambda _: UNEVEN).items()
    assert name == film.name
    assert (span.start, span.end) == (0.1, 0.54)


@pytest.mark.parametrize(
    ("span", "path", "reason"),
    [
        (Span(0.0, 1.0, "x"), "out.txt", r"no spans are written in the suffix '\.txt'; it must be one of activitynet"),
        (Span(0.0, 1.0, " "), "out.srt", "needs a label"),
        (Span(2.0, 1.0, "x"), "out.srt", "0 <= start <= end"),
        (Span(-1.0, 1.0, "x"), "out.csv", "0 <= start <= end"),
        (Span(0.0, math.inf, "x"), "out.json", "0 <= start <= end"),
        (Span(0.0, math.nan, "x"), "out.json", "0 <= start <= end"),
        (Span(0.0, 1.0, "\udcff"), "out.srt", "cannot be written in UTF-8"),
        (Span(0.0, 1.0, "x"), "none/out.srt", "no folder"),
    ],
)
def test_what_cannot_be_written_leaves_the_former_file(span: Span, path: str, reason: str, tmp_path: Path) -> None:
    if "/" not in path:
        text(tmp_path / path, "former")
    with pytest.raises(AnnotationError, match=reason):
        write_spans({"film": [span]}, tmp_path / path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["former"] * ("/" not in path)


def test_what_is_read_is_not_judged_but_must_be_numbers(tmp_path: Path) -> None:
    file = text(tmp_path / "a.csv", "path,label,start,end\na,x,3,1\na,x,1,1\na,x,1,1\n")
    assert read_spans(file) == {"a": [Span(3.0, 1.0, "x"), Span(1.0, 1.0, "x"), Span(1.0, 1.0, "x")]}
    with pytest.raises(AnnotationError, match=r"a\.csv, line 2: found the times"):
        read_spans(text(tmp_path / "a.csv", "path,label,start,end\na,x,3,y\n"))
    write_spans({"a": [Span(0.0, 1.0, "x")]}, tmp_path / "x.json", "label_studio", frames=lambda _: UNEVEN)
    late = (tmp_path / "x.json").read_text().replace('"end": 6', '"end": 7')
    with pytest.raises(AnnotationError, match="entry 1: a has no frame 7"):
        read_spans(text(tmp_path / "x.json", late), frames=lambda _: UNEVEN)


def test_the_command_line_knows_the_same_formats() -> None:
    assert {*get_args(SpanFormat)} == {*FORMATS}
    assert {*get_args(WrittenFormat)} == {*WRITTEN}
