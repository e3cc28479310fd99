"""Checks that are interrupted, repeated and done by several processes, and what they write."""

from __future__ import annotations

import faulthandler
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from curation.checking import check, check_rows, clean_paths, draw, draw_half, kinds, outputs, scene, write
from helpers import before_call, kill_this_process, killed_again_and_again
from uniformerv2.curation.check import check_manifest
from uniformerv2.curation.probe import Probe, probe_video
from uniformerv2.data.journal import Journal
from uniformerv2.errors import AnnotationError, RecipeError


@pytest.fixture
def mixed(videos: Path) -> Path:
    """A manifest with something of everything."""
    (videos / "text.mp4").write_text("no video")
    draw(videos / "small.avi", scene(1), codec="mjpeg", side=64)
    names = ["0.mp4", draw_half(videos), "1.mp4", "text.mp4", "copy.mp4", "gone.mp4", "small.avi", "2.mp4", "whole.avi"]
    rows = [
        (name, "ab"[place % 2], "", "", ("train", "val")[place % 3 == 0])
        for place, name in enumerate([*names, "3.mp4"])
    ]
    rows += [("whole.avi", "a", 1, 2, "val"), ("whole.avi", "b", 2, 9, "train"), ("4.mp4", "b", "", "", "test")]
    return write(videos / "all.csv", "path,label,start,end,split", *rows)


def refuse(path: Path, intervals: object, num_frames: int) -> Probe:
    raise AssertionError(f"{path} was read again")


def test_the_number_of_workers_makes_no_difference(mixed: Path) -> None:
    written = []
    for workers in (0, 1, 2):
        result = check(mixed, workers=workers)
        assert len(kinds(result)) >= 6
        written.append((*outputs(mixed.parent), json.dumps(result.to_json())))
        mixed.with_name("clean.csv.journal").unlink()
    assert written[1] == written[0]
    assert written[2] == written[0]


def test_known_files_are_not_read_again(mixed: Path) -> None:
    check(mixed)
    before = outputs(mixed.parent)
    check(mixed, probe=refuse)
    assert outputs(mixed.parent) == before
    with pytest.raises(AssertionError):
        check(mixed, probe=refuse, num_frames=4)


def test_changed_files_are_read_again(videos: Path) -> None:
    manifest = write(videos / "all.csv", "path,label", ("0.mp4", "a"), ("1.mp4", "a"))
    assert kinds(check(manifest)) == {}
    status = (videos / "1.mp4").stat()
    (videos / "1.mp4").write_bytes(bytes(status.st_size))
    os.utime(videos / "1.mp4", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert kinds(check(manifest)) == {3: ["unreadable"]}
    shutil.copy(videos / "2.mp4", videos / "1.mp4")
    assert kinds(check(manifest)) == {}


def test_a_journal_that_was_cut_anywhere_is_continued(mixed: Path) -> None:
    check(mixed)
    before = outputs(mixed.parent)
    journal = mixed.with_name("clean.csv.journal")
    whole = journal.read_bytes()
    rng = random.Random(0)
    for cut in (0, 1, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(3))):
        journal.write_bytes(whole[:cut])
        read: list[Path] = []
        check(mixed, probe=lambda path, *asked, read=read: read.append(path) or probe_video(path, *asked))
        assert outputs(mixed.parent) == before
        complete = whole[: cut + 1].count(b"\n")  # a record without its line end is whole all the same
        assert len(read) == whole.count(b"\n") - complete


@pytest.mark.parametrize("line", [b"{}", b'{"version":1,"path":["x"]}', b'{"version": 1, "path": "0.mp4", "found": 3}'])
def test_a_journal_of_something_else_is_passed_over(line: bytes, mixed: Path) -> None:
    mixed.with_name("clean.csv.journal").write_bytes(line + b"\n")
    check(mixed)
    before = outputs(mixed.parent)
    mixed.with_name("clean.csv.journal").unlink()
    check(mixed)
    assert outputs(mixed.parent) == before


@pytest.fixture
def unchecked(mixed: Path) -> tuple[Path, tuple[bytes, bytes]]:
    """A manifest that has not been checked, and what a check of it writes."""
    check(mixed)
    written = outputs(mixed.parent)
    for name in ("clean.csv", "table.csv", "clean.csv.journal"):
        mixed.with_name(name).unlink()
    return mixed, written


@pytest.fixture
def run_check(mixed: Path, run_command: Callable[..., list[int]]) -> Callable[..., list[int]]:
    files = ["--output", mixed.with_name("clean.csv"), "--findings", mixed.with_name("table.csv")]
    return partial(run_command, "data", "check", mixed, *files)


