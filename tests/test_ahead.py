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
    before, started, go_on, seen = threading.active_count(), threading.Event(), threading.Event(), list[int]()

    def slow(number: int) -> None:
        seen.append(number)
        started.set()
        assert go_on.wait(60)

    results = ahead(slow, range(100), count=5)
    next(results)
    assert started.wait(60)
    assert threading.active_count() == before + 1
    closing = threading.Thread(target=results.close)
    closing.start()
    go_on.set()
    closing.join(60)
    assert threading.active_count() == before
    assert len(seen) <= 6
