"""Fixtures for the whole suite."""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from torch.distributed import TCPStore

from card import Card
from helpers import coloured, start_process, write_image_model, write_video
from models import randomised
from uniformerv2 import arm, cli
from uniformerv2.distributed import current_ranks, process_group
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.tasks.classification.training import train_classifier
from uniformerv2.train.recipe import ClipRecipe, ModelRecipe, Optimization, Recipe

GPU_TESTS = Path(__file__).parent / "gpu"


def pytest_configure(config: pytest.Config) -> None:
    """Everything is computed on the CPU, by one thread: models of tests are so small that a second one only waits.

    The processes that tests start inherit both. A GPU is seen only where nothing but `tests/gpu` is asked for.
    """
    asked = [(config.invocation_params.dir / name.partition("::")[0]).resolve() for name in config.args]
    if not all(path.is_relative_to(GPU_TESTS) for path in asked):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Fresh processes of a test cannot import it, so its functions are handed over whole."""
    for module in {sys.modules[__name__], *(item.module for item in items)}:
        cloudpickle.register_pickle_by_value(module)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference outputs and real media beside a checkout; tests that need it skip without it."""
    folder = Path(os.environ.get("UNIFORMERV2_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"reference data not found at {folder} (set UNIFORMERV2_SHARED)")
    return folder


@pytest.fixture(scope="session")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of a tiny image transformer (width 32, three blocks, 32x32) to arm."""
    return write_image_model(tmp_path_factory.mktemp("image") / "tiny.safetensors")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """In the place of a GPU, which the tests' machine may lack."""
    return Card(monkeypatch)


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of five videos each of the classes blue, green and red, which a tiny model learns in seconds."""
    folder = tmp_path_factory.mktemp("colours")
    for number, name in enumerate(("red", "green", "blue")):
        for take in range(5):
            write_video(folder / name / f"{name}{take}.mp4", coloured([number] * 12, seed=10 * number + take))
    return folder


@pytest.fixture(scope="session")
def video(colours: Path) -> Path:
    """A file of twelve frames, ten in a second."""
    return colours / "red" / "red0.mp4"


@pytest.fixture(scope="session", params=["scene", "temporal"])
def lively(request: pytest.FixtureRequest, image_model: Path) -> UniFormerV2:
    """A tiny model of random weights; frames that clips have in common can be shared in the layout for scenes."""
    labels = ("blue", "green", "red")
    armed = arm(image_model, layout=request.param, num_classes=3, labels=labels, num_frames=4, size=(32, 32))
    return randomised(armed).eval()


@pytest.fixture(scope="session")
def checkpoint(image_model: Path, colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a run whose tiny model tells blue, green and red apart."""
    recipe = Recipe(
        ModelRecipe(arm=str(image_model)),
        ClipRecipe(num_frames=4, size=32),
        Optimization(epochs=5, batch_size=4, lr=2e-3, warmup_epochs=1, precision="fp32"),
    )
    return train_classifier(colours, recipe, tmp_path_factory.mktemp("runs") / "colours", workers=0).last


@pytest.fixture
def start_together() -> Iterator[Callable[..., list[Any]]]:
    """Starts work in so many processes of one group, as torchrun does; they end with the test."""
    started: list[Any] = []
    stores: list[TCPStore] = []

    def start(world: int, work: Callable[[], object], **environment: str) -> list[Any]:
        if world > 1:  # they meet at a port that this process keeps: no other program can take it meanwhile
            stores.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(stores[-1].port)}
            environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": str(world)}

        def in_group() -> None:
            with process_group():
                work()

        for rank in map(str, range(world)):
            started.append(start_process(in_group, **environment, RANK=rank, LOCAL_RANK=rank))
        return started[-world:]

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.fixture
def together(start_together: Callable[..., list[Any]], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Does work in so many processes of one group, and returns its result in each."""

    def run(world: int, work: Callable[[], object]) -> list[Any]:
        folder = tmp_path_factory.mktemp("results")
        processes = start_together(
            world, lambda: (folder / str(current_ranks().rank)).write_bytes(pickle.dumps(work()))
        )
        for process in processes:
            process.join()
            assert process.exitcode == 0
        return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(world)]

    return run


@pytest.fixture
def run_command(start_together: Callable[..., list[Any]]) -> Callable[..., list[int]]:
    """Runs the command line in so many processes of one group, and returns their exit codes.

    `prepare` is called in each process before; it may arrange the death of the process.
    """

    def run(*arguments: object, world: int = 1, prepare: Callable[[], object] = lambda: None) -> list[int]:
        def work() -> None:
            sys.stdout = sys.stderr = io.StringIO()
            prepare()
            sys.exit(cli.main([str(argument) for argument in arguments]))

        processes = start_together(world, work)
        for process in processes:
            process.join()
        return [process.exitcode for process in processes]

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


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clips were encoded, call by call."""
    calls: list[int] = []
    encode = UniFormerV2.encode

    def counting(self: UniFormerV2, clip: torch.Tensor) -> Any:
        calls.append(len(clip))
        return encode(self, clip)

    monkeypatch.setattr(UniFormerV2, "encode", counting)
    return calls
