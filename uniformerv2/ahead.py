"""Work that is done ahead of whoever needs it, in a thread."""

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
    """Call a function on one item after the other, some items ahead of whoever iterates.

    When the iteration ends or is closed, the thread has ended too: the call that it is in is waited for, the others are
    left out.

    Args:
        function: may raise; its future tells.
        items: are taken as they are needed.
        count: results that may wait or be in the making, at least 1.

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
        for _, future in waiting:  # those that were given out are still wanted
            future.cancel()
        pool.shutdown()
