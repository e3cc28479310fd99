"""What commands say beside their results, and how they end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, TypeVar

from uniformerv2.errors import UniFormerV2Error

if TYPE_CHECKING:
    from uniformerv2.distributed import Ranks

Command = TypeVar("Command")

FAILED = 2  # what the user can mend; also what wrong options end with
INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended


def print_error(reason: object) -> None:
    """One line on stderr."""
    print(f"error: {' '.join(str(reason).split())}", file=sys.stderr)


def note(text: str) -> None:
    """What is not certain, on stderr; nothing where nothing is in doubt."""
    if text:
        print(f"note: {text}", file=sys.stderr)


def in_every_process(work: Callable[[Command, Ranks], int | None]) -> Callable[[Command], int]:
    """Make a method that the processes of torchrun share into a `run`, which returns the exit status."""

    @wraps(work)
    def run(command: Command) -> int:
        from uniformerv2.distributed import process_group

        with process_group() as ranks:
            try:
                return work(command, ranks) or 0
            except UniFormerV2Error:
                if ranks.first:  # all of them fail alike, and one says why
                    raise
                return FAILED

    return run
