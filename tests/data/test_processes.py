"""Processes that die, each in its own way."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from uniformerv2.data import processes
from uniformerv2.data.processes import Crash, Worker, run_tasks
from uniformerv2.errors import RecipeError, VideoError

FUNCTIONS = """
import faulthandler, os, signal, time
import torch
from pathlib import Path
from uniformerv2.errors import RecipeError, VideoError

def double_or_die(task):
    number, deadly = task
    if number in deadly:
        faulthandler.disable()  # which a fork has from pytest, and which prints
        os.kill(os.getpid(), signal.SIGSEGV)
    return 2 * number

def die_once(marker):
    yield "first"
    if not Path(marker).exists():
        Path(marker).touch()
        os._exit(7)
    yield os.getpid()

def leave(task):
    os._exit(7)

def count(task):
    yield from range(task)

def fail(task):
    raise VideoError("not a video") if task else ZeroDivisionError("a bug")

def handlers(task):
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

def take(size):
    return len(bytearray(size))

def take_tensor(size):
    return len(torch.empty(size, dtype=torch.uint8))

def compute(task):
    yield "begun"
    while task and time.process_time() < 30:
        pass
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that worker processes can import as well, however they start."""
    name = f"functions_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(name)


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_crash_costs_one_task(workers: int, functions: ModuleType) -> None:
    tasks = [(number, (0, 3, 4)) for number in range(7)]
    results = dict(run_tasks(functions.double_or_die, tasks, workers=workers))
    assert results == {
        task: Crash("SIGSEGV") if task[0] in task[1] else 2 * task[0] for task in tasks
    }  # the first, two in a row, and those around them


def test_a_task_that_survives_the_second_attempt_is_done(tmp_path: Path, functions: ModuleType) -> None:
    found = [result for _, result in run_tasks(functions.die_once, [tmp_path / "marker"], workers=1)]
    assert found[:2] == ["first", "first"]
    assert isinstance(found[2], int)
    assert found[2] != os.getpid()


def test_an_exit_status_is_told(functions: ModuleType) -> None:
    assert list(run_tasks(functions.leave, [0], workers=1)) == [(0, Crash("exit status 7"))]


def test_with_one_attempt_the_first_crash_counts(tmp_path: Path, functions: ModuleType) -> None:
    task = tmp_path / "marker"
    found = list(run_tasks(functions.die_once, [task], workers=1, attempts=1))
    assert found == [(task, "first"), (task, Crash("exit status 7"))]


@pytest.mark.parametrize(("workers", "start_method"), [(0, ""), (2, processes.START_METHOD), (1, "spawn")])
def test_results_of_a_task_come_one_by_one_and_in_order(
    functions: ModuleType, monkeypatch: pytest.MonkeyPatch, workers: int, start_method: str
) -> None:
    monkeypatch.setattr(processes, "START_METHOD", start_method)
    found = list(run_tasks(functions.count, [0, 3, 2], workers=workers))
    assert [result for task, result in found if task == 3] == [0, 1, 2]
    assert sorted(found) == [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]


def test_tasks_are_taken_as_processes_become_free(functions: ModuleType) -> None:
    taken: list[int] = []
    tasks = (taken.append(number) or (number, ()) for number in range(9))  # type: ignore[func-returns-value]
    found = run_tasks(functions.double_or_die, tasks, workers=2)
    next(found)
    assert len(taken) <= 4  # two that are done, and two more
    found.close()  # type: ignore[attr-defined]


def test_signals_are_for_the_process_that_gives_the_tasks(functions: ModuleType) -> None:
    before = signal.signal(signal.SIGTERM, lambda *what: None)
    try:
        [(_, handlers)] = run_tasks(functions.handlers, [0], workers=1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert handlers == [signal.SIG_IGN, signal.SIG_DFL]


def test_a_process_ends_when_its_connection_does(functions: ModuleType) -> None:
    before = set(multiprocessing.active_children())
    first = Worker(functions.count)
    [process] = set(multiprocessing.active_children()) - before
    second = Worker(functions.count)  # as a fork it has the first one's connection, too
    first.connection.close()
    process.join()
    assert process.exitcode == 0
    second.give(2)
    assert second.receive() == []  # it is ready
    assert second.receive() == [(2, 0)]
    first.stop()
    second.stop()


def test_no_task_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "Worker", None)
    assert list(run_tasks(print, [], workers=2)) == []
    with pytest.raises(RecipeError, match="workers must be 0 or more, got -1"):
        list(run_tasks(print, [1], workers=-1))


def test_errors_keep_their_type_or_their_traceback(functions: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug"):
        list(run_tasks(functions.fail, [0], workers=1))
    with pytest.raises(VideoError, match="not a video"):
        list(run_tasks(functions.fail, [1], workers=1))


def test_processes_that_cannot_start_blame_no_task(functions: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "START_METHOD", "spawn")
    Path(functions.__file__).unlink()
    with pytest.raises(RuntimeError, match="before its first task"):
        list(run_tasks(functions.count, [1], workers=1))


# --- limits


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
@pytest.mark.parametrize("function", ["take", "take_tensor"])
def test_memory_beyond_the_limit_costs_one_task(
    function: str, functions: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIFORMERV2_MAX_MEMORY_BYTES", "200MB")
    results = dict(run_tasks(getattr(functions, function), [1 << 20, 1 << 31, 1 << 21], workers=1))
    assert (results[1 << 20], results[1 << 21]) == (1 << 20, 1 << 21)
    assert "the limit memory_bytes allows; raise that with --limit memory_bytes=VALUE" in results[1 << 31].cause


def test_memory_is_not_limited_where_the_system_cannot(functions: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFORMERV2_MAX_MEMORY_BYTES", "200MB")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RecipeError, match="memory_bytes can be limited on Linux only, not on darwin"):
        list(run_tasks(functions.take, [1], workers=1))


def test_a_task_that_never_ends_is_ended(functions: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFORMERV2_MAX_SECONDS", "0.3")
    found = list(run_tasks(functions.compute, [0, 1, 0], workers=1))
    assert [result for task, result in found if task == 0] == ["begun", "begun"]
    [crash] = (result for _, result in found if isinstance(result, Crash))
    assert "more processor time than the limit seconds allows; raise that with --limit seconds=VALUE" in crash.cause