def lines_of(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def test_a_check_that_is_killed_again_and_again_ends_the_same(
    unchecked: tuple[Path, tuple[bytes, bytes]], run_check: Callable[..., list[int]]
) -> None:
    manifest, written = unchecked
    journal, lines, kills = manifest.with_name("clean.csv.journal"), 0, 0
    for _ in killed_again_and_again(partial(run_check, "--workers", 0), Journal, "add"):
        kills += lines < lines_of(journal) < 11
        lines = lines_of(journal)
        for name, whole in zip(("clean.csv", "table.csv"), written, strict=True):
            assert not manifest.with_name(name).exists() or manifest.with_name(name).read_bytes() == whole
    assert kills > 1, "no kill came while it was at work"
    assert outputs(manifest.parent) == written


def test_a_check_with_workers_that_is_killed_ends_the_same(
    unchecked: tuple[Path, tuple[bytes, bytes]], run_check: Callable[..., list[int]]
) -> None:
    manifest, written = unchecked

    def prepare() -> None:
        before_call(pytest.MonkeyPatch(), Journal, "add", 5, kill_this_process)

    assert run_check("--workers", 2, prepare=prepare) == [-signal.SIGKILL]
    assert lines_of(manifest.with_name("clean.csv.journal")) == 4
    check(manifest)
    assert outputs(manifest.parent) == written


def crash(path: Path, *asked: Any) -> Probe:
    """Dies of two videos."""
    if path.name in ("0.mp4", "3.mp4"):
        faulthandler.disable()  # which a fork has from pytest, and which prints
        os.kill(os.getpid(), signal.SIGSEGV)
    return probe_video(path, *asked)


def test_a_file_that_kills_its_decoder_is_named(videos: Path) -> None:
    result = check_rows(videos, "path,label", *((f"{number}.mp4", "a") for number in range(6)), workers=2, probe=crash)
    assert kinds(result) == {2: ["kills-decoder"], 5: ["kills-decoder"]}
    assert "SIGSEGV" in result.findings[0].detail
    assert clean_paths(videos) == ["1.mp4", "2.mp4", "4.mp4", "5.mp4"]
    before = outputs(videos)
    check(videos / "all.csv", probe=refuse)  # nor is it tried again
    assert outputs(videos) == before


# --- other manifests, and options


def test_a_folder_becomes_a_manifest(videos: Path, tmp_path: Path) -> None:
    classes = tmp_path / "classes"
    for number, name in enumerate(("jump", "run")):
        (classes / name).mkdir(parents=True)
        shutil.copy(videos / f"{number}.mp4", classes / name)
        (classes / name / "text.mp4").write_text("no video")
    result = check_manifest(classes, tmp_path / "clean.csv", workers=0)
    assert [finding.row for finding in result.findings] == [1, 3]
    assert (tmp_path / "clean.csv").read_text() == "path,label\njump/0.mp4,jump\nrun/1.mp4,run\n"


def test_parquet_in_and_out(videos: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = {"path": ["0.mp4", "gone.mp4", "1.mp4"], "label": ["a", "b", "c"]}
    rows |= {"start": [0.25, None, None], "end": [1.5, None, None]}
    parquet.write_table(pyarrow.table(rows), videos / "all.parquet")
    clean, found = videos / "clean.parquet", videos / "table.parquet"
    assert kinds(check_manifest(videos / "all.parquet", clean, findings=found, workers=0)) == {3: ["missing"]}
    kept = {name: [values[0], values[2]] for name, values in rows.items()}
    assert parquet.read_table(clean).to_pydict() == kept
    assert parquet.read_table(found).to_pydict()["line"] == [3]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_frames": 0}, RecipeError, "at least 1"),
        ({"keep": ("damage",)}, RecipeError, "no such finding to keep: damage"),
        ({"output": "all.csv"}, RecipeError, "different files"),
        ({"findings": "clean.csv"}, RecipeError, "different files"),
        ({"workers": -1}, RecipeError, "workers"),
        ({"minimum_seconds": float("nan")}, RecipeError, "minimum"),
        ({"output": "no/clean.csv"}, AnnotationError, "no folder"),
        ({"findings": "no/table.csv"}, AnnotationError, "no folder"),
    ],
)
def test_invalid_options_are_refused_first(
    options: dict[str, Any], error: type[Exception], message: str, videos: Path
) -> None:
    manifest = write(videos / "all.csv", "path,label", ("0.mp4", "a"))
    before = sorted(videos.iterdir())
    paths = {name: videos / str(options[name]) for name in ("output", "findings") if name in options}
    with pytest.raises(error, match=message):
        check_manifest(manifest, **{"output": videos / "clean.csv", "probe": refuse, **options, **paths})
    assert sorted(videos.iterdir()) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [("path,label\n", "no rows"), ("path\n0.mp4\n", "label missing"), ("path,label,end\n0.mp4,a,-1\n", "line 2: end")],
)
def test_invalid_manifests_are_refused(text: str, message: str, videos: Path) -> None:
    (videos / "all.csv").write_text(text)
    with pytest.raises(AnnotationError, match=message):
        check(videos / "all.csv")
    assert not (videos / "clean.csv").exists()
