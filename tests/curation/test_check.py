from __future__ import annotations

import csv
import importlib
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from helpers import before_call, kill_this_process, killed_again_and_again, write_video
from uniformerv2.curation import probe as probing
from uniformerv2.curation.check import CheckReport, check_manifest
from uniformerv2.curation.findings import FINDINGS, KEPT
from uniformerv2.curation.probe import Probe, probe_video
from uniformerv2.data.journal import Journal
from uniformerv2.errors import AnnotationError, RecipeError
from uniformerv2.video.sampling import segment_indices

Row = Sequence[object]
ALL = tuple(FINDINGS)


def encode(path: Path, frames: Iterable[np.ndarray], *, codec: str = "mpeg4", side: int = 96, rate: int = 10) -> Path:
    muxer = {"movflags": "+faststart"} if path.suffix in (".mp4", ".mov") else {}
    pixels = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
    return write_video(path, frames, codec=codec, rate=rate, pixels=pixels, muxer=muxer, size=(side, side))


def scene(seed: int, *, num_frames: int = 12) -> list[np.ndarray]:
    """A square that moves over a pattern; both depend on the seed."""
    noise = np.random.default_rng(seed)
    background = noise.integers(40, 160, (6, 6, 1), dtype=np.uint8).repeat(16, 0).repeat(16, 1).repeat(3, 2)
    row, speed = noise.integers(0, 72), noise.uniform(2, 6)
    images = []
    for index in range(num_frames):
        image = background.copy()
        column = int(speed * index) % 72
        image[row : row + 24, column : column + 24] = 220
        images.append(image)
    return images


def draw(path: Path, seed: int, *, num_frames: int = 12) -> Path:
    return encode(path, scene(seed, num_frames=num_frames))


def write(manifest: Path, rows: Iterable[Row], columns: str = "path,label,start,end,split") -> Path:
    with manifest.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns.split(","), *rows])
    return manifest


def check(manifest: Path, **options: Any) -> CheckReport:
    return check_manifest(manifest, manifest.with_name("clean.csv"), report=manifest.with_name("table.csv"), **options)


def kinds(result: CheckReport) -> dict[int, list[str]]:
    """Findings by line."""
    found: dict[int, list[str]] = {}
    for finding in result.findings:
        found.setdefault(result.rows[finding.row].line, []).append(finding.kind)
    return found


