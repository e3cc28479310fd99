"""Several processes that work on one thing, as torchrun starts them; one process is the simplest case."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import distributed

from uniformerv2.device import pick_device
from uniformerv2.errors import ProcessError, UniFormerV2Error

T = TypeVar("T")

# a process waits for the slowest at the end; one that has died, torchrun notices and ends the others
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is."""

    rank: int = 0  # in [0, world)
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether it is this process that prints and writes."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """What every process gives, in the order of ranks, in every process. All of them have to call it."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return cast("list[T]", values)

    def wait(self) -> None:
        """Until all processes are here."""
        self.gather(None)

    def each(self, work: Callable[[], T]) -> list[T]:
        """What every process makes of the work; where it fails in one, it fails in all, so that none waits in vain.

        Raises:
            UniFormerV2Error: that of the first process that has one.
        """
        result: T | None = None
        problem: UniFormerV2Error | None = None
        try:
            result = work()
        except UniFormerV2Error as error:
            problem = error
        results = self.gather((problem, result))
        for problem, _ in results:
            if problem is not None:
                raise problem
        return [cast("T", result) for _, result in results]

    def of_first(self, work: Callable[[], T]) -> T:
        """What the first process makes of the work, which the others leave to it. Raises as `each`."""
        return cast("T", self.each(lambda: work() if self.first else None)[0])

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each number, summed over the processes; cheaper than `gather`. All of them have to call it."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.tolist()


def current_ranks() -> Ranks:
    """The process group that this process is in; a process without one is alone."""
    if distributed.is_available() and distributed.is_initialized():
        return Ranks(distributed.get_rank(), distributed.get_world_size())
    return Ranks()


def restarted() -> bool:
    """Whether torchrun has started these processes again after one had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def rank_device(name: str) -> torch.device:
    """`pick_device`; of several GPUs, the processes that torchrun starts on one machine take one each."""
    device = pick_device(name)
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return device


def tells_of_death(error: BaseException) -> bool:
    """Whether torch says that the connection to another process broke; the type of the error does not tell."""
    text = str(error).lower()
    return any(sign in text for sign in ("closed by peer", "connection reset", "broken pipe"))


@contextmanager
def noticing_deaths(ranks: Ranks, way_out: str) -> Iterator[None]:
    """Around what several processes do together: where one of them has ended, the others raise ProcessError."""
    try:
        yield
    except RuntimeError as error:
        if ranks.world == 1 or not tells_of_death(error):
            raise
        raise ProcessError(f"another process of this run has ended; {way_out}") from error


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the processes that torchrun started with this one; nothing happens where it started none.

    Objects travel through gloo, tensors of a GPU through nccl.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield current_ranks()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield current_ranks()
    finally:
        distributed.destroy_process_group()
