"""Packing a manifest: its rows afterwards, work that was stopped, and what goes wrong."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from curation.checking import draw, draw_half, scene, write
from helpers import (
    Run,
    assert_refused,
    before_call,
    files_below,
    kill_this_process,
    killed_again_and_again,
    write_video,
)
from media import pictures
from uniformerv2.curation import packing
from uniformerv2.curation.pack import PackReport, pack
from uniformerv2.data.annotations import Annotation
from uniformerv2.data.journal import Journal
from uniformerv2.data.shards import video_source
from uniformerv2.data.sources import read_annotations
from uniformerv2.errors import AnnotationError, RecipeError
from uniformerv2.video.reader import VideoReader


@pytest.fixture
def mixed(videos: Path) -> Path:
    """A manifest of good videos, a damaged one, one that is none, and one of which several rows name intervals."""
    (videos / "text.mp4").write_text("no video")
    rows: list[Sequence[object]] = [
        ("0.mp4", "a", "", "", "train", "x"),
        ("whole.avi", "b", 0.5, 2, "val", "y, z"),
        ("text.mp4", "a", "", "", "train", ""),
        (draw_half(videos), "b", "", "", "train", ""),
        ("whole.avi", "a", 2.25, "", "train", "w"),
        ("1.mp4", "a", "", "", "test", ""),
        ("2.mp4", "b", "", 1, "", ""),
    ]
    return write(videos / "all.csv", "path,label,start,end,split,note", *rows)


def table(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def packed(data: Any, output: Path, **options: Any) -> PackReport:
    return pack(data, output, **{"workers": 0, **options})


def refuse(*_: object) -> None:
    raise AssertionError("a video was encoded again")


def visible(folder: Path) -> dict[str, bytes]:
    """All files but the journal, whose order is that of the work, by their paths in the folder."""
    found = {Path(name).relative_to(folder).as_posix(): content for name, content in files_below(folder).items()}
    return {name: content for name, content in found.items() if name != packing.JOURNAL}


# --- rows


@pytest.mark.parametrize("shards", [False, True])
def test_rows_hold(shards: bool, mixed: Path, tmp_path: Path) -> None:
    report = packed(mixed, tmp_path / "packed", shards=shards, per_shard=2)
    before, after = table(mixed), table(report.manifest)
    del before[2]
    keys = [name for name in before[0] if name not in ("path", "start", "end")]
    assert [[row[key] for key in keys] for row in after] == [[row[key] for key in keys] for row in before]
    assert list(after[0]) == list(before[0])
    rows = read_annotations(report.manifest)
    originals = [row for row in read_annotations(mixed) if row.path.name != "text.mp4"]
    assert [(row.interval, row.split, row.label) for row in rows] == [
        (row.interval, row.split, row.label) for row in originals
    ]
    for original, row in zip(originals, rows, strict=True):
        with VideoReader(original.path) as one, VideoReader(video_source(row.path)) as other:
            assert other.frames_between(*row.interval) == one.frames_between(*original.interval)
    assert rows[1].path == rows[3].path
    assert (report.rows, report.rows_left_out, report.videos) == (7, 1, 5)
    assert report.unreadable[0].path == str(mixed.parent / "text.mp4")
    assert report.unreadable[0].row == 2
    assert [Path(video.path).name for video in report.damaged] == ["half.avi"]
    assert json.loads((tmp_path / "packed" / "report.json").read_text())["bytes_after"] == report.bytes_after
    if shards:
        expected = sorted((row.label, *map(str, row.interval), str(row.split)) for row in rows)
        read = read_annotations(tmp_path / "packed")
        assert sorted((row.label, *map(str, row.interval), str(row.split)) for row in read) == expected
        assert {row.path for row in read} == {row.path for row in rows}
    else:
        sizes = {row.path: row.path.stat().st_size for row in rows}
        assert sum(sizes.values()) == report.bytes_after
    assert not (tmp_path / "packed" / packing.UNFINISHED).exists()


def test_names(videos: Path, tmp_path: Path) -> None:
    names = [
        "a.mp4",
        "a.avi",
        "A.mkv",
        "a b/ü ✓ 日本.mp4",
        "x.y.z.mp4",
        "e\u0301.mp4",
        "é.mkv",
        "a.mp4~2.avi",
        "-r.mp4",
    ]
    for number, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos / f"{number % 6}.mp4", tmp_path / "in" / name)
    images = tmp_path / "in" / "a"  # a folder of frames, beside a.mp4
    for number, image in enumerate(pictures(3)):
        write_video(images / f"{number}.png", [image], codec="png", pixels="rgb24", container="image2")
    manifest = write(tmp_path / "in" / "all.csv", "path,label", *((name, "c") for name in [*names, "a"]))
    for options in ({}, {"shards": True, "per_shard": 3}):
        output = tmp_path / f"packed {len(options)}"
        packed(manifest, output, **options)
        rows = read_annotations(output / "manifest.csv")
        assert len({str(row.path).casefold() for row in rows}) == len(names) + 1
        for number, row in enumerate(rows[:-1]):  # each is the video that it was
            with VideoReader(videos / f"{number % 6}.mp4") as one, VideoReader(video_source(row.path)) as other:
                assert (one.frames_at([3]).float() - other.frames_at([3]).float()).abs().mean() < 8
    assert [row["path"] for row in table(tmp_path / "packed 0" / "manifest.csv")][:4] == [
        "a.mp4",
        "a~2.mp4",
        "A~3.mp4",
        "a b/ü ✓ 日本.mp4",
    ]


def test_links_to_one_file_are_one_video(videos: Path, tmp_path: Path) -> None:
    (videos / "link.mp4").symlink_to(videos / "0.mp4")
    manifest = write(videos / "all.csv", "path,label", ("0.mp4", "a"), ("link.mp4", "a"), ("copy.mp4", "a"))
    assert packed(manifest, tmp_path / "packed").videos == 2
    assert [row["path"] for row in table(tmp_path / "packed" / "manifest.csv")] == ["0.mp4", "0.mp4", "copy.mp4"]


def test_sources_of_every_kind(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "classes"
    for number, name in enumerate(("jump", "run")):
        (folder / name).mkdir(parents=True)
        shutil.copy(videos / f"{number}.mp4", folder / name)
    packed(folder, tmp_path / "one")
    assert (tmp_path / "one" / "manifest.csv").read_text() == "path,label\njump/0.mp4,jump\nrun/1.mp4,run\n"
    assert [row.label for row in read_annotations(tmp_path / "one")] == ["jump", "run"]
    packed(folder, tmp_path / "two", shards=True)
    packed(tmp_path / "two", tmp_path / "three")
    assert [row.label for row in read_annotations(tmp_path / "three" / "manifest.csv")] == ["jump", "run"]
    (folder / "list.txt").write_text("run/1.mp4 1\njump/0.mp4 0\n")
    packed(folder / "list.txt", tmp_path / "four", classes=["jump", "run"])
    assert (tmp_path / "four" / "manifest.csv").read_text() == "path,label\nrun/1.mp4,run\njump/0.mp4,jump\n"
    rows = [Annotation(folder / "run" / "1.mp4", "r", 0.5, 1.0, "train", "g")]
    packed(rows, tmp_path / "five")
    assert (tmp_path / "five" / "manifest.csv").read_text() == (
        "path,label,start,end,split,group\n1.mp4,r,0.5,1.0,train,g\n"
    )


def test_values_that_are_written_otherwise(videos: Path, tmp_path: Path) -> None:
    """With commas in numbers, as a clock, with numbers of classes: understood once, written plainly."""
    (videos / "all.csv").write_text("video;class;begin;end;subset;more\n0.mp4;1;0,5;0:01;Validation;a;\n"[:-2] + "\n")
    packed(videos / "all.csv", tmp_path / "packed", classes=["a", "b"])
    assert (tmp_path / "packed" / "manifest.csv").read_text() == (
        "video,class,begin,end,subset,more\n0.mp4,b,0.5,1.0,val,a\n"
    )
    assert read_annotations(tmp_path / "packed" / "manifest.csv")[0].interval == (0.5, 1.0)


# --- stopped and continued


@pytest.fixture(params=[False, True], ids=["files", "shards"])
def begun(request: pytest.FixtureRequest, mixed: Path, tmp_path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Options, and what packing with them writes."""
    options = {"shards": request.param, "per_shard": 2}
    packed(mixed, tmp_path / "clean", **options)
    return options, visible(tmp_path / "clean")


