"""Whatever reads many videos reads them in processes under limits: a file that is over one costs itself alone."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from helpers import Run, noise, start_process, write_video
from uniformerv2.data.journal import Journal
from uniformerv2.data.tables import read_rows

WHY = "raise that with --limit memory_bytes=VALUE or UNIFORMERV2_MAX_MEMORY_BYTES=VALUE in the environment"


@pytest.fixture(scope="module")
def data(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small videos, and one whose frames take 35 MB each."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("red", "blue"):
        (folder / name).mkdir()
        shutil.copy(colours / name / f"{name}0.mp4", folder / name)
    vast = [np.zeros((3000, 4000, 3), dtype=np.uint8)] * 4
    process = start_process(partial(write_video, folder / "blue" / "vast.mp4", vast))  # or this one would keep memory
    process.join()
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
@pytest.mark.parametrize("command", ["evaluate", "features", "check", "predict"])
def test_a_video_that_needs_more_memory_than_the_limit(
    command: str, data: Path, checkpoint: Path, tmp_path: Path, uniformerv2: Run
) -> None:
    target = {
        "evaluate": ("evaluate", checkpoint, data, "--split", "all", "-o", tmp_path / "result.json"),
        "features": ("features", checkpoint, data, "-o", tmp_path / "result.npz"),
        "check": ("data", "check", data, "--json", "-o", tmp_path / "clean.csv"),
        "predict": ("predict", checkpoint, data, "--json"),
    }
    status, output, errors = uniformerv2(*target[command], "--workers", 1, "--limit", "memory_bytes=32MB")
    assert status == (2 if command == "predict" else 0)
    told = next(line for line in (output + errors).splitlines() if "more memory than" in line)
    assert "vast.mp4" in told or command == "check"
    assert WHY in told
    if command == "evaluate":
        result = json.loads((tmp_path / "result.json").read_text())
        assert [Path(video["path"]).name for video in result["skipped"]] == ["vast.mp4"]
    if command == "check":
        assert sorted((tmp_path / "clean.csv").read_text().split()) == [
            "blue/blue0.mp4,blue",
            "path,label",
            "red/red0.mp4,red",
        ]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
@pytest.mark.parametrize(
    "command", [("timeline",), ("features", "--window-seconds", 2), ("features", "--window-seconds", 2, "--workers", 0)]
)
def test_a_gap_of_years_is_refused_where_time_makes_windows(
    command: tuple[object, ...], checkpoint: Path, tmp_path: Path, run_command: Callable[..., list[int]]
) -> None:
    film = write_video(tmp_path / "gap.mkv", noise(21), times=[*range(0, 2000, 100), 30 * 365 * 86_400_000])
    name, *options = command

    def little_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

    assert run_command(name, checkpoint, film, "-o", tmp_path / "out.npz", *options, prepare=little_memory) == [2]


# --- names that are not UTF-8

BYTES = os.fsdecode(b"caf\xe9")  # what Linux and macOS 10.12 allow
ESCAPED = "caf\\udce9"


@pytest.fixture
def named(data: Path, tmp_path: Path) -> Path:
    """A folder and a file in it whose names are not UTF-8."""
    folder = tmp_path / BYTES
    (folder / "red").mkdir(parents=True)
    shutil.copy(data / "red" / "red0.mp4", folder / "red" / f"{BYTES}.mp4")
    (folder / "blue").mkdir()
    shutil.copy(data / "blue" / "blue0.mp4", folder / "blue")
    return folder


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_results_show_names_with_escapes(suffix: str, named: Path, checkpoint: Path, uniformerv2: Run) -> None:
    output = named / f"found.{suffix}"
    assert uniformerv2("predict", checkpoint, named, "-o", output)[0] == 0
    if suffix == "parquet":
        _, _, (_, (path, *_)) = read_rows(output)
        assert path.endswith(f"/red/{ESCAPED}.mp4")
    elif suffix == "csv":
        assert f"/red/{ESCAPED}.mp4,red," in output.read_text(encoding="utf-8")
    else:
        assert json.loads(output.read_text().splitlines()[1])["video"] == str(named / "red" / f"{BYTES}.mp4")


def test_every_result_can_be_written(named: Path, checkpoint: Path, uniformerv2: Run) -> None:
    video = named / "red" / f"{BYTES}.mp4"
    assert uniformerv2("timeline", checkpoint, video, "-o", named)[0] == 0
    assert ESCAPED in (named / f"{BYTES}.svg").read_text(encoding="utf-8")
    for suffix in ("npz", "parquet"):
        assert uniformerv2("features", checkpoint, named, "-o", named / f"out.{suffix}")[0] == 0
        written = ("-o", named / "result.json", "--predictions", named / f"rows.{suffix}")
        assert uniformerv2("evaluate", checkpoint, named, "--split", "all", *written)[0] == 0
    assert json.loads((named / "result.json").read_text())["top1"] == 1


@pytest.mark.parametrize("command", ["train", "import", "check"])
def test_manifests_have_no_such_names(command: str, named: Path, image_model: Path, uniformerv2: Run) -> None:
    target = {
        "train": ("train", named, "--arm", image_model, "-o", named / "run"),
        "import": ("data", "import", "folder", "--videos", named, "-o", named / "list.csv"),
        "check": ("data", "check", named, "-o", named / "clean.csv"),
    }
    status, _, errors = uniformerv2(*target[command])
    assert (status, errors.count("\n")) == (2, 1)
    assert re.search(r"red/caf\\udce9\.mp4.*rename", errors)


# --- JSON

DEEP = {"within what Python reads": 900, "beyond": 100_000}


@pytest.mark.parametrize("depth", DEEP.values(), ids=DEEP)
def test_a_label_that_is_nested_deeply(depth: int, data: Path, tmp_path: Path, uniformerv2: Run) -> None:
    shard = tmp_path / "deep.tar"
    with tarfile.open(shard, "w") as tar:
        tar.add(data / "red" / "red0.mp4", "0.mp4")
        label = b'{"label": ' + b"[" * depth + b"]" * depth + b"}"
        member = tarfile.TarInfo("0.json")
        member.size = len(label)
        tar.addfile(member, io.BytesIO(label))
    status, _, errors = uniformerv2("data", "shards", shard, "-o", tmp_path / "out")
    assert (status, errors.count("\n")) == (2, 1)
    assert "deep.tar, member 0.json" in errors


@pytest.mark.parametrize("content", ["[" * 100_000, "1" * 5000, '{"a": ' * 900 + "1" + "}" * 900])
@pytest.mark.parametrize("dataset", ["ssv2", "activitynet"])
def test_annotations_of_strange_json(content: str, dataset: str, data: Path, tmp_path: Path, uniformerv2: Run) -> None:
    published = tmp_path / "something-something-v2-train.json"
    published.write_text(content)
    given = ("--annotations", published, "--videos", data, "-o", tmp_path / "list.csv")
    status, _, errors = uniformerv2("data", "import", dataset, *given)
    assert (status, errors.count("\n")) == (2, 1)
    assert published.name in errors


def test_records_of_a_journal_that_are_nested_deeply_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("[" * 100_000 + '\n{"number": 1}\n' + "1" * 5000 + "\n")
    with Journal(tmp_path / "journal") as journal:
        assert list(journal.records()) == [{"number": 1}]


# --- folders


def test_a_loop_of_links_is_walked_once(
    data: Path, checkpoint: Path, tmp_path: Path, uniformerv2: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uniformerv2.progress.LINE_EVERY_SECONDS", 0.0)
    root = tmp_path / "root"
    for name in ("red", "blue"):
        (root / name).mkdir(parents=True)
        shutil.copy(data / name / f"{name}0.mp4", root / name)
        (root / name / "up").symlink_to("..")
        (root / name / "self").symlink_to("self")
        (root / name / "other").symlink_to(f"../{'red' if name == 'blue' else 'blue'}")
        os.mkfifo(root / name / "pipe.txt")
    with pytest.warns(UserWarning, match=r"link\(s\) to folders that are read already"):
        status, output, errors = uniformerv2("predict", checkpoint, root, "--json")
    assert status == 0
    assert [Path(json.loads(line)["video"]).name for line in output.splitlines()] == ["blue0.mp4", "red0.mp4"]
    assert f"{root}: 0 videos in 1 folders so far" in errors


# --- shards


def test_a_member_of_a_shard_is_not_read_beyond_the_limit(data: Path, checkpoint: Path, uniformerv2: Run) -> None:
    shard = data.parent / "small.tar"
    with tarfile.open(shard, "w") as tar:
        for number, name in enumerate(("red", "blue")):
            video = bytes(100_000) if number else (data / name / f"{name}0.mp4").read_bytes()
            for suffix, content in (("mp4", video), ("cls", name.encode())):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    status, output, errors = uniformerv2("predict", checkpoint, shard, "--limit", "chunk_bytes=50kB", "--json")
    assert status == 2
    assert ["error" in json.loads(line) for line in output.splitlines()] == [False, True]
    assert "1.mp4: chunk_bytes is 100000, and the limit 50000; if you trust the file" in errors
    status, _, errors = uniformerv2("data", "shards", data, "-o", data.parent / "out", "--limit", "chunk_bytes=1kB")
    assert (status, errors.count("\n")) == (2, 1)
    assert "chunk_bytes" in errors
