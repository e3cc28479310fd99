"""Long tasks in other processes, which give their results bit by bit, and may die of one."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, TypeVar

import torch

from uniformerv2.data.crashproof import Death, cause_of_end

T = TypeVar("T")


class _End(NamedTuple):
    """The last that a task gives."""

    error: str  # the traceback of a programming error; "" of none


def stream(function: Callable[[T], Iterable[Any]], tasks: deque[T], *, workers: int) -> Iterator[tuple[T, Any | Death]]:
    """Call a function on every task, in processes that may die.

    Args:
        function: gives the results of a task, one by one. They are copied from process to process; tensors should be
            arrays, or they would pile up in shared memory. A process is at most one result ahead.
        tasks: are taken from here as processes become free; more may be added meanwhile.
        workers: processes, each on one thread; 0 calls in this process, which then has to survive.

    Yields:
        (task, a result), those of a task in order; (task, `Death`) and no more of it where the process has ended.
    """
    if workers == 0:
        while tasks:
            task = tasks.popleft()
            yield from ((task, result) for result in function(task))
        return
    alive: dict[Any, _Worker] = {}  # by connection
    try:
        while tasks or alive:
            while tasks and len(alive) < workers:
                worker = _Worker(function, tasks.popleft())
                alive[worker.connection] = worker
            for connection in wait(list(alive)):
                worker = alive[connection]
                result = worker.receive()
                if isinstance(result, _End) and result.error:
                    raise RuntimeError(f"an error in a process that reads videos:\n{result.error}")
                if isinstance(result, _End) and tasks:
                    worker.give(tasks.popleft())
                elif isinstance(result, (_End, Death)):
                    alive.pop(connection).stop()
                if not isinstance(result, _End):
                    yield worker.task, result
    finally:
        for worker in alive.values():
            worker.stop()


class _Worker:
    """A process that works on one task at a time."""

    def __init__(self, function: Callable[[Any], Iterable[Any]], task: Any) -> None:
        context = multiprocessing.get_context()
        self.connection, theirs = context.Pipe()
        # a fork has this end as well, and would never see that it is closed
        copied = self.connection if context.get_start_method() == "fork" else None
        process: Any = context.Process
        self._process = process(target=_serve, args=(function, theirs, copied), daemon=True)
        self._process.start()
        theirs.close()  # or the end of the process would not show
        self.give(task)

    def give(self, task: Any) -> None:
        self.task = task
        with suppress(OSError):  # of a process that has died, as receiving will show
            self.connection.send(task)

    def receive(self) -> Any:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            return Death(cause_of_end(self._process.exitcode or 0))

    def stop(self) -> None:
        self.connection.close()
        self._process.terminate()
        self._process.join()


def _serve(function: Callable[[Any], Iterable[Any]], connection: Connection, copied: Connection | None) -> None:
    """The life of a process: until the other end is closed, be it because the process there is dead."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the one that gives the tasks decides
    torch.set_num_threads(1)
    if copied is not None:
        copied.close()
    with suppress(EOFError, OSError):
        while True:
            task = connection.recv()
            try:
                for result in function(task):
                    connection.send(result)
                connection.send(_End(""))
            except OSError:
                raise
            except Exception:
                connection.send(_End(traceback.format_exc()))
