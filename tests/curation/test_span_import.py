"""Files of spans and a folder of videos, made into a manifest; what is left out, and how it is named."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import av
import pytest

from helpers import noise, write_video
from spans.rows import text
from uniformerv2.curation.import_job import ImportOptions, ImportResult
from uniformerv2.curation.importers import import_dataset
from uniformerv2.data.manifest import manifest_rows
from uniformerv2.errors import AnnotationError
from uniformerv2.spans.files import write_spans
from uniformerv2.spans.formats.table import FORMATS
from uniformerv2.spans.frames import FrameTimes
from uniformerv2.spans.span import Span

UNEVEN = [0, 40, 100, 500, 540, 900]  # milliseconds


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two films of 2 seconds, one at a rate that changes, one without a frame."""
    folder = tmp_path / "videos"
    write_video(folder / "a.mp4", noise(20))
    write_video(folder / "deep/b.mkv", noise(20))
    write_video(folder / "uneven.mkv", noise(6), times=UNEVEN)
    with av.open(str(folder / "empty.avi"), "w") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 48
        output.start_encoding()
    return folder


def run(videos: Path, *annotations: Path, **options: object) -> ImportResult:
    return import_dataset(
        "spans",
        annotations,
        videos,
        videos.parent / "out.csv",
        left_out=videos.parent / "left_out.csv",
        options=ImportOptions(**options),  # type: ignore[arg-type]
    )


def written(videos: Path) -> list[tuple[object, ...]]:
    rows = [row for _, row in manifest_rows(videos.parent / "out.csv", Path())]
    return [(row.path.as_posix(), row.label, row.start, row.end, row.split) for row in rows]


def left_out(videos: Path) -> list[tuple[str, str, str, str]]:
    """Cause, file, line and detail."""
    with (videos.parent / "left_out.csv").open(newline="") as file:
        return [(row["cause"], Path(row["file"]).name, row["line"], row["detail"]) for row in csv.DictReader(file)]


def test_spans_may_overlap_and_a_file_may_have_many_labels(videos: Path, tmp_path: Path) -> None:
    table = text(
        tmp_path / "x.csv", "path,label,start,end\na.mp4,wave,0,1.5\na.mp4,sit,0,1.5\nb,wave,1,2.0\na.mp4,wave,1,2\n"
    )
    result = run(videos, table)
    assert written(videos) == [
        ("videos/a.mp4", "wave", 0.0, 1.5, None),
        ("videos/a.mp4", "sit", 0.0, 1.5, None),
        ("videos/deep/b.mkv", "wave", 1.0, 2.0, None),
        ("videos/a.mp4", "wave", 1.0, 2.0, None),
    ]
    assert (result.written, result.rows) == (4, 4)


def test_everything_that_is_left_out_is_named_by_file_and_line(videos: Path, tmp_path: Path) -> None:
    table = (
        "path,label,start,end\n"
        "a.mp4,wave,0.5,1.5\n"
        "a.mp4,wave,0.5,1.5\n"
        "a.mp4,wave,1,1\n"
        "a.mp4,wave,1.5,0.5\n"
        "a.mp4,wave,2.0,2.2\n"
        "a.mp4,wave,1,2.6\n"
        "a.mp4,late,1,2.5\n"  # as `data check` has it: owners round times
        "gone.mp4,wave,0,1\n"
        "a.mp4, ,0,1\n"
        "empty.avi,wave,0,1\n"
        "a.mp4,wave,,\n"
    )
    result = run(videos, text(tmp_path / "x.csv", table))
    assert [row[1:4] for row in written(videos)] == [("wave", 0.5, 1.5), ("late", 1.0, 2.5)]
    assert [(cause, line) for cause, _, line, _ in left_out(videos)] == [
        ("repeats another row", "3"),
        ("no length", "4"),
        ("ends before it starts", "5"),
        ("past the end of the video", "6"),
        ("past the end of the video", "7"),
        ("no such file", "9"),
        ("no label", "10"),
        ("video cannot be read", "11"),
        ("no times", "12"),
    ]
    assert (
        result.example["past the end of the video"]
        == f"{tmp_path}/x.csv, line 6: 2 s to 2.2 s of a.mp4, which lasts 2 s"
    )
    assert result.example["ends before it starts"].endswith("x.csv, line 5: 1.5 s to 0.5 s of a.mp4")
    assert "empty.avi: frame 0 cannot be decoded" in result.example["video cannot be read"]


