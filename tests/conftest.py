"""Fixtures for the whole suite."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from uniformerv2 import cli
from uniformerv2.distributed import current_ranks, process_group

FORK = multiprocessing.get_context("fork")  # processes that have imported everything already


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference outputs and real media beside a checkout; tests that need it skip without it."""
    folder = Path(os.environ.get("UNIFORMERV2_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"reference data not found at {folder} (set UNIFORMERV2_SHARED)")
    return folder


def draw_image_model(path: Path, *, width: int = 32, depth: int = 3, heads: int = 2, grid: int = 2) -> Path:
    """A vision transformer of random weights in timm's names, patch 16, which can be armed."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.05

    state = {
        "cls_token": random(1, 1, width),
        "pos_embed": random(1, 1 + grid * grid, width),
        "patch_embed.proj.weight": random(width, 3, 16, 16),
        "patch_embed.proj.bias": random(width),
        "norm.weight": torch.ones(width),
        "norm.bias": random(width),
    }
    for block in (f"blocks.{number}" for number in range(depth)):
        for norm in ("norm1", "norm2"):
            state |= {f"{block}.{norm}.weight": torch.ones(width), f"{block}.{norm}.bias": random(width)}
        for layer, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 2 * width, width),
            ("mlp.fc2", width, 2 * width),
        ):
            state |= {f"{block}.{layer}.weight": random(rows, columns), f"{block}.{layer}.bias": random(rows)}
    save_file(state, path, {"heads": str(heads)})
    return path


def draw_video(path: Path, *, colour: int, seed: int, num_frames: int = 12, side: int = 48) -> Path:
    """A real video file of noise in which one colour channel (0 red, 1 green, 2 blue) is bright."""
    noise = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for _ in range(num_frames):
            frame = noise.integers(0, 80, (side, side, 3), dtype=np.uint8)
            frame[..., colour] += 150
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of a tiny image transformer (width 32, three blocks, 32x32) to arm."""
    return draw_image_model(tmp_path_factory.mktemp("image") / "tiny.safetensors")


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of five videos each of the classes blue, green and red, which a tiny model learns in seconds."""
    folder = tmp_path_factory.mktemp("colours")
    for number, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir()
        for take in range(5):
            draw_video(folder / name / f"{name}{take}.mp4", colour=number, seed=10 * number + take)
    return folder


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Models of these tests are so small that a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def start_together() -> Callable[[int, Callable[[], object]], list[Any]]:
    """Starts work in so many processes of one group, as torchrun does."""

    def start(world: int, work: Callable[[], object], **environment: str) -> list[Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world)}

        def run(rank: int) -> None:
            os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank), **environment)
            with process_group():
                work()

        processes = [FORK.Process(target=run, args=(rank,)) for rank in range(world)]
        for process in processes:
            process.start()
        return processes

    return start


@pytest.fixture
def together(start_together: Callable[..., list[Any]], tmp_path: Path) -> Callable[..., list[Any]]:
    """Does work in so many processes of one group, and returns what it gave in each."""

    def run(world: int, work: Callable[[], object]) -> list[Any]:
        results = [FORK.Pipe(duplex=False) for _ in range(world)]
        processes = start_together(world, lambda: results[current_ranks().rank][1].send_bytes(pickle.dumps(work())))
        found = []
        for process, (result, _) in zip(processes, results, strict=True):
            while not result.poll(0.05):
                assert process.exitcode in (None, 0), f"ended with {process.exitcode}"
            found.append(pickle.loads(result.recv_bytes()))
        for process in processes:
            process.join(240)
            assert process.exitcode == 0
        return found

    return run


@pytest.fixture
def uniformerv2(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process: (status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as wrong_usage:
            status = int(wrong_usage.code or 0)
        output, errors = capsys.readouterr()
        return status, output, errors

    return run
