from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from uniformerv2 import cli
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.weights import arm, save_model

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def checkpoint(image_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(arm(image_model, num_classes=3, num_frames=4, size=32), path)
    return path


def start(arguments: Sequence[object], **environment: str) -> multiprocessing.Process:
    """The command line in a process that can be killed; a fork, which has imported everything already."""

    def run() -> None:
        os.environ.update(environment)
        sys.stdout = sys.stderr = io.StringIO()
        os._exit(cli.main([str(argument) for argument in arguments]))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process  # type: ignore[return-value]


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
    ("suffix", "window", "most"),
    [(".npz", ["--window-seconds", "0.3", "--stride-seconds", "0.1"], 40), (".parquet", [], 5)],
)
def test_killed_at_random_and_resumed_it_gives_what_an_unbroken_run_gives(
    checkpoint: Path,
    colours: Path,
    tmp_path: Path,
    suffix: str,
    window: list[str],
    most: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward = UniFormerV2.forward_features

    def slowly(model: UniFormerV2, clip: torch.Tensor, **options: bool) -> object:
        time.sleep(0.01)  # so that a kill comes while it is at work
        return forward(model, clip, **options)

    monkeypatch.setattr(UniFormerV2, "forward_features", slowly)
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")

    def command(name: str) -> list[object]:
        options = ["--workers", 0, "--batch-size", 1, "--frame-embeddings", *window]
        return ["features", checkpoint, colours, "-o", tmp_path / f"{name}{suffix}", *options]

    whole = start(command("whole"))
    whole.join(60)
    assert whole.exitcode == 0
    dice = random.Random(0)
    interrupted = 0
    journal = tmp_path / f"killed{suffix}.journal"
    while True:
        process = start([*command("killed"), "--resume"])
        wanted = parts(journal) + dice.randint(0, most)
        while process.exitcode is None and parts(journal) < wanted:
            time.sleep(0.002)
        process.join(dice.uniform(0, 0.02))
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        interrupted += parts(journal) > 0
    assert process.exitcode == 0
    assert interrupted, "no kill came while it was at work"
    assert (tmp_path / f"killed{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    left = {
        file.name for file in tmp_path.iterdir() if not file.name.startswith(".")
    }  # a kill may leave temporary files
    assert left == {f"whole{suffix}", f"killed{suffix}"}


def test_processes_share_the_videos(checkpoint: Path, colours: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_text("no video")

    def command(name: str) -> list[object]:
        options = ["--window-seconds", 0.5, "--workers", 0, "-o", tmp_path / f"{name}.npz"]
        return ["features", checkpoint, tmp_path / "broken.mp4", colours, *options]

    groups = [[start(command("1"))]]
    for world in (2, 3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world)}
        groups.append([start(command(str(world)), **address, RANK=str(rank)) for rank in range(world)])
        for process in groups[-1]:
            process.join(60)
            assert process.exitcode == 0
    groups[0][0].join(60)
    for name in ("2", "3"):
        assert (tmp_path / f"{name}.npz").read_bytes() == (tmp_path / "1.npz").read_bytes()
    assert not list(tmp_path.glob("*.journal*"))


def test_the_journal_is_text(checkpoint: Path, colours: Path, tmp_path: Path) -> None:
    from uniformerv2.measuring.features import extract_features
    from uniformerv2.weights import load_model

    extract_features(load_model(checkpoint), [colours / "red" / "red0.mp4"], journal=tmp_path / "a.journal")
    lines = [json.loads(line) for line in (tmp_path / "a.journal").read_text().splitlines()]
    assert [sorted(line)[0] for line in lines] == ["identity", "damaged"]