@pytest.mark.parametrize("row", ["a.mp4,wave,2,1", "a.mp4,wave,1,1", "a.mp4,wave,1,9", "empty.avi,wave,0,1"])
def test_strict_refuses_them_and_writes_nothing(videos: Path, tmp_path: Path, row: str) -> None:
    table = text(tmp_path / "x.csv", f"path,label,start,end\na.mp4,wave,0,1\n{row}\n")
    with pytest.raises(AnnotationError, match=r"x\.csv, line 3: .*without --strict such rows are counted"):
        run(videos, table, strict=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["videos", "x.csv"]


def test_times_that_are_none_end_it_unless_lenient(videos: Path, tmp_path: Path) -> None:
    table = text(tmp_path / "x.csv", "path,label,start,end\na.mp4,wave,0,1\na.mp4,wave,one,2\na.mp4,wave,-1,2\n")
    with pytest.raises(AnnotationError, match=r"x\.csv, line 3: found the times"):
        run(videos, table)
    assert run(videos, table, lenient=True).left_out == {"invalid": 2}


def exported(folder: Path, video: str, start: int, end: int) -> Path:
    """By Label Studio, which counts frames from 1."""
    region = f'{{"value": {{"ranges": [{{"start": {start}, "end": {end}}}], "timelinelabels": ["x"]}}}}'
    task = f'{{"data": {{"video": "/data/upload/1/3d3ad63e-{video}"}}, "annotations": [{{"result": [{region}]}}]}}'
    return text(folder / f"{video}.json", f"[{task}]")


def test_frames_are_timed_by_each_video(videos: Path, tmp_path: Path) -> None:
    """The same frames of films at other rates are at other times."""
    files = [exported(tmp_path, name, 2, 5) for name in ("a.mp4", "uneven.mkv")]
    run(videos, *files)
    assert written(videos) == [
        ("videos/a.mp4", "x", 0.1, 0.5, None),
        ("videos/uneven.mkv", "x", 0.04, 0.9, None),
    ]
    run(videos, *files, frame_rate=25.0)
    assert [row[2:4] for row in written(videos)] == [(0.04, 0.2), (0.04, 0.2)]


@pytest.mark.parametrize(("start", "end"), [(3, 7), (0, 2), (20, 30)])
def test_frames_that_the_video_lacks(videos: Path, tmp_path: Path, start: int, end: int) -> None:
    files = [exported(tmp_path, "uneven.mkv", start, end), exported(tmp_path, "a.mp4", 1, 2)]
    result = run(videos, *files)
    assert result.left_out == {"frames that the video lacks": 1}
    assert result.example["frames that the video lacks"].endswith(
        f"uneven.mkv.json, entry 1: frames {start - 1} to {end - 1} of uneven.mkv, which has 6 from 0; if the tool "
        "counted frames at a rate of its own, give --frame-rate"
    )


def test_a_folder_of_many_formats(videos: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    write_spans({"a.mp4": [Span(0.0, 0.5, "srt")]}, text(labels / "deep/a.en.srt", ""))
    write_spans({"a.mp4": [Span(0.0, 1.0, "vtt")]}, text(labels / "a.vtt", ""))
    exported(labels, "uneven.mkv", 1, 6)
    text(labels / "notes.txt", "remember the milk")
    text(labels / "old.xml", "<annotations><version>1.0</version></annotations>")
    text(labels / "film.bin", "\0")
    text(labels / ".hidden/x.csv", "broken")
    result = run(videos, labels)
    assert {row[:2] for row in written(videos)} == {
        ("videos/a.mp4", "srt"),
        ("videos/a.mp4", "vtt"),
        ("videos/uneven.mkv", "x"),
    }
    assert result.left_out == {"file of no known format": 1, "file of another version": 1}
    assert left_out(videos) == [
        (
            "file of no known format",
            "notes.txt",
            "0",
            "no spans in a known format; expected one of " + ", ".join(FORMATS),
        ),
        ("file of another version", "old.xml", "0", "line 1: version '1.0' of CVAT's XML; expected 1.1"),
    ]
    with pytest.raises(AnnotationError, match=r"old\.xml: file of another version: line 1: version '1\.0'"):
        run(videos, labels, strict=True)
    with pytest.raises(
        AnnotationError, match=r"no row is left to write: 1 file of another version \(.*old\.xml: line 1"
    ):
        run(videos, labels / "old.xml")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"database": {', r"bad\.json, line 1: cannot be read as JSON"),
        ("<annotations>", r"bad\.json, line 1: cannot be read as XML"),
        ('<!DOCTYPE a [<!ENTITY x "y">]><a/>', r"bad\.json, line 1: XML with a document type"),
        ("path,label,start,end\n\0\xff", "expected"),
    ],
)
def test_damaged_files_end_it(videos: Path, tmp_path: Path, content: str, reason: str) -> None:
    good = text(tmp_path / "a.csv", "path,label,start,end\na.mp4,wave,0,1\n")
    bad = text(tmp_path / "bad.json", content)
    if reason == "expected":
        bad.write_bytes(content.encode("latin-1"))
        reason = r"bad\.json, line 2: byte 0xff at position 2 is not UTF-8"
    with pytest.raises(AnnotationError, match=reason):
        run(videos, good, bad)
    assert not (tmp_path / "out.csv").exists()


def test_a_format_that_is_named(videos: Path, tmp_path: Path) -> None:
    file = text(tmp_path / "a.srt", "1\n00:00:00,000 --> 00:00:01,000\nwave\n")
    assert run(videos, file, span_format="srt").written == 1
    with pytest.raises(AnnotationError, match="this is no file of the format vtt"):
        run(videos, file, span_format="vtt")


def test_splits_and_tiers(videos: Path, tmp_path: Path) -> None:
    truth = (
        '{"database": {"a": {"subset": "training", "annotations": [{"label": "x", "segment": [0, 1]}]}, '
        '"b": {"subset": "validation", "annotations": [{"label": "y", "segment": [0, 1]}]}}}'
    )
    file = text(tmp_path / "activity_net.json", truth)
    run(videos, file)
    assert [row[0::4] for row in written(videos)] == [("videos/a.mp4", "train"), ("videos/deep/b.mkv", "val")]
    assert run(videos, file, split="val").left_out == {"of another split": 1}
    run(videos, exported(tmp_path, "a.mp4", 1, 2), split="test")  # which does not say any
    assert [row[4] for row in written(videos)] == ["test"]
    with pytest.raises(AnnotationError, match=r"1 of another tier"):
        run(videos, tmp_path / "a.mp4.json", tier="mood")


def test_ambiguous_actions_of_thumos_are_counted(videos: Path, tmp_path: Path) -> None:
    text(tmp_path / "labels/Ambiguous_val.txt", "a 0.5 1.0\n")
    text(tmp_path / "labels/Diving_val.txt", "a 0.1 0.4\n")
    result = run(videos, tmp_path / "labels")
    assert result.left_out == {"ambiguous in THUMOS": 1}
    assert [row[1] for row in written(videos)] == ["Diving"]


def test_nothing_to_read(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"no files of spans among nothing; expected files such as \.csv, "):
        run(videos)
    with pytest.raises(AnnotationError, match=r"gone\.csv: cannot be read"):
        run(videos, tmp_path / "gone.csv")


def test_films_of_rooms(shared: Path, tmp_path: Path) -> None:
    """Real films with an annotation in ActivityNet's form, which states its own frames too."""
    room = shared / "data" / "room_actions"
    result = import_dataset("spans", [room / "annotations.json"], room / "untrimmed", tmp_path / "out.csv")
    assert (result.written, result.left_out) == (288, {})
    database = json.loads((room / "annotations.json").read_text())["database"]
    stated = [(video, *span["segment"]) for video, entry in database.items() for span in entry["annotations"]]
    rows = [row for _, row in manifest_rows(tmp_path / "out.csv", Path())]
    assert [(row.path.stem, row.start, row.end) for row in rows] == stated
    frames = FrameTimes.of(rows[0].path)
    for span in database[rows[0].path.stem]["annotations"]:
        first, past = span["frames"]
        assert frames.span(*span["segment"]) == (first, past)
