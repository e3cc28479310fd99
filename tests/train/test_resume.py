"""Runs that end in every way that a run can end, and go on."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import before_call, kill_this_process, start_process
from uniformerv2 import attention_choice, load_model
from uniformerv2.distributed import Ranks
from uniformerv2.errors import CheckpointError, RecipeError
from uniformerv2.model import kernels
from uniformerv2.tasks.classification.task import Classification
from uniformerv2.tasks.classification.training import train_classifier
from uniformerv2.train.engine import TERMINATED
from uniformerv2.train.log import TIMINGS, read_metrics
from uniformerv2.train.recipe import ClipRecipe, ModelRecipe, Optimization, Recipe
from uniformerv2.train.run_folder import RunFolder, is_locked, locked
from uniformerv2.train.state import StateFolder
from uniformerv2.video.augmentation import Augmentation

train = partial(train_classifier, workers=0)


@pytest.fixture(scope="module")
def recipe(image_model: Path) -> Recipe:
    """24 steps with everything that draws random numbers."""
    return Recipe(
        ModelRecipe(arm=str(image_model), head_dropout=0.1, drop_path=0.2),
        ClipRecipe(num_frames=4, size=32),
        Optimization(epochs=4, batch_size=2, accumulate=2, lr=2e-3, warmup_epochs=1, precision="fp32", ema=0.9),
        Augmentation(erasing=0.5, mixup=0.4, cutmix=1.0),
    ).vary(sampling="square-root", class_weights="balanced", monitor="macro-f1")


@pytest.fixture(scope="module")
def unbroken(colours: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    train(colours, recipe, folder)
    return folder


def curve(folder: Path) -> list[dict[str, Any]]:
    records = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in record.items() if name not in TIMINGS} for record in records]


def assert_same_run(one: Path, other: Path) -> None:
    assert curve(one) == curve(other)
    for name in ("last", "best"):
        weights, others = (load_model(folder / f"{name}.safetensors").state_dict() for folder in (one, other))
        assert all(torch.equal(weights[key], others[key]) for key in weights | others)
    assert (one / "evaluation.json").read_text() == (other / "evaluation.json").read_text()


def test_a_run_that_is_killed_wherever_it_is_ends_as_if_it_had_not_been(
    colours: Path, recipe: Recipe, unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def killed(owner: Any, name: str, call: int) -> None:
        def work() -> None:
            before_call(pytest.MonkeyPatch(), owner, name, call, kill_this_process)
            train(colours, recipe, run, resume=run.exists(), save_every_seconds=0.0)

        process = start_process(work)
        process.join()
        assert process.exitcode == -signal.SIGKILL, name

    killed(RunFolder, "start", 1)  # nothing but a lock is there
    shutil.rmtree(run)
    killed(Classification, "loss", 4)  # between the two batches of a step
    killed(StateFolder, "_publish", 2)  # a state is half written
    killed(Classification, "evaluate", 1)
    killed(os, "replace", 4)  # a checkpoint, or the metrics that are begun again, is half written
    killed(Classification, "measure", 1)
    train(colours, recipe, run, resume=True)
    assert_same_run(run, unbroken)
    assert not list(run.glob(".*"))  # neither a lock nor half a file


@pytest.mark.parametrize(("name", "call", "step"), [("loss", 9, 5), ("evaluate", 2, 12), ("evaluate", 4, 24)])
def test_after_sigterm_a_run_is_saved_and_goes_on(
    colours: Path,
    recipe: Recipe,
    unbroken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    call: int,
    step: int,
) -> None:
    run, handler = tmp_path / "run", signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        before_call(patch, Classification, name, call, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as caught:
            train(colours, recipe, run, progress=True, save_every_seconds=0.0)
    assert caught.value.code == TERMINATED == 143
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"stopped by SIGTERM after step (\d+) of 24; it can go on with --resume", said)
    assert signal.getsignal(signal.SIGTERM) is handler
    newest = StateFolder(RunFolder(run).states, Ranks()).newest
    assert newest is not None
    epochs, steps = map(int, newest.name.split("-"))
    assert len([record for record in curve(run) if record["kind"] == "step"]) == 6 * epochs + steps == step
    train(colours, recipe, run, resume=True)
    assert_same_run(run, unbroken)


def test_a_run_of_a_live_process_is_refused_and_one_of_a_dead_process_is_taken_over(
    colours: Path, recipe: Recipe, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RecipeError, match=rf"run: in use by process {holder.pid} on .*; wait until it ends, stop it"):
        train(colours, recipe, run)
    assert [file.name for file in run.iterdir()] == [".lock"]
    holder.kill()
    holder.wait()
    assert (run / ".lock").is_file()  # the dead could not remove it
    with RunFolder(run).locked():  # the process that it had forked still lives, and waits for its input to end
        pass
    assert not list(run.iterdir())
    assert holder.stdin
    holder.stdin.close()


HOLD = """
import os, sys
from uniformerv2.train.run_folder import RunFolder
with RunFolder(sys.argv[1]).locked():
    if os.fork():
        print("held", flush=True)
    sys.stdin.read()
