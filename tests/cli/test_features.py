"""`uniformerv2 features`."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers import Run, before_call, kill_this_process
from uniformerv2.model.uniformerv2 import UniFormerV2


def test_a_folder_becomes_one_file(uniformerv2: Run, checkpoint: Path, colours: Path, tmp_path: Path) -> None:
    broken, output = tmp_path / "broken.mp4", tmp_path / "features.npz"
    broken.write_text("no video")
    status, printed, errors = uniformerv2(
        *("features", checkpoint, colours, broken, "-o", output, "--window-seconds", 0.5, "--workers", 1)
    )
    assert (status, errors) == (0, "")
    lines = printed.splitlines()
    assert lines[0] == "45 windows of 15 videos, 32 numbers each"  # of 1.2 s: three windows each
    assert lines[1].startswith(f"skipped: {broken}")
    assert lines[2] == f"written to {output}"
    with np.load(output) as saved:
        assert saved["embeddings"].shape == (45, 32)
        assert saved["start"][:3].tolist() == [0, 0.5, 1]
        assert saved["paths"][15] == str(broken)
        assert "frame_embeddings" not in saved
    assert {file.name for file in tmp_path.iterdir()} == {"broken.mp4", "features.npz"}


@pytest.mark.parametrize(
    ("suffix", "window"), [(".npz", ["--window-seconds", "0.3", "--stride-seconds", "0.1"]), (".parquet", [])]
)
def test_killed_and_resumed_by_any_number_of_processes_it_writes_the_same_bytes(
    run_command: Callable[..., list[int]],
    checkpoint: Path,
    colours: Path,
    tmp_path: Path,
    suffix: str,
    window: list[str],
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / "broken.mp4").write_text("no video")

    def command(name: str) -> list[object]:
        options = ["--workers", 0, "--batch-size", 1, "--frame-embeddings", *window]
        return ["features", checkpoint, tmp_path / "broken.mp4", colours, "-o", tmp_path / f"{name}{suffix}", *options]

    def kill_before_fourth() -> None:
        before_call(pytest.MonkeyPatch(), UniFormerV2, "forward_features", 4, kill_this_process)

    assert run_command(*command("whole")) == [0]
    written = 0
    for world in (2, 1):
        killed = run_command(*command("killed"), "--resume", world=world, prepare=kill_before_fourth)
        assert killed == [-signal.SIGKILL] * world
        before, written = written, sum(file.read_bytes().count(b'{"item"') for file in tmp_path.glob("*.journal*"))
        assert written > before
    assert run_command(*command("killed"), "--resume", world=3) == [0] * 3
    assert (tmp_path / f"killed{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert not list(tmp_path.glob("*.journal*"))
