from __future__ import annotations

import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from card import Card, Uploaded
from uniformerv2 import device
from uniformerv2.device import bf16_gain, fetch_later, on_device, one_late, read_later
from uniformerv2.train import log
from uniformerv2.train.log import Speed


@dataclass
class Numbered:
    """A batch."""

    tensor: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        return [self.tensor]

    def to(self, where: torch.device) -> Numbered:
        return Numbered(device.upload(self.tensor, where))


@dataclass
class Source:
    """Batches 0, 1, ..., each of which is read once it may be."""

    count: int
    reading: Callable[[], object]
    taken: int = 0

    def __post_init__(self) -> None:
        self.allowed = threading.Semaphore(0)

    def __iter__(self) -> Iterator[Numbered]:
        for number in range(self.count):
            self.allowed.acquire()
            self.reading()
            self.taken += 1
            yield Numbered(torch.tensor(float(number)))


@pytest.fixture
def card(card: Card, monkeypatch: pytest.MonkeyPatch) -> Card:
    monkeypatch.setattr(device, "upload", card.upload)
    return card


def test_a_batch_is_uploaded_while_the_one_before_is_computed(card: Card) -> None:
    source = Source(5, lambda: None)
    source.allowed.release(100)
    batches = on_device(iter(source), card.device)
    for number in range(4):
        batch = next(batches)
        assert batch.tensor == number
        assert isinstance(batch.tensor, Uploaded)
        assert batch.tensor.stream is card.computing  # which uses its memory
        while len(card.uploaded) < number + 2:  # without being asked
            card.arrived.wait()
            card.arrived.clear()
        assert source.taken == number + 2  # and no more
    assert card.computing.waits == [1, 2, 3, 4]  # for what was handed out, not for what is still on its way
    batches.close()
    assert not any(thread.is_alive() for thread in card.threads)


def test_elsewhere_batches_stay_as_they_are() -> None:
    source = Source(3, lambda: None)
    source.allowed.release(1)
    batches = on_device(iter(source), torch.device("cpu"))
    assert type(next(batches).tensor) is Tensor
    assert source.taken == 1


def test_what_fails_in_reading_is_raised_in_its_place(card: Card) -> None:
    def broken() -> Iterator[Numbered]:
        yield Numbered(torch.zeros(()))
        raise ZeroDivisionError

    batches = on_device(broken(), card.device)
    assert next(batches).tensor == 0
    with pytest.raises(ZeroDivisionError):
        next(batches)


def test_what_is_read_and_uploaded_in_time_is_no_waiting(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def read() -> None:
        clock[0] += 1

    monkeypatch.setattr(log.time, "perf_counter", lambda: clock[0])
    source, speed = Source(3, read), Speed(torch.device("cpu"))
    batches = speed.waiting(on_device(iter(source), card.device))
    source.allowed.release()
    next(batches)
    assert speed.step(1)["data_wait"] == 1.0
    card.arrived.clear()
    source.allowed.release()  # while it computes
    card.arrived.wait()
    next(batches)
    assert speed.step(1)["data_wait"] == 0.0
    assert speed.total["data_wait"] == 0.5
    source.allowed.release()
    assert len(list(batches)) == 1


# results that are fetched late


def test_a_result_is_waited_for_once_the_next_is_begun() -> None:
    happened: list[str] = []

    def begin(number: int) -> Callable[[], int]:
        happened.append(f"begun {number}")
        return lambda: (happened.append(f"read {number}"), 10 * number)[1]

    found = one_late((number, begin(number)) for number in range(3))
    assert next(found) == (0, 0)
    assert happened == ["begun 0", "begun 1", "read 0"]
    assert list(found) == [(1, 10), (2, 20)]
    assert happened[3:] == ["begun 2", "read 1", "read 2"]


def test_no_result_is_lost_where_the_next_cannot_be_begun() -> None:
    def begun() -> Iterator[tuple[int, Callable[[], str]]]:
        yield 0, lambda: "result"
        raise KeyboardInterrupt

    found = one_late(begun())
    assert next(found) == (0, "result")
    with pytest.raises(KeyboardInterrupt):
        next(found)


def test_of_a_cpu_tensors_and_numbers_are_there_at_once() -> None:
    tensor = torch.arange(6.0).view(2, 3)
    assert torch.equal(fetch_later(tensor)(), tensor)
    assert read_later(tensor[0])() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("ratio", [0.5, 1.2, 2.0])
def test_the_gain_of_bf16_is_the_ratio_of_the_times(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    moments = [0.0]
    for slowdown in (3.0, 1.0, 1.0, 2.0, 1.0):  # other work disturbs some
        for duration in (ratio * slowdown, slowdown):  # float32, bfloat16
            moments += [moments[-1], moments[-1] + duration]
    clock = iter(moments[1:])
    monkeypatch.setattr(device.time, "perf_counter", lambda: next(clock))
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, **options: ones(1, 1, **options))  # nothing is timed
    assert bf16_gain.__wrapped__(torch.device("cpu")) == pytest.approx(ratio)


# bytes of the heap that a process keeps once a tensor is freed
CODE = """
import ctypes, torch
from uniformerv2.device import keep_freed_memory

class Heap(ctypes.Structure):  # struct mallinfo2
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

keep_freed_memory()
tensor = torch.ones(64 << 20, dtype=torch.uint8)
del tensor
mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Heap
print(mallinfo2().fordblks)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_freed_memory_stays_with_the_process() -> None:
    free = int(subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True).stdout)
    assert free >= 64 << 20