"""


def test_a_process_does_not_lock_twice_and_gives_up_what_it_held(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locked(lock):
        with pytest.raises(RecipeError, match=f"in use by process {os.getpid()} on"), locked(lock):
            pass
        assert is_locked(lock)
    assert not is_locked(lock)
    with locked(lock):
        pass


def test_a_lock_is_seen_by_those_who_may_only_read(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locked(lock):
        lock.chmod(0o444)
        tmp_path.chmod(0o555)
        assert is_locked(lock)
        tmp_path.chmod(0o755)
    lock.write_text("process 1 on a machine that is no more")
    assert not is_locked(lock)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As if the disk were full after `size` bytes of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_state(tmp_path: Path) -> None:
    states = StateFolder(tmp_path / "state", Ranks())
    states.save("1", {"epoch": 1}, {"weight": torch.zeros(10)})
    states.finish()
    with largest_file(20_000):
        states.save("2", {"epoch": 2}, {"weight": torch.zeros(100_000)})
        with pytest.raises(CheckpointError, match=r"state: could not be written \(.*--resume"):
            states.finish()
    assert states.facts() == {"epoch": 1}
    assert [one.name for one in states.path.iterdir()] == ["1"]


def test_a_run_whose_disk_fills_up_goes_on_when_there_is_room(
    colours: Path, recipe: Recipe, unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    size = (unbroken / "last.safetensors").stat().st_size
    with largest_file(size * 2), pytest.raises(CheckpointError, match="make room and continue"):  # the state is larger
        train(colours, recipe, run)
    assert (run / "last.safetensors").stat().st_size == size
    train(colours, recipe, run, resume=True)
    assert_same_run(run, unbroken)


def test_a_full_disk_is_named_whatever_is_written(colours: Path, recipe: Recipe, tmp_path: Path) -> None:
    with largest_file(20_000), pytest.raises(CheckpointError, match=r"last\.safetensors: could not be written"):
        train(colours, recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_a_state_of_something_else_is_no_traceback(
    colours: Path, recipe: Recipe, unbroken: Path, tmp_path: Path
) -> None:
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    states = StateFolder(RunFolder(tmp_path).states, Ranks())
    states.save("000009-00000000", {"epoch": 9}, {"model/weight": torch.zeros(1)})
    states.finish()
    with pytest.raises(CheckpointError, match=r"state/000009-0+: damaged, or of .* another model \(.*--overw"):
        train(colours, recipe, tmp_path, resume=True)


def test_a_run_goes_on_with_the_attention_kernels_that_it_chose(
    colours: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 on a CPU. Without a record, as of an older version, all stay plain."""
    narrow = recipe.vary(precision="bf16", epochs=1, warmup_epochs=0.0)
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    used: list[str] = []
    plain = kernels.plain_attention
    monkeypatch.setattr(kernels, "plain_attention", lambda *x, **y: (used.append("plain"), plain(*x, **y))[1])
    monkeypatch.setattr(kernels, "MEASURED_WORK", 1)
    monkeypatch.setattr(attention_choice, "cache_file", lambda: tmp_path / "attention.json")
    monkeypatch.setattr(attention_choice, "measure", lambda case: "fused" if case.training else "plain")
    train(colours, narrow, unbroken)
    assert "plain" not in used

    monkeypatch.setattr(attention_choice, "measure", lambda case: "plain")  # another machine
    (tmp_path / "attention.json").unlink()
    shutil.copytree(unbroken, run)
    for name in ("state", "metrics.jsonl"):
        remove(run / name)
    with monkeypatch.context() as patch:
        before_call(patch, Classification, "loss", 5, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(SystemExit):
            train(colours, narrow, run, resume=True)
    train(colours, narrow, run, resume=True)
    assert "plain" not in used
    assert_same_run(run, unbroken)

    for name in ("state", "metrics.jsonl", "attention.json"):
        remove(run / name)
    train(colours, narrow, run, resume=True)
    assert "plain" in used
    assert not (run / "attention.json").exists()


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_damaged_record_of_kernels_is_refused(colours: Path, recipe: Recipe, unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    assert not (run / "attention.json").exists()  # of float32
    (run / "attention.json").write_text('{"16x16x16 training": "fastest"}')
    with pytest.raises(RecipeError, match=r"attention.json: not the kernels that a run chose; restore it"):
        train(colours, recipe, run, resume=True)


def test_what_auto_meant_when_a_run_began_stays(colours: Path, recipe: Recipe, unbroken: Path, tmp_path: Path) -> None:
    """As on a GPU, where auto compiles."""
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    begun = (run / "recipe.json").read_text().replace('"compile": false', '"compile": true')
    (run / "recipe.json").write_text(begun)
    assert recipe.optimization.compile == "auto"
    train(colours, recipe, run, resume=True)
    assert (run / "recipe.json").read_text() == begun
    with pytest.raises(RecipeError, match="compile True is now False"):
        train(colours, recipe.vary(compile=False), run, resume=True)