def test_the_number_of_workers_makes_no_difference(
    begun: tuple[dict[str, Any], dict[str, bytes]], mixed: Path, tmp_path: Path
) -> None:
    packed(mixed, tmp_path / "packed", workers=2, **begun[0])
    assert visible(tmp_path / "packed") == begun[1]


def test_what_is_done_is_not_done_again(
    begun: tuple[dict[str, Any], dict[str, bytes]], mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "encode_video", refuse)
    packed(mixed, tmp_path / "clean", **begun[0])
    assert visible(tmp_path / "clean") == begun[1]
    shutil.move(tmp_path / "clean", tmp_path / "moved")  # the folder and the data may move
    shutil.copytree(mixed.parent, tmp_path / "elsewhere")
    packed(mixed, tmp_path / "moved", root=tmp_path / "elsewhere", **begun[0])
    assert visible(tmp_path / "moved").keys() == begun[1].keys()


def test_a_changed_video_is_packed_again(
    begun: tuple[dict[str, Any], dict[str, bytes]], mixed: Path, tmp_path: Path
) -> None:
    shutil.copy(mixed.parent / "5.mp4", mixed.parent / "text.mp4")
    shutil.copy(mixed.parent / "4.mp4", mixed.parent / "1.mp4")
    (mixed.parent / "2.mp4").write_text("no video any more")
    report = packed(mixed, tmp_path / "clean", **begun[0])
    assert [Path(video.path).name for video in report.unreadable] == ["2.mp4"]
    packed(mixed, tmp_path / "anew", **begun[0])
    assert visible(tmp_path / "clean") == visible(tmp_path / "anew")


