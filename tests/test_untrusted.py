"""Whatever reads many videos reads them in processes under limits: a file that is over one costs itself alone."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from helpers import Run, noise, start_process, write_video

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
    told = next(line for line in (output + errors).splitlines() if " memory" in line)
    assert "vast.mp4" in told or command == "check"
    assert WHY in told or command == "check"
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
