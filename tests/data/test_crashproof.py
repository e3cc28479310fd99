"""Processes that die, each in its own way."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

import pytest

from uniformerv2.data.crashproof import Death, crashproof_map

FUNCTIONS = """
import os, signal
from pathlib import Path

def double_or_die(number, deaths):
    if number in deaths:
        os.kill(os.getpid(), signal.SIGSEGV)
    return 2 * number

def die_once(marker):
    if not Path(marker).exists():
        Path(marker).touch()
        os._exit(7)
    return os.getpid()

def leave():
    os._exit(7)
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that worker processes can import as well."""
    name = f"functions_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(name)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_death_costs_one_task(workers: int, functions: ModuleType) -> None:
    tasks = [(number, (0, 3, 4)) for number in range(7)]
    results = dict(crashproof_map(functions.double_or_die, tasks, workers=workers))
    assert results == {
        task: Death("SIGSEGV") if task[0] in task[1] else 2 * task[0] for task in tasks
    }  # the first, two in a row, and those around them


def test_a_task_that_survives_the_second_attempt_is_done(tmp_path: Path, functions: ModuleType) -> None:
    [(_, pid)] = crashproof_map(functions.die_once, [(str(tmp_path / "marker"),)], workers=1)
    assert isinstance(pid, int)
    assert pid != os.getpid()


def test_an_exit_status_is_told(functions: ModuleType) -> None:
    assert list(crashproof_map(functions.leave, [()], workers=1)) == [((), Death("exit status 7"))]


def test_without_workers_this_process_does_it(functions: ModuleType) -> None:
    assert list(crashproof_map(functions.double_or_die, [(1, ()), (2, ())], workers=0)) == [((1, ()), 2), ((2, ()), 4)]


def test_no_task_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uniformerv2.data.crashproof._Worker", None)
    assert list(crashproof_map(os.getpid, [], workers=2)) == []


def test_processes_that_cannot_start_blame_no_task(tmp_path: Path, functions: ModuleType) -> None:
    (tmp_path / f"{functions.__name__}.py").unlink()
    with pytest.raises(RuntimeError, match="before its first task"):
        list(crashproof_map(functions.leave, [()], workers=1))
