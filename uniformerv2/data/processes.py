"""Supervised worker processes: where one dies, its task is tried again and the run goes on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from uniformerv2.errors import RecipeError, UniFormerV2Error
from uniformerv2.video.limits import Limits, is_out_of_memory, out_of_memory, way_out

Task = TypeVar("Task")

# How worker processes start. On Linux they are forks: they start in milliseconds, share datasets of millions of rows
# without pickling them, and work in notebooks and in scripts without `if __name__ == "__main__"`, whose code a fresh
# process would lack or run again (a process of a fork server, too). The price: a fork has a single thread, and a lock
# that another thread held stays locked. So forks only read videos: on one thread, without GPU, console or logger, as
# those of PyTorch's own loader do. Where forks do not exist (Windows) or break system libraries (macOS), workers are
# fresh interpreters ("spawn"). Workers that compute are fresh everywhere, because neither CUDA nor OpenMP's threads
# survive a fork.
START_METHOD = "fork" if sys.platform == "linux" else "spawn"

_OUT_OF_MEMORY = 112  # exit status of a process that was refused memory
_OUT_OF_TIME = getattr(signal, "SIGPROF", 0)  # of the timer; Windows has none

ATTEMPTS = 2  # a process may die by chance, or because the whole run is being ended

_connections: weakref.WeakSet[Connection] = weakref.WeakSet()  # to workers of this process; a fork inherits them


@dataclass(frozen=True)
class Crash:
    """The end of a process; it takes the place of the result of its task."""

    cause: str  # the signal or exit status, or the limit that it was over


class _Message(NamedTuple):
    """What a worker process sends."""

    results: list[Any]
    done: bool  # with the task
    error: UniFormerV2Error | str = ""  # the traceback of a programming error


_READY = _Message([], done=False)


class Worker(Generic[Task]):
    """One process that works on tasks, in the order in which they are given; it ends with this object.

    Args:
        function: takes a task and returns its result, or an iterator of results, which are sent one by one: then the
            process is at most one result ahead. Where the process is no fork, the function is pickled. Tensors in
            results should be arrays, or they would pile up in shared memory.
        threads: that PyTorch has in the process.
        start_method: "spawn" for a function that computes; see `START_METHOD`.
        limits: of these, `memory_bytes` is what the process may take beyond what it starts with, and `seconds` the
            processor time for each result; over one of them the process ends. None: no limits.

    Raises:
        RecipeError: a limit of memory where the system has none for processes (elsewhere than on Linux).
    """

    def __init__(
        self,
        function: Callable[[Task], Any],
        *,
        threads: int = 1,
        start_method: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        if limits and limits.memory_bytes and sys.platform != "linux":
            raise RecipeError(f"memory_bytes can be limited on Linux only, not on {sys.platform}; leave it out")
        context: Any = multiprocessing.get_context(start_method or START_METHOD)
        self.connection, theirs = context.Pipe()
        _connections.add(self.connection)
        inherited = list(_connections) if context.get_start_method() == "fork" else []
        arguments = (function, theirs, inherited, threads, limits)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()  # or the end of the process would not show
        self.tasks: deque[tuple[Task, int]] = deque()
        """Given and not done, with the number of the attempt; the process works on the first."""
        self.alive = True
        self._ready = False
        self.stop = weakref.finalize(self, _stop, self.connection, self._process, os.getpid())
        """Ends the process, whatever it does."""

    def give(self, task: Task, attempt: int = 1) -> None:
        self.tasks.append((task, attempt))
        with suppress(OSError):  # of a process that has died, as receiving will show
            self.connection.send(task)

    def receive(self) -> list[tuple[Task, Any]]:
        """Wait for the next message of the process: results, each with its task, or none.

        If the process has died, it is no longer `alive`, and the result of the task that it worked on is a `Crash`.

        Raises:
            RuntimeError: a programming error, with its traceback; or the process ended before its first task.
            UniFormerV2Error: that of the function.
        """
        try:
            message: _Message = self.connection.recv()
        except (EOFError, OSError):
            self.alive = False
            self._process.join()
            cause = exit_cause(self._process.exitcode or 0)
            if not self._ready:
                raise RuntimeError(f"a worker process ended before its first task ({cause})") from None
            return [(task, Crash(cause)) for task, _ in list(self.tasks)[:1]]
        self._ready = True
        if isinstance(message.error, UniFormerV2Error):
            raise message.error
        if message.error:
            raise RuntimeError(f"an error in a worker process:\n{message.error}")
        found = [(self.tasks[0][0], result) for result in message.results]
        if message.done:
            self.tasks.popleft()
        return found


class Workers(Generic[Task]):
    """Several workers. A task goes to the worker with the fewest; those of a worker that died go to others.

    They have the limits of the environment, see `Worker`.

    Args:
        function: as of `Worker`.
        count: workers at most; they start as tasks come.
        attempts: a task that ends so many processes has a `Crash` as its result.
        queue_size: tasks that a worker is given at once, so that it need not wait; all fit into the buffer of a pipe.

    Raises:
        RecipeError: no workers.
    """

    def __init__(
        self, function: Callable[[Task], Any], count: int, *, attempts: int = ATTEMPTS, queue_size: int = 1
    ) -> None:
        if count < 1:
            raise RecipeError(f"the number of workers must be 0 or more, got {count}")
        self._function, self._count, self._attempts, self._queue_size = function, count, attempts, queue_size
        self._limits = Limits.from_environment()
        self._waiting: deque[tuple[Task, int]] = deque()  # with the number of the attempt
        self._workers: dict[Any, Worker[Task]] = {}  # by connection

    @property
    def unfinished(self) -> int:
        """Tasks that were given and are not done."""
        return len(self._waiting) + sum(len(worker.tasks) for worker in self._workers.values())

    def give(self, task: Task) -> None:
        self._waiting.append((task, 1))
        self._distribute()

    def receive(self) -> list[tuple[Task, Any]]:
        """Wait for messages of workers: results, each with its task. Raises as `Worker.receive`."""
        found: list[tuple[Task, Any]] = []
        for connection in wait(list(self._workers)):
            worker = self._workers[connection]
            results = worker.receive()
            found += results if worker.alive else self._bury(worker, results)
        self._distribute()
        return found

    def stop(self) -> None:
        """End all processes, whatever they do."""
        while self._workers:
            self._workers.popitem()[1].stop()

    def _distribute(self) -> None:
        while self._waiting:
            worker = min(self._workers.values(), key=lambda worker: len(worker.tasks), default=None)
            if worker is None or (worker.tasks and len(self._workers) < self._count):
                worker = Worker(self._function, limits=self._limits)
                self._workers[worker.connection] = worker
            elif len(worker.tasks) >= self._queue_size:
                return
            worker.give(*self._waiting.popleft())

    def _bury(self, worker: Worker[Task], crash: list[tuple[Task, Any]]) -> list[tuple[Task, Any]]:
        """Another attempt for the task that ended the worker, or its crash; its other tasks wait again."""
        del self._workers[worker.connection]
        lost = list(worker.tasks)
        if crash:
            task, attempt = lost.pop(0)
            if attempt < self._attempts:
                crash, lost = [], [(task, attempt + 1), *lost]
        self._waiting.extendleft(reversed(lost))
        return crash


def run_tasks(
    function: Callable[[Task], Any], tasks: Iterable[Task], *, workers: int, attempts: int = ATTEMPTS
) -> Iterator[tuple[Task, Any]]:
    """Call a function on every task, in processes that may die.

    Args:
        function: as of `Worker`.
        tasks: taken one at a time, as processes become free.
        workers: processes; 0 calls the function in this one, which then has to survive.
        attempts: as of `Workers`.

    Yields:
        (task, result), those of a task in order, and once more those of another attempt; (task, `Crash`) is the last of
        a task that has ended as many processes as it may.

    Raises:
        RuntimeError, UniFormerV2Error: as `Worker.receive`.
    """
    if workers == 0:
        for task in tasks:
            result = function(task)
            yield from ((task, item) for item in (result if isinstance(result, Iterator) else [result]))
        return
    coming, pool = iter(tasks), Workers(function, workers, attempts=attempts)
    found: list[tuple[Task, Any]] = []
    try:
        while True:
            for task in islice(coming, workers - pool.unfinished):
                pool.give(task)
            yield from found
            if not pool.unfinished:
                return
            found = pool.receive()
    finally:
        pool.stop()


def in_order(
    function: Callable[[Task], Any], tasks: Iterable[Task], *, workers: int, ahead: int
) -> Generator[tuple[Task, Any], None, None]:
    """Call a function on every task in processes that may die, ahead of the iteration.

    Args:
        function: as of `Worker`; gives one result for a task.
        tasks: taken as they are needed.
        workers: processes, at least 1.
        ahead: results that may wait or be being computed while others are used, at least 1.

    Yields:
        (task, its result or `Crash`), in the order of the tasks.

    Raises:
        RuntimeError, UniFormerV2Error: as `Worker.receive`.
    """
    coming, pool = enumerate(tasks), Workers(partial(_numbered, function), workers)
    begun: deque[tuple[int, Task]] = deque()
    results: dict[int, Any] = {}  # by number of the task
    try:
        while True:
            for task in islice(coming, max(ahead, workers) + 1 - len(begun)):
                begun.append(task)
                pool.give(task)
            if not begun:
                return
            number, first = begun[0]
            while number not in results:
                results |= {of: result for (of, _), result in pool.receive()}
            begun.popleft()
            yield first, results.pop(number)
    finally:
        pool.stop()


def _numbered(function: Callable[[Task], Any], task: tuple[int, Task]) -> Any:
    return function(task[1])


def exit_cause(status: int) -> str:
    """The exit status of a process in words: the limit that it was over, the name of a signal, or the number."""
    if status == _OUT_OF_MEMORY:
        return out_of_memory()
    if status == -_OUT_OF_TIME:
        return f"it took more processor time than the limit seconds allows; raise that with {way_out('seconds')}"
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _serve(
    function: Callable[[Any], Any],
    connection: Connection,
    inherited: Iterable[Connection],
    threads: int,
    limits: Limits | None,
) -> None:
    """The life of a worker process: until the other end is closed, be it because that process is dead."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the one that gives tasks handles it
    for number in filter(None, (signal.SIGTERM, _OUT_OF_TIME)):  # which a fork may have inherited otherwise
        signal.signal(number, signal.SIG_DFL)
    torch.set_num_threads(threads)
    for other in inherited:  # or their other ends would not see that this process's parent has closed them
        other.close()
    if limits and limits.memory_bytes:
        _limit_memory(limits.memory_bytes)
    seconds = limits.seconds if limits and _OUT_OF_TIME else 0
    with suppress(EOFError, OSError):
        connection.send(_READY)
        while True:
            answers = _answers(function, connection.recv())
            _start_timer(seconds)
            for message in answers:
                _start_timer(seconds)
                connection.send(message)


def _limit_memory(size: int) -> None:
    """Let the process take no more than so many bytes from now on."""
    import resource  # which Windows lacks

    status = Path("/proc/self/status").read_text()
    taken = int(status.partition("VmData:")[2].split()[0]) << 10  # memory of its own; what is shared does not count
    _, hardest = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (taken + size, hardest))


def _start_timer(seconds: float) -> None:
    """Let the process end when all of its threads have computed for so long, from now on; 0: never."""
    if seconds:
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _answers(function: Callable[[Any], Any], task: Any) -> Iterator[_Message]:
    try:
        result = function(task)
        if not isinstance(result, Iterator):
            yield _Message([result], done=True)
            return
        for item in result:
            yield _Message([item], done=False)
        yield _Message([], done=True)
    except UniFormerV2Error as error:
        yield _Message([], done=True, error=error)
    except Exception as error:
        if is_out_of_memory(error):
            os._exit(_OUT_OF_MEMORY)  # a new process may have enough
        yield _Message([], done=True, error=traceback.format_exc())


def _stop(connection: Connection, process: BaseProcess, owner: int) -> None:
    if os.getpid() == owner:  # and not in a fork that has inherited the worker
        connection.close()
        process.kill()
        process.join()
