"""Work in other processes that goes on when one of them dies."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

T = TypeVar("T")
Task = tuple[Any, ...]

_ATTEMPTS = 2  # a process may be ended by chance, or together with the whole run a moment before it
_READY = "ready"


@dataclass(frozen=True)
class Death:
    """What became of a task that ended its process each time."""

    cause: str  # the signal or exit status


def crashproof_map(
    function: Callable[..., T], tasks: Iterable[Task], *, workers: int
) -> Iterator[tuple[Task, T | Death]]:
    """Call a function on every task, in processes that may die.

    Args:
        function: of a module that other processes can import; it must not raise.
        tasks: arguments of each call; taken one at a time, as processes become free.
        workers: processes, each on one thread; 0 calls in this process, which then has to survive.

    Yields:
        (task, what the function returns, or `Death`), in the order of completion.

    Raises:
        RuntimeError: a process ends before it has begun; nothing is wrong with the task then.
    """
    if workers == 0:
        yield from ((task, function(*task)) for task in tasks)
        return
    waiting = iter(tasks)
    queue = deque((task, 1) for task in islice(waiting, workers))  # with the number of the attempt
    context = _context(function)
    alive: dict[Any, _Worker] = {}
    try:
        for _ in range(len(queue)):
            _add(alive, _Worker(context, function))
        while alive:
            for connection in wait(list(alive)):
                worker = alive[connection]
                task, attempt, outcome = worker.task, worker.attempt, worker.receive()
                if not queue:
                    queue.extend((task, 1) for task in islice(waiting, 1))
                if isinstance(outcome, Death):
                    alive.pop(connection).stop()
                    if task is not None and attempt < _ATTEMPTS:
                        queue.append((task, attempt + 1))
                        task = None
                    if queue:
                        _add(alive, _Worker(context, function))
                elif queue:
                    worker.give(*queue.popleft())
                else:
                    alive.pop(connection).stop()
                if task is not None:
                    yield task, outcome
    finally:
        for worker in alive.values():
            worker.stop()


class _Worker:
    """A process that has one task at a time, or none yet."""

    def __init__(self, context: Any, function: Callable[..., Any]) -> None:
        self.task: Task | None = None
        self.attempt = 0
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(function, theirs), daemon=True)
        self._process.start()
        theirs.close()  # or the end of the process would not show

    def give(self, task: Task, attempt: int) -> None:
        self.task, self.attempt = task, attempt
        with suppress(OSError):  # of a process that has died, as receiving will show
            self.connection.send(task)

    def receive(self) -> Any:
        """What the process sends: that it is ready, a result, or that it died."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            cause = cause_of_end(self._process.exitcode or 0)
            if self.task is None:
                raise RuntimeError(f"a worker process ended before its first task ({cause})") from None
            return Death(cause)

    def stop(self) -> None:
        self.connection.close()
        self._process.terminate()
        self._process.join()


def _add(alive: dict[Any, _Worker], worker: _Worker) -> None:
    alive[worker.connection] = worker


def _serve(function: Callable[..., Any], connection: Connection) -> None:
    """The life of a worker process: until the other end is closed, be it because that process is dead."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the one that gives the tasks decides
    torch.set_num_threads(1)
    try:
        connection.send(_READY)
        while True:
            connection.send(function(*connection.recv()))
    except (EOFError, OSError):
        return


def _context(function: Callable[..., Any]) -> BaseContext:
    """Processes that share nothing with this one, whose threads a plain fork would break."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", function.__module__])  # imported once for all processes
    return context


def cause_of_end(status: int) -> str:
    """The exit status of a process in words: the name of the signal that ended it, or the number."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
