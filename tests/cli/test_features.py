from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import before_call, kill_this_process
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.weights import arm, save_model

Run = Callable[..., tuple[int, str, str]]
RunCommand = Callable[..., list[int]]


@pytest.fixture(scope="module")
def checkpoint(image_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(arm(image_model, num_classes=3, num_frames=4, size=32), path)
    return path


def parts(journal: Path) -> int:
    """How many parts are written down."""
    return journal.read_bytes().count(b'{"item"') if journal.exists() else 0


def test_a_folder_becomes_one_file(uniformerv2: Run, checkpoint: Path, colours: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    output = tmp_path / "features.npz"
    status, printed, errors = uniformerv2(
        *(
            "features",
            checkpoint,
            colours,
            tmp_path / "broken.mp4",
            "-o",
            output,
            "--window-seconds",
            0.5,
            "--workers",
            1,
        )
    )
    assert (status, errors) == (0, "")
    lines = printed.splitlines()
    assert lines[0] == "45 windows of 15 videos, 32 numbers each"  # of 1.2 s: three windows each
    assert lines[1].startswith(f"skipped: {tmp_path / 'broken.mp4'}")
    assert lines[2] == f"written to {output}"
    with np.load(output) as saved:
        assert saved["embeddings"].shape == (45, 32)
        assert saved["start"][:3].tolist() == [0, 0.5, 1]
        assert saved["paths"][15] == str(tmp_path / "broken.mp4")
        assert "frame_embeddings" not in saved
    assert [file.name for file in tmp_path.iterdir() if "journal" in file.name] == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["-o", "OUT/a.csv"], ".npz"),
        (["-o", "OUT/absent/a.npz"], "absent"),
        (["-o", "OUT/a.npz", "--stride-seconds", 1], "window"),
        (["-o", "OUT/a.npz", "--window-seconds", -1], "-1"),
        (["-o", "OUT/a.npz", "--batch-size", 0], "batch size"),
        (["-o", "OUT/a.npz", "OUT/absent.mp4"], "absent.mp4"),
    ],
)
def test_what_makes_no_sense(
    uniformerv2: Run, checkpoint: Path, colours: Path, tmp_path: Path, arguments: list[object], part: str
) -> None:
    told = [str(argument).replace("OUT", str(tmp_path)) for argument in arguments]
    extra = [told.pop()] if told[-1].endswith(".mp4") else []
    status, output, errors = uniformerv2("features", checkpoint, colours, *extra, *told)
    assert (status, output) == (2, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert part in errors
    assert not list(tmp_path.iterdir())


def test_parquet_without_pyarrow(
    uniformerv2: Run, checkpoint: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uniformerv2.measuring.shared_work.find_spec", lambda name: None)
    status, _, errors = uniformerv2("features", checkpoint, colours, "-o", tmp_path / "a.parquet")
    assert status == 2
    assert errors.count("\n") == 1
    assert 'pip install "uniformerv2[data]"' in errors


@pytest.mark.parametrize(
    ("suffix", "window"), [(".npz", ["--window-seconds", "0.3", "--stride-seconds", "0.1"]), (".parquet", [])]
)
def test_killed_and_resumed_it_gives_what_an_unbroken_run_gives(
    run_command: RunCommand, checkpoint: Path, colours: Path, tmp_path: Path, suffix: str, window: list[str]
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")

    def command(name: str) -> list[object]:
        options = ["--workers", 0, "--batch-size", 1, "--frame-embeddings", *window]
        return ["features", checkpoint, colours, "-o", tmp_path / f"{name}{suffix}", *options]

    def kill_before_batch(number: int) -> None:
        before_call(pytest.MonkeyPatch(), UniFormerV2, "forward_features", number, kill_this_process)

    assert run_command(*command("whole")) == [0]
    written = 0
    for number in (4, 7):  # of the run, of the resumed run
        prepare = partial(kill_before_batch, number)
        assert run_command(*command("killed"), "--resume", prepare=prepare) == [-signal.SIGKILL]
        assert parts(tmp_path / f"killed{suffix}.journal") > written
        written = parts(tmp_path / f"killed{suffix}.journal")
    assert run_command(*command("killed"), "--resume") == [0]
    assert (tmp_path / f"killed{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    left = {
        file.name for file in tmp_path.iterdir() if not file.name.startswith(".")
    }  # a kill may leave temporary files
    assert left == {f"whole{suffix}", f"killed{suffix}"}


def test_processes_share_the_videos(run_command: RunCommand, checkpoint: Path, colours: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_text("no video")

    def command(name: str) -> list[object]:
        options = ["--window-seconds", 0.5, "--workers", 0, "-o", tmp_path / f"{name}.npz"]
        return ["features", checkpoint, tmp_path / "broken.mp4", colours, *options]

    for world in (1, 2, 3):
        assert run_command(*command(str(world)), world=world) == [0] * world
    for name in ("2", "3"):
        assert (tmp_path / f"{name}.npz").read_bytes() == (tmp_path / "1.npz").read_bytes()
    assert not list(tmp_path.glob("*.journal*"))


def test_the_journal_is_text(checkpoint: Path, colours: Path, tmp_path: Path) -> None:
    from uniformerv2.measuring.features import extract_features
    from uniformerv2.weights import load_model

    extract_features(load_model(checkpoint), [colours / "red" / "red0.mp4"], journal=tmp_path / "a.journal")
    lines = [json.loads(line) for line in (tmp_path / "a.journal").read_text().splitlines()]
    assert [sorted(line)[0] for line in lines] == ["identity", "damaged"]