def table(manifest: Path) -> list[dict[str, str]]:
    with manifest.with_name("table.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the different sound videos 0.mp4 to 5.mp4, of 12 frames and 1.2 s each. To be copied from only."""
    folder = tmp_path_factory.mktemp("drawn")
    for seed in range(6):
        draw(folder / f"{seed}.mp4", seed)
    return folder


@pytest.fixture
def videos(drawn: Path, tmp_path: Path) -> Path:
    """A copy of those videos, to be damaged."""
    shutil.copytree(drawn, tmp_path / "videos")
    return tmp_path / "videos"


# --- what a row is by itself


def test_sound_rows_pass_as_they_are(videos: Path) -> None:
    manifest = videos / "all.csv"
    text = 'label,note,path\n"a, ""b""",x,0.mp4\n\n c ,"two\nlines", 1.mp4\nd\u00fc,,2.mp4\n'
    manifest.write_text("\ufeff" + text, encoding="utf-8")
    result = check(manifest)
    assert result.findings == []
    assert (videos / "clean.csv").read_text(encoding="utf-8") == (
        'label,note,path\n"a, ""b""",x,0.mp4\nc ,"two\nlines",1.mp4\nd\u00fc,,2.mp4\n'
    )
    assert (videos / "table.csv").read_text() == "line,path,label,start,end,split,finding,left_out,detail\n"
    assert [row.line for row in result.rows] == [2, 5, 6]


def test_each_thing_that_is_wrong_has_its_name(videos: Path) -> None:
    (videos / "empty.mp4").touch()
    (videos / "text.mp4").write_text("no video")
    draw(videos / "short.mp4", 9, num_frames=7)
    rows = [
        ("0.mp4", "a"),
        ("gone.mp4", "a"),
        ("empty.mp4", "a"),
        ("text.mp4", "b"),
        ("short.mp4", "b"),
        ("1.mp4", "b"),
    ]
    manifest = write(videos / "all.csv", rows, "path,label")
    result = check(manifest)
    assert kinds(result) == {3: ["missing"], 4: ["unreadable"], 5: ["unreadable"], 6: ["too-short"]}
    assert (videos / "clean.csv").read_text() == "path,label\n0.mp4,a\n1.mp4,b\n"
    lines = table(manifest)
    assert [line["path"] for line in lines] == ["gone.mp4", "empty.mp4", "text.mp4", "short.mp4"]
    assert [line["left_out"] for line in lines] == ["yes"] * 4
    assert lines[0]["detail"] == "No such file or directory"
    assert lines[1]["detail"] == "the file is empty"
    assert "7 frame(s)" in lines[3]["detail"]
    assert result.labels() == {"": {"a": 1, "b": 1}}
    assert kinds(check(manifest, num_frames=7)) == {3: ["missing"], 4: ["unreadable"], 5: ["unreadable"]}


@pytest.mark.parametrize(("suffix", "codec"), [("avi", "mjpeg"), ("mov", "mjpeg"), ("mkv", "mpeg4"), ("flv", "flv1")])
def test_a_video_that_breaks_off_is_found_by_its_stated_duration(suffix: str, codec: str, tmp_path: Path) -> None:
    rows = [(name, "a") for name in (f"whole.{suffix}", half_of_a_video(tmp_path, suffix, codec))]
    result = check(write(tmp_path / "all.csv", rows, "path,label"))
    found = kinds(result)
    assert 2 not in found
    assert "wrong-duration" in found[3]
    assert result.left_out == {1}
    assert result.probes[f"half.{suffix}"].stated_seconds == 6.0
    assert result.probes[f"half.{suffix}"].seconds < 4


def half_of_a_video(folder: Path, suffix: str = "avi", codec: str = "mjpeg") -> str:
    """Of a whole one beside it, of 60 frames, whose index comes first as in files made for the net."""
    whole = encode(folder / f"whole.{suffix}", scene(8, num_frames=60), codec=codec)
    content = whole.read_bytes()
    (folder / f"half.{suffix}").write_bytes(content[: len(content) * 6 // 10])
    return f"half.{suffix}"


@pytest.mark.parametrize(("suffix", "codec"), [("mpg", "mpeg1video"), ("ts", "mpeg2video"), ("gif", "gif")])
def test_a_duration_that_nothing_states_is_not_wrong(suffix: str, codec: str, tmp_path: Path) -> None:
    encode(tmp_path / f"a.{suffix}", scene(8, num_frames=60), codec=codec, rate=25)
    assert kinds(check(write(tmp_path / "all.csv", [(f"a.{suffix}", "a")], "path,label"))) == {}


def test_damage_is_told_and_forgiven(videos: Path, shared: Path) -> None:
    shutil.copy(shared / "data" / "videos" / "decord" / "corrupted.mp4", videos)
    manifest = write(videos / "all.csv", [("corrupted.mp4", "a")], "path,label")
    assert kinds(check(manifest)) == {2: ["damaged"]}
    assert (videos / "clean.csv").read_text().splitlines() == ["path,label", "corrupted.mp4,a"]
    assert table(manifest)[0]["left_out"] == "no"
    check(manifest, keep=())
    assert (videos / "clean.csv").read_text().splitlines() == ["path,label"]


def test_the_rows_of_a_file_are_judged_by_their_intervals(videos: Path) -> None:
    rows = [
        ("0.mp4", "a", "", 0.8),
        ("0.mp4", "a", 0.4, ""),
        ("0.mp4", "a", 0.2, 0.5),  # four frames
        ("0.mp4", "a", 0, 1.6),  # times are rounded
        ("0.mp4", "a", 0, 1.8),
        ("0.mp4", "a", 1.2, ""),
        ("0.mp4", "a", 7, 8),
    ]
    manifest = write(videos / "all.csv", rows, "path,label,start,end")
    result = check(manifest)
    assert kinds(result) == {4: ["too-short"], 6: ["beyond-end"], 7: ["beyond-end"], 8: ["beyond-end"]}
    assert "1.20 s" in result.findings[-1].detail
    assert [stretch.frames for stretch in result.probes["0.mp4"].stretches] == [9, 8, 4, 12, 12, 0, 0]
    assert kinds(check(manifest, minimum_seconds=0.85))[3] == ["too-short"]  # 8 frames of 0.1 s
    assert 2 not in kinds(check(manifest, minimum_seconds=0.85))


def test_a_file_is_decoded_once_and_where_evaluation_looks(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[list[int]] = []

    class Spy(probing.VideoReader):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            assert options == {"threads": 1}
            decoded.append([])
            super().__init__(*arguments, **options)

        def frames_at(self, indices: Sequence[int]) -> Any:
            decoded[-1] += indices
            return super().frames_at(indices)

    monkeypatch.setattr(probing, "VideoReader", Spy)
    found = probe_video(drawn / "0.mp4", [(None, None), (0.3, 1.0)], 4)
    whole, part = segment_indices(12, 4), [3 + index for index in segment_indices(8, 4)]
    assert decoded == [sorted({whole[0], whole[2], whole[3], part[0], part[2], part[3]})]
    assert len(found.picture) == 3 * 16 * 16


def test_only_the_rows_whose_frames_are_lost_are_unreadable(videos: Path) -> None:
    path = encode(videos / "long.avi", scene(3, num_frames=48), codec="mjpeg")
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for position, size in packets[30:]:
        content[position + 8 : position + 8 + size] = bytes(size)
    path.write_bytes(content)
    rows = [("long.avi", "a", 0, 1), ("long.avi", "a", 1, 2), ("long.avi", "a", 3.5, 4.5)]
    found = kinds(check(write(videos / "all.csv", rows, "path,label,start,end")))
    assert "unreadable" in found[4]
    assert "unreadable" not in found[2] + found[3]
    assert "wrong-duration" in found[2]  # 30 of 48 frames, whichever row is asked for


def test_a_folder_of_frames_is_a_video(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for index, image in enumerate(scene(1, num_frames=9)):
            encode(tmp_path / name / f"{index}.jpg", [image], codec="mjpeg")
    result = check(write(tmp_path / "all.csv", [("a", "x"), ("b", "x")], "path,label"))
    assert kinds(result) == {3: ["duplicate"]}
    assert result.statistics()["codecs"] == {"images": 2}
    (tmp_path / "b" / "0.jpg").unlink()
    assert "duplicate" not in kinds(check(tmp_path / "all.csv"))  # the folder has changed, so it is read anew


def test_statistics_are_those_of_the_files(videos: Path) -> None:
    encode(videos / "other.avi", scene(20, num_frames=50), codec="mjpeg", side=64, rate=25)
    rows = [("0.mp4", "a", "train"), ("1.mp4", "a", "train"), ("other.avi", "b", "val"), ("gone.mp4", "b", "val")]
    result = check(write(videos / "all.csv", rows, "path,label,split"))
    assert result.statistics() == {
        "readable": 3,
        "codecs": {"mpeg4": 2, "mjpeg": 1},
        "sizes": {"96x96": 2, "64x64": 1},
        "rates": {"10": 2, "25": 1},
        "seconds": {"shortest": 1.2, "median": 1.2, "longest": 2.0, "total": 4.4},
    }
    assert result.labels() == {"train": {"a": 2}, "val": {"b": 1}}


def test_every_media_file_is_judged(shared: Path, tmp_path: Path) -> None:
    """What is no video, which files are equal byte for byte, and which were seen to be copies by eye."""
    root = shared / "data" / "videos"
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix not in {".txt", ".tsv", ".jpg"})
    assert len(files) >= 60
    names = [str(path.relative_to(root)) for path in files]
    result = check(write(tmp_path / "all.csv", [(name, "x") for name in names], "path,label"), root=root, num_frames=3)
    found: dict[str, set[str]] = {}
    pairs = set()
    for finding in result.findings:
        found.setdefault(finding.kind, set()).add(result.rows[finding.row].name)
        if finding.kind == "near-duplicate":
            assert finding.other is not None
            pairs.add((result.rows[finding.other].name, result.rows[finding.row].name))
    sound = {name for name in names if name.endswith((".wav", ".mp3"))}
    assert found["unreadable"] == sound | {"moviepy/-video-with-dash-.mp4", "moviepy/bitmap.mp4"}
    assert found["too-short"] == {"imageio/imageio_issue245.gif"}
    contents: dict[bytes, str] = {}
    copies = {
        name
        for name, path in zip(names, files, strict=True)
        if contents.setdefault(path.read_bytes(), name) != name and name not in found["unreadable"]
    }
    assert found["duplicate"] == copies
    assert len(copies) == 3
    assert pairs == {
        ("gulpio/test.mp4", "gulpio/test.webm"),
        ("ml-cvnets/dummy_silent_video.mov", "ml-cvnets/dummy_video.mov"),
        ("PaddleVideo/example.avi", "tmbo-ucf101/video1.webm"),
        ("tmbo-ucf101/video2.avi", "tmbo-ucf101/video2.webm"),
        ("tmbo-ucf101/video3.avi", "tmbo-ucf101/video3.webm"),
        ("torchcodec/h264_10bits.mp4", "torchcodec/h265_10bits.mp4"),
    }


# --- what a row is beside others


def test_copies_are_duplicates_of_what_figures_depend_on(videos: Path) -> None:
    for name in ("copy.mp4", "third.mp4"):
        shutil.copy(videos / "0.mp4", videos / name)
    rows = [("0.mp4", "a", "train"), ("1.mp4", "a", "train"), ("copy.mp4", "a", "val"), ("third.mp4", "a", "val")]
    result = check(write(videos / "all.csv", rows, "path,label,split"))
    assert kinds(result) == {2: ["duplicate", "leak"], 5: ["duplicate"]}
    assert {result.findings[place].other for place in range(3)} == {2}
    assert result.findings[0].detail == "copy.mp4, line 4 (val)"
    assert [line.split(",")[0] for line in (videos / "clean.csv").read_text().splitlines()[1:]] == ["1.mp4", "copy.mp4"]


def test_copies_in_another_codec_and_size_are_near_duplicates(videos: Path) -> None:
    encode(videos / "small.avi", scene(0), codec="mjpeg", side=64)
    encode(videos / "large.mp4", scene(1), side=160)
    rows = [("0.mp4", "a", "train"), ("1.mp4", "b", "test"), ("2.mp4", "b", "train")]
    rows += [("small.avi", "a", "train"), ("large.mp4", "b", "train")]
    result = check(write(videos / "all.csv", rows, "path,label,split"))
    assert kinds(result) == {5: ["near-duplicate"], 6: ["near-duplicate", "near-leak"]}
    assert [finding.other for finding in result.findings] == [0, 1, 1]
    assert result.left_out == set()
    assert check(videos / "all.csv", keep=("near-duplicate",)).left_out == {4}


def test_one_file_on_both_sides_is_a_leak(videos: Path) -> None:
    rows = [("0.mp4", "a", 0, 0.8, "val"), ("0.mp4", "a", 0.3, 1.2, "train"), ("1.mp4", "a", 0, 1.2, "train")]
    assert kinds(check(write(videos / "all.csv", rows))) == {3: ["leak"]}


def test_val_and_test_are_one_side(videos: Path) -> None:
    shutil.copy(videos / "0.mp4", videos / "copy.mp4")
    rows = [("0.mp4", "a", "val"), ("copy.mp4", "a", "test")]
    assert kinds(check(write(videos / "all.csv", rows, "path,label,split"))) == {2: ["duplicate"]}


def test_other_times_and_other_labels_are_no_duplicates(videos: Path) -> None:
    shutil.copy(videos / "0.mp4", videos / "copy.mp4")
    rows = [
        ("0.mp4", "a", 0, 0.8),
        ("0.mp4", "a", 0.2, 1),  # of one file: meant so
        ("copy.mp4", "a", 0.7, ""),  # of a copy: mostly the same frames
        ("0.mp4", "a", 0, 0.8),
        ("1.mp4", "a", 0, 0.8),
        ("1.mp4", "b", 0.1, 1),
        ("2.mp4", "a", "", 0.8),
        ("2.mp4", "b", 0.8, ""),  # one after the other
    ]
    result = check(write(videos / "all.csv", rows, "path,label,start,end"), num_frames=3)
    assert kinds(result) == {4: ["duplicate"], 5: ["duplicate"], 6: ["two-labels"], 7: ["two-labels"]}
    assert result.findings[2].detail == "'b' in 1.mp4, line 7"
    assert result.left_out == {2, 3}


def test_rows_that_are_left_out_make_no_duplicates(videos: Path) -> None:
    shutil.copy(videos / "0.mp4", videos / "copy.mp4")
    rows = [("0.mp4", "a", 0, 9), ("copy.mp4", "a", "", "")]
    assert kinds(check(write(videos / "all.csv", rows, "path,label,start,end"))) == {2: ["beyond-end"]}


def test_ninety_actions_before_few_backgrounds_are_told_apart(shared: Path, tmp_path: Path) -> None:
    assert check(make_link(shared / "data" / "weizmann", tmp_path / "weizmann")).findings == []


def test_copies_of_actions_before_few_backgrounds_are_found(shared: Path, tmp_path: Path) -> None:
    folder = make_link(shared / "data" / "weizmann", tmp_path / "weizmann")
    rows = [(str(path.relative_to(folder)), path.parent.name) for path in sorted(folder.rglob("*.avi"))]
    for name, _ in rows[::9]:
        with av.open(str(folder / name)) as container:
            images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        encode(tmp_path / "copies" / name, images, codec="mpeg4", side=120, rate=25)
    copies = [(str(tmp_path / "copies" / name), label) for name, label in rows[::9]]
    result = check(write(tmp_path / "all.csv", rows + copies, "path,label"), root=folder)
    assert [finding.kind for finding in result.findings] == ["near-duplicate"] * 10
    assert [(finding.other, finding.row) for finding in result.findings] == [(9 * i, 90 + i) for i in range(10)]


def make_link(source: Path, link: Path) -> Path:
    link.symlink_to(source, target_is_directory=True)
    return link


# --- interrupted, repeated, in parallel


def outputs(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "clean.csv").read_bytes(), (folder / "table.csv").read_bytes()


@pytest.fixture
def mixed(videos: Path) -> Path:
    """A manifest with something of everything."""
    shutil.copy(videos / "0.mp4", videos / "copy.mp4")
    (videos / "text.mp4").write_text("no video")
    encode(videos / "small.avi", scene(1), codec="mjpeg", side=64)
    half_of_a_video(videos)
    names = [
        "0.mp4",
        "half.avi",
        "1.mp4",
        "text.mp4",
        "copy.mp4",
        "gone.mp4",
        "small.avi",
        "2.mp4",
        "whole.avi",
        "3.mp4",
    ]
    rows = [(name, "ab"[place % 2], "", "", ("train", "val")[place % 3 == 0]) for place, name in enumerate(names)]
    rows += [("whole.avi", "a", 1, 2, "val"), ("whole.avi", "b", 2, 9, "train"), ("4.mp4", "b", "", "", "test")]
    return write(videos / "all.csv", rows)


def test_the_number_of_workers_makes_no_difference(mixed: Path) -> None:
    written = []
    for workers in (0, 1, 2):
        result = check(mixed, workers=workers)
        assert len(kinds(result)) >= 6
        written.append((*outputs(mixed.parent), json.dumps(result.to_json())))
        mixed.with_name("clean.csv.journal").unlink()
    assert written[1] == written[0]
    assert written[2] == written[0]


def refuse(path: Path, intervals: object, num_frames: int) -> Probe:
    raise AssertionError(f"{path} was read again")


def test_what_is_known_is_not_read_again(mixed: Path) -> None:
    check(mixed)
    before = outputs(mixed.parent)
    check(mixed, probe=refuse)
    assert outputs(mixed.parent) == before
    with pytest.raises(AssertionError):
        check(mixed, probe=refuse, num_frames=4)


def test_what_has_changed_is_read_again(videos: Path) -> None:
    manifest = write(videos / "all.csv", [("0.mp4", "a"), ("1.mp4", "a")], "path,label")
    assert kinds(check(manifest)) == {}
    status = (videos / "1.mp4").stat()
    (videos / "1.mp4").write_bytes(bytes(status.st_size))
    os.utime(videos / "1.mp4", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert kinds(check(manifest)) == {3: ["unreadable"]}
    shutil.copy(videos / "2.mp4", videos / "1.mp4")
    assert kinds(check(manifest)) == {}


def test_a_journal_that_was_cut_anywhere_is_gone_on_from(mixed: Path) -> None:
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
        assert (
            len(read) == len(whole.splitlines()) - len((whole[:cut] + b"|").splitlines()) + 1 or cut == len(whole) - 1
        )


@pytest.mark.parametrize("line", [b"{}", b'{"version":1,"path":["x"]}', b'{"version": 1, "path": "0.mp4", "found": 3}'])
def test_a_journal_of_something_else_is_passed_over(line: bytes, mixed: Path) -> None:
    mixed.with_name("clean.csv.journal").write_bytes(line + b"\n")
    check(mixed)
    before = outputs(mixed.parent)
    mixed.with_name("clean.csv.journal").unlink()
    check(mixed)
    assert outputs(mixed.parent) == before


@pytest.fixture
def sixty(drawn: Path, tmp_path: Path) -> tuple[Path, tuple[bytes, bytes]]:
    """A manifest of sixty files that has not been checked, and what a check of it writes."""
    for number in range(60):
        shutil.copy(drawn / f"{number % 6}.mp4", tmp_path / f"{number}.mp4")
    rows = [(f"{number}.mp4", "a", ("train", "val")[number % 7 == 0]) for number in range(60)]
    manifest = write(tmp_path / "all.csv", [*rows, ("gone.mp4", "a", "val")], "path,label,split")
    check(manifest)
    written = outputs(tmp_path)
    for file in ("clean.csv", "table.csv", "clean.csv.journal"):
        (tmp_path / file).unlink()
    return manifest, written


@pytest.fixture
def run_check(sixty: tuple[Path, tuple[bytes, bytes]], run_command: Callable[..., list[int]]) -> Callable[..., Any]:
    manifest, _ = sixty
    files = ["--output", manifest.with_name("clean.csv"), "--report", manifest.with_name("table.csv")]
    return partial(run_command, "data", "check", manifest, *files)


def test_a_check_that_is_killed_again_and_again_ends_the_same(
    sixty: tuple[Path, tuple[bytes, bytes]], run_check: Callable[..., list[int]]
) -> None:
    manifest, written = sixty
    journal, lines, kills = manifest.with_name("clean.csv.journal"), 0, 0
    for _ in killed_again_and_again(partial(run_check, "--workers", 0), Journal, "add"):
        kills += lines < lines_of(journal) < 60
        lines = lines_of(journal)
        for name, whole in zip(("clean.csv", "table.csv"), written, strict=True):
            assert not manifest.with_name(name).exists() or manifest.with_name(name).read_bytes() == whole
    assert kills > 1, "no kill came while it was at work"
    assert outputs(manifest.parent) == written


def test_a_check_with_workers_that_is_killed_ends_the_same(
    sixty: tuple[Path, tuple[bytes, bytes]], run_check: Callable[..., list[int]]
) -> None:
    manifest, written = sixty

    def prepare() -> None:
        before_call(pytest.MonkeyPatch(), Journal, "add", 10, kill_this_process)

    assert run_check("--workers", 2, prepare=prepare) == [-signal.SIGKILL]
    assert lines_of(manifest.with_name("clean.csv.journal")) == 9
    check(manifest)
    assert outputs(manifest.parent) == written


def lines_of(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


DEADLY = """
import faulthandler, os, signal
from uniformerv2.curation.probe import probe_video

def probe(path, *asked):
    if path.name in ("0.mp4", "3.mp4"):
        faulthandler.disable()  # which a fork has from pytest, and which prints
        os.kill(os.getpid(), signal.SIGSEGV)
    return probe_video(path, *asked)
"""


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Probe]:
    """Reads videos, but dies of two of them."""
    name = f"deadly_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(name).probe


def test_a_file_that_kills_its_decoder_is_named(videos: Path, deadly: Callable[..., Probe]) -> None:
    manifest = write(videos / "all.csv", [(f"{number}.mp4", "a") for number in range(6)], "path,label")
    result = check(manifest, workers=2, probe=deadly)
    assert kinds(result) == {2: ["kills-decoder"], 5: ["kills-decoder"]}
    assert "SIGSEGV" in result.findings[0].detail
    assert [line.split(",")[0] for line in (videos / "clean.csv").read_text().split()[1:]] == [
        f"{number}.mp4" for number in (1, 2, 4, 5)
    ]
    before = outputs(videos)
    check(manifest, workers=0, probe=refuse)  # nor is it tried again
    assert outputs(videos) == before


def test_what_no_one_foresaw_is_a_finding(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("60 GB")

    monkeypatch.setattr(probing, "_container", fail)
    manifest = write(videos / "all.csv", [("0.mp4", "a")], "path,label")
    assert check(manifest).findings[0].detail == "MemoryError: 60 GB"


# --- other manifests, and options


def test_a_folder_becomes_a_manifest(videos: Path, tmp_path: Path) -> None:
    classes = tmp_path / "classes"
    for number, name in enumerate(("jump", "run")):
        (classes / name).mkdir(parents=True)
        shutil.copy(videos / f"{number}.mp4", classes / name)
        (classes / name / "text.mp4").write_text("no video")
    result = check_manifest(classes, tmp_path / "clean.csv")
    assert [finding.row for finding in result.findings] == [1, 3]
    assert (tmp_path / "clean.csv").read_text() == "path,label\njump/0.mp4,jump\nrun/1.mp4,run\n"


def test_parquet_in_and_out(videos: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    rows = {
        "path": ["0.mp4", "gone.mp4", "1.mp4"],
        "label": ["a", "b", "c"],
        "start": [0.25, None, None],
        "end": [None] * 3,
    }
    rows["end"] = [1.5, None, None]
    parquet.write_table(pyarrow.table(rows), videos / "all.parquet")
    result = check_manifest(videos / "all.parquet", videos / "clean.parquet", report=videos / "table.parquet")
    assert kinds(result) == {3: ["missing"]}
    kept = {name: [values[0], values[2]] for name, values in rows.items()}
    assert parquet.read_table(videos / "clean.parquet").to_pydict() == kept
    assert parquet.read_table(videos / "table.parquet").to_pydict()["line"] == [3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "at least 1"),
        ({"keep": ("damage",)}, "no such finding to keep: damage"),
        ({"output": "all.csv"}, "different files"),
        ({"report": "clean.csv"}, "different files"),
        ({"workers": -1}, "workers"),
        ({"minimum_seconds": float("nan")}, "minimum"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str, videos: Path) -> None:
    manifest = write(videos / "all.csv", [("0.mp4", "a")], "path,label")
    paths = {name: videos / str(options.pop(name)) for name in ("output", "report") if name in options}
    with pytest.raises(RecipeError, match=message):
        check_manifest(manifest, paths.pop("output", videos / "clean.csv"), **paths, **options)
    assert sorted(path.name for path in videos.iterdir()) == sorted([*(f"{n}.mp4" for n in range(6)), "all.csv"])


def test_nowhere_to_write_is_told_first(videos: Path) -> None:
    manifest = write(videos / "all.csv", [("0.mp4", "a")], "path,label")
    with pytest.raises(AnnotationError, match="no folder"):
        check_manifest(manifest, videos / "no" / "clean.csv", probe=refuse)
    with pytest.raises(AnnotationError, match="no folder"):
        check_manifest(manifest, videos / "clean.csv", report=videos / "no" / "table.csv", probe=refuse)


@pytest.mark.parametrize(
    ("text", "message"),
    [("path,label\n", "no rows"), ("path\n0.mp4\n", "label missing"), ("path,label,end\n0.mp4,a,-1\n", "line 2: end")],
)
def test_manifests_that_make_no_sense_are_refused(text: str, message: str, videos: Path) -> None:
    (videos / "all.csv").write_text(text)
    with pytest.raises(AnnotationError, match=message):
        check(videos / "all.csv")
    assert not (videos / "clean.csv").exists()


def test_what_is_kept_by_default_is_among_the_findings() -> None:
    assert set(KEPT) < set(ALL)
