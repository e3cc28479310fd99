"""SIGTERM: a run that is asked to end stops where it can go on later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from uniformerv2.distributed import Ranks

TERMINATED = 128 + signal.SIGTERM  # the exit status that shells report of a process that was terminated


class Terminated(SystemExit):
    """Ends the process after a SIGTERM, with all that is open closed."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


class Termination:
    """While it is entered, SIGTERM is noted: `check` heeds it, and `at_once` marks where it is heeded while waiting.

    Does nothing in a thread that is not the main one, where signals cannot be handled.
    """

    def __init__(self) -> None:
        self.asked = False
        self._waiting = False
        self._before: Any = None

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if exception[0] is None:
            self.check()

    def check(self) -> None:
        """Raises Terminated after a SIGTERM."""
        if self.asked:
            raise Terminated

    def check_all(self, ranks: Ranks) -> None:
        """Raises Terminated in all processes after a SIGTERM to one of them."""
        if any(ranks.gather(self.asked)):
            raise Terminated

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Around what may be broken off anywhere, as nothing is lost with it: SIGTERM raises Terminated here."""
        self._waiting = True
        try:
            self.check()
            yield
        finally:
            self._waiting = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self._waiting:
            raise Terminated
