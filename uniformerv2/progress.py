"""Progress on stderr: bars and lines. Results are returned, or printed on stdout by the command line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from uniformerv2.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

Item = TypeVar("Item")


LINE_EVERY_SECONDS = 30.0  # where there is no terminal for a bar


class LineTimer:
    """Tells when `LINE_EVERY_SECONDS` have passed since it was made, or since it told so."""

    def __init__(self) -> None:
        self._start = monotonic()

    def passed(self) -> bool:
        now = monotonic()
        if now - self._start < LINE_EVERY_SECONDS:
            return False
        self._start = now
        return True


def stderr_console() -> Console:
    """Where progress is shown."""
    from rich.console import Console

    return Console(stderr=True)


def _is_first() -> bool:
    from uniformerv2.distributed import current_ranks  # which needs torch, as the help of commands does not

    return current_ranks().first


def say(line: str, *, progress: bool = True, style: str | None = None) -> None:
    """Lines as they are, on stderr: no markup, no wrapping, and only by the first process of a group."""
    if progress and _is_first():
        shown = "\n".join(map(printable, line.split("\n")))
        stderr_console().print(shown, style=style, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def bar(description: str, total: int | None, *, progress: bool = True) -> Iterator[Callable[[float], object]]:
    """A bar on a terminal, which vanishes at the end, and elsewhere a line from time to time.

    Yields what moves it on by so many steps.
    """
    console = stderr_console()
    if not (progress and _is_first()):
        yield lambda steps: None
        return
    if not console.is_terminal:
        yield _lines(description, total)
        return
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(console=console, transient=True) as shown:
        task = shown.add_task(escape(description), total=total)
        yield lambda steps: shown.advance(task, steps)


def _lines(description: str, total: int | None) -> Callable[[float], object]:
    timer, done = LineTimer(), 0.0

    def advance(steps: float) -> None:
        nonlocal done
        done += steps
        if timer.passed():
            say(f"{description}: {done:.0f}{f' of {total}, {done / total:.0%}' if total else ''}")

    return advance


def track(
    items: Iterable[Item], description: str, *, total: int | None = None, progress: bool = True
) -> Iterator[Item]:
    """The items, with a bar that follows them.

    Args:
        items: in their order.
        description: a word or two before the bar.
        total: how many; None: `len(items)` where that is known.
        progress: whether to show anything.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(description, total, progress=progress) as advance:
        for item in items:
            yield item
            advance(1)
