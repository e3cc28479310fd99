from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from uniformerv2.ahead import ahead


def inverse(number: int) -> float:
    return 1 / number


@pytest.mark.parametrize("count", [1, 3, 9])
def test_everything_comes_in_order_and_an_error_at_its_place(count: int) -> None:
    found = [
        (item, future.exception() or future.result()) for item, future in ahead(inverse, [1, 2, 0, 4], count=count)
    ]
    assert [item for item, _ in found] == [1, 2, 0, 4]
    assert [found[place][1] for place in (0, 1, 3)] == [1.0, 0.5, 0.25]
    assert isinstance(found[2][1], ZeroDivisionError)


def test_no_more_items_are_taken_than_may_wait() -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = ahead(inverse, endless(), count=2)
    assert next(results)[0] == 1
    assert taken == 3
    assert next(results)[0] == 2
    assert taken == 4
    results.close()


def test_an_iteration_that_is_broken_off_ends_the_thread_and_leaves_out_what_waits() -> None:
    started, go_on, seen, threads = threading.Event(), threading.Event(), list[int](), set[threading.Thread]()

    def slow(number: int) -> None:
        seen.append(number)
        threads.add(threading.current_thread())
        started.set()
        go_on.wait()

    results = ahead(slow, range(100), count=5)
    next(results)
    started.wait()
    closing = threading.Thread(target=results.close)
    closing.start()
    go_on.set()
    closing.join()
    [thread] = threads
    assert not thread.is_alive()
    assert len(seen) <= 6
