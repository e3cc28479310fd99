"""Results that a thread computes before they are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, count: int
) -> Generator[tuple[Item, Future[Result]], None, None]:
    """Call a function on one item after the other in a thread, some items ahead of the iteration.

    When the iteration ends or is closed, so does the thread, after the call that is running.

    Args:
        function: what it raises is in its future.
        items: are taken as they are needed.
        count: results that may wait or be being computed, at least 1.

    Yields:
        (item, its future), in the order of the items.
    """
    pool = ThreadPoolExecutor(1)
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > count:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for _, future in waiting:  # the others were handed out
            future.cancel()
        pool.shutdown()
