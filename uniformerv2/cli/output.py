"""What commands print beside their results, and their exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from uniformerv2.errors import UniFormerV2Error
from uniformerv2.text import printable

if TYPE_CHECKING:
    from uniformerv2.distributed import Ranks
    from uniformerv2.stream import StreamEvent

Command = TypeVar("Command")

_WHICH = {"best": "its best epoch", "last": "as it has no best.safetensors"}

FAILED = 2  # the user can fix the cause; wrong options end with it too
INTERRUPTED = 130  # what shells report after Ctrl-C


def print_line(line: object) -> None:
    """One line on stdout, whatever labels and paths in it hold; flushed, for whoever reads a pipe."""
    print(printable(line), flush=True)


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    totals: Iterable[Sequence[object]] = (),
    numbers: Container[str] = (),
) -> None:
    """A table on stdout, with totals below a line and numbers in the columns of these names; nothing without rows."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for section in (rows, totals):
        for row in section:
            table.add_row(*(Text(printable(cell)) for cell in row))  # text holds no markup
        table.add_section()
    if table.row_count:
        Console().print(table)


def print_error(reason: object) -> None:
    """One line on stderr."""
    print(f"error: {printable(' '.join(str(reason).split()))}", file=sys.stderr)


def note(text: str) -> None:
    """One line on stderr, unless it is empty."""
    if text:
        print(f"note: {printable(text)}", file=sys.stderr)


def note_checkpoint(checkpoint: Path) -> None:
    """Say which checkpoint the folder of a run stands for; nothing about other checkpoints. Raises CheckpointError."""
    from uniformerv2.weights.checkpoint import run_checkpoint

    if file := run_checkpoint(checkpoint):
        note(f"{checkpoint} is a run: {file.name} is taken, {_WHICH[file.stem]}")


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


def print_json(kind: str, item: Any) -> None:
    """Print a dataclass as a line of JSON that says its kind."""
    print(json.dumps({**asdict(item), "kind": kind}), flush=True)


def print_event(event: StreamEvent) -> None:
    """Tell on stderr what happened to a stream."""
    if event.kind == "end":
        print(printable(event.message), file=sys.stderr)
    else:
        note(event.message)
