"""What commands print beside their results, and their exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, TypeVar

from uniformerv2.errors import UniFormerV2Error

if TYPE_CHECKING:
    from uniformerv2.distributed import Ranks

Command = TypeVar("Command")

FAILED = 2  # the user can fix the cause; wrong options end with it too
INTERRUPTED = 130  # what shells report after Ctrl-C


def print_error(reason: object) -> None:
    """One line on stderr."""
    print(f"error: {' '.join(str(reason).split())}", file=sys.stderr)


def note(text: str) -> None:
    """One line on stderr, unless it is empty."""
    if text:
        print(f"note: {text}", file=sys.stderr)


def in_every_process(work: Callable[[Command, Ranks], int | None]) -> Callable[[Command], int]:
    """Make a method a `run` in the process group that torchrun has started, if it has; returns the exit status."""

    @wraps(work)
    def run(command: Command) -> int:
        from uniformerv2.distributed import process_group

        with process_group() as ranks:
            try:
                return work(command, ranks) or 0
            except UniFormerV2Error:
                if ranks.first:  # all of them fail alike, and the first prints why
                    raise
                return FAILED

    return run
