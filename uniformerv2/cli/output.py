"""What commands say beside their results, and how they end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from uniformerv2.errors import UniFormerV2Error

if TYPE_CHECKING:
    from uniformerv2.distributed import Ranks

FAILED = 2  # what the user can mend; also what wrong options end with
INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended


def print_error(reason: object) -> None:
    """One line on stderr."""
    print(f"error: {' '.join(str(reason).split())}", file=sys.stderr)


def note(text: str) -> None:
    """What is not certain, on stderr; nothing where nothing is in doubt."""
    if text:
        print(f"note: {text}", file=sys.stderr)


def in_every_process(work: Callable[[Ranks], int | None]) -> int:
    """Do what the processes that torchrun started share; returns the exit status."""
    from uniformerv2.distributed import process_group

    with process_group() as ranks:
        try:
            return work(ranks) or 0
        except UniFormerV2Error:
            if ranks.first:  # all of them fail alike, and one says why
                raise
            return FAILED