@pytest.mark.parametrize("flags", [(), ("--shards",)])
def test_packing_that_is_killed_again_and_again_ends_the_same(
    flags: tuple[str, ...], mixed: Path, tmp_path: Path, run_command: Callable[..., list[int]]
) -> None:
    packed(mixed, tmp_path / "clean", shards=bool(flags), per_shard=2)
    expected, output, states = visible(tmp_path / "clean"), tmp_path / "packed", set()
    run = partial(run_command, "data", "pack", mixed, "-o", output, "--per-shard", 2, "--workers", 0, *flags)
    for _ in killed_again_and_again(run, Journal, "add"):
        states.add(frozenset(visible(output)))
        for name in ("manifest.csv", "report.json", "shard-000000.tar", "1.mp4"):
            assert not (output / name).exists() or (output / name).read_bytes() == expected[name]
    assert len(states) > 2, "no kill came while it was at work"
    assert visible(output) == expected


@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [
        *((os, "replace", number) for number in (1, 2, 6, 8)),
        *((Journal, "add", number) for number in (1, 2, 5)),
        (Path, "unlink", 3),
        (shutil, "rmtree", 1),
    ],
)
def test_a_kill_before_each_step(
    owner: Any,
    name: str,
    number: int,
    begun: tuple[dict[str, Any], dict[str, bytes]],
    mixed: Path,
    tmp_path: Path,
    run_command: Callable[..., list[int]],
) -> None:
    flags = ["--shards"] if begun[0]["shards"] else []
    before = partial(before_call, pytest.MonkeyPatch(), owner, name, number, kill_this_process)
    ended = run_command(
        *("data", "pack", mixed, "-o", tmp_path / "packed", "--per-shard", 2, "--workers", 0, *flags), prepare=before
    )
    assert ended[0] in (-signal.SIGKILL, 0)
    packed(mixed, tmp_path / "packed", **begun[0])
    assert visible(tmp_path / "packed") == begun[1]


def dying(name: str, note: Path, times: int) -> Callable[..., None]:
    """Encodes videos, but a process that is given one of this name ends, so many times."""
    plain = packing.encode_video

    def encode(reader: VideoReader, *rest: Any) -> None:
        if Path(reader.name).name == name and (not note.exists() or len(note.read_text()) < times):
            with note.open("a") as file:
                file.write("x")
            os._exit(7)
        plain(reader, *rest)

    return encode


def test_a_worker_that_dies_is_replaced(
    begun: tuple[dict[str, Any], dict[str, bytes]], mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "encode_video", dying("1.mp4", tmp_path / "note", 1))
    packed(mixed, tmp_path / "packed", workers=2, **begun[0])
    assert (tmp_path / "note").read_text() == "x"
    assert visible(tmp_path / "packed") == begun[1]


def test_a_video_that_ends_its_process_is_named(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "encode_video", dying("1.mp4", tmp_path / "note", 2))
    report = packed(mixed, tmp_path / "packed", workers=2)
    assert [Path(video.path).name for video in report.unreadable] == ["text.mp4", "1.mp4"]
    assert "exit status 7" in report.unreadable[1].reason
    assert "1.mp4" not in {row["path"] for row in table(report.manifest)}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_is_one_line_and_loses_nothing(
    workers: int,
    begun: tuple[dict[str, Any], dict[str, bytes]],
    mixed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uniformerv2: Run,
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("a device without room is needed")
    plain = packing.encode_video

    def encode(reader: VideoReader, target: Path, *rest: Any) -> None:
        full = Path(reader.name).name == "1.mp4"
        plain(reader, Path("/dev/full") if full else target, *rest)

    flags = ["--shards"] if begun[0]["shards"] else []
    command = ("data", "pack", mixed, "-o", tmp_path / "packed", "--per-shard", 2, "--workers", workers, *flags)
    with monkeypatch.context() as patched:
        patched.setattr(packing, "encode_video", encode)
        assert_refused(uniformerv2(*command), tmp_path / "packed", "No space left on device", "same command again")
    names = [json.loads(line).get("video") for line in (tmp_path / "packed" / packing.JOURNAL).read_text().splitlines()]
    assert "0.mp4" in names
    assert "1.mp4" not in names
    assert not (tmp_path / "packed" / "manifest.csv").exists()
    assert uniformerv2(*command)[0] == 0
    assert visible(tmp_path / "packed") == begun[1]


@pytest.mark.parametrize("number", [1, 3, 6])
def test_a_journal_on_a_full_disk(
    number: int,
    begun: tuple[dict[str, Any], dict[str, bytes]],
    mixed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        before_call(patched, Journal, "add", number, full)
        with pytest.raises(AnnotationError, match="No space left"):
            packed(mixed, tmp_path / "packed", **begun[0])
    packed(mixed, tmp_path / "packed", **begun[0])
    assert visible(tmp_path / "packed") == begun[1]


def test_a_journal_that_was_cut_anywhere_is_continued(
    begun: tuple[dict[str, Any], dict[str, bytes]], mixed: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "clean" / packing.JOURNAL
    whole = journal.read_bytes()
    for cut in (0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        journal.write_bytes(whole[:cut])
        packed(mixed, tmp_path / "clean", **begun[0])
        assert visible(tmp_path / "clean") == begun[1]


def test_half_a_packed_video_is_packed_again(
    begun: tuple[dict[str, Any], dict[str, bytes]], mixed: Path, tmp_path: Path
) -> None:
    name = "shard-000000.tar" if begun[0]["shards"] else "1.mp4"
    for content in (begun[1][name][:1000], None):
        (tmp_path / "clean" / name).unlink()
        if content is not None:
            (tmp_path / "clean" / name).write_bytes(content)
        packed(mixed, tmp_path / "clean", **begun[0])
        assert visible(tmp_path / "clean") == begun[1]


# --- refused


def test_a_folder_of_other_data_or_options(mixed: Path, tmp_path: Path) -> None:
    output = tmp_path / "packed"
    packed(mixed, output)
    before = files_below(output)
    for options, message in (
        ({"short_side": 128}, r"short side \(then 256, now 128\)"),
        ({"crf": 30}, r"crf \(then 23, now 30\)"),
        ({"shards": True}, r"shards \(then none, now of 1000 videos\)"),
    ):
        with pytest.raises(RecipeError, match=message):
            packed(mixed, output, **options)
    other = write(mixed.parent / "other.csv", "path,label", ("3.mp4", "a"))
    with pytest.raises(RecipeError, match="other data"):
        packed(other, output)
    assert files_below(output) == before


def test_folders_that_are_not_taken(mixed: Path, videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for output, message in (
        (folder, "not empty|new or an empty"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "no" / "where", "no folder"),
        (videos, "new or an empty"),
    ):
        with pytest.raises(AnnotationError, match=message):
            packed(mixed, output)
    classes = tmp_path / "classes"
    (classes / "a").mkdir(parents=True)
    shutil.copy(videos / "0.mp4", classes / "a")
    with pytest.raises(RecipeError, match="lies in the data"):
        packed(classes, classes / "packed")
    assert not (classes / "packed").exists()
    assert (folder / "notes.txt").read_text() == "mine"


def test_nothing_that_can_be_packed(videos: Path, tmp_path: Path) -> None:
    (videos / "text.mp4").write_text("no video")
    manifest = write(videos / "all.csv", "path,label", ("text.mp4", "a"))
    with pytest.raises(AnnotationError, match=r"not one of 1 videos can be packed; the first: .*text\.mp4"):
        packed(manifest, tmp_path / "packed")
    assert not (tmp_path / "packed" / "manifest.csv").exists()


def test_a_shard_without_a_video(videos: Path, tmp_path: Path) -> None:
    (videos / "text.mp4").write_text("no video")
    manifest = write(videos / "all.csv", "path,label", ("text.mp4", "a"), ("0.mp4", "b"))
    packed(manifest, tmp_path / "packed", shards=True, per_shard=1)
    assert [row.label for row in read_annotations(tmp_path / "packed")] == ["b"]


def test_a_video_that_goes_away_is_named(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write(videos / "all.csv", "path,label", ("0.mp4", "a"), ("1.mp4", "b"))
    before_call(monkeypatch, packing.Packing, "begin", 1, (videos / "1.mp4").unlink)
    report = packed(manifest, tmp_path / "packed")
    assert [Path(video.path).name for video in report.unreadable] == ["1.mp4"]
    with pytest.raises(AnnotationError, match="do not exist"):
        packed(manifest, tmp_path / "packed")


@pytest.mark.parametrize("options", [{"workers": -1}, {"per_shard": 0}, {"short_side": 3}])
def test_invalid_options_are_refused_first(options: dict[str, int], mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError):
        packed(mixed, tmp_path / "packed", **options)
    assert not (tmp_path / "packed").exists()


def test_the_command(mixed: Path, tmp_path: Path, uniformerv2: Run) -> None:
    draw(mixed.parent / "3.mp4", scene(3), side=95)
    status, output, _ = uniformerv2("data", "pack", mixed, "-o", tmp_path / "packed", "--short-side", 64)
    assert status == 0
    assert "text.mp4" in output.replace("\n", "")
    assert "6 of 7 rows written" in output
    assert "5 resized" in output
    status, output, _ = uniformerv2("data", "pack", mixed, "-o", tmp_path / "packed", "--short-side", 64, "--json")
    assert json.loads(output)["rows_left_out"] == 1
    assert_refused(uniformerv2("data", "pack", mixed, "-o", tmp_path / "packed"), "short side (then 64, now 256)")
