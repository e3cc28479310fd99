"""The processes that torchrun starts for one job; a single process is the simplest case."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed

from uniformerv2.device import pick_device
from uniformerv2.errors import ProcessError, UniFormerV2Error

T = TypeVar("T")

# at the end all ranks wait for the slowest; a lost one is torchrun's business, which then ends the others
_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process's place in a group of processes."""

    rank: int = 0  # in [0, world)
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank zero, the process that prints and writes."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on every rank. All ranks have to call it."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return cast("list[T]", values)

    def wait(self) -> None:
        """Until all ranks are here."""
        self.gather(None)

    def on_all_ranks(self, work: Callable[[], T]) -> list[T]:
        """Do the work on every rank and return all results; an error on one rank is raised on all of them.

        Raises:
            UniFormerV2Error: that of the lowest rank that has one.
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

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """Do the work on rank zero alone; every rank returns its result. Raises as `on_all_ranks`."""
        return cast("T", self.on_all_ranks(lambda: work() if self.first else None)[0])

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each number, summed over the ranks; cheaper than `gather`. All ranks have to call it."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.tolist()

    def add_up(self, tensor: Tensor) -> None:
        """Sum a tensor over the ranks, in place, on the device that it is on. All ranks have to call it."""
        if self.world > 1:
            distributed.all_reduce(tensor)


def current_ranks() -> Ranks:
    """This process's place in the current process group; a world of one without a group."""
    if distributed.is_available() and distributed.is_initialized():
        return Ranks(distributed.get_rank(), distributed.get_world_size())
    return Ranks()


def restarted() -> bool:
    """Whether torchrun has restarted these processes after one was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def rank_device(name: str) -> torch.device:
    """`pick_device`; of several GPUs, the processes that torchrun starts on one machine take one each."""
    device = pick_device(name)
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return device


def is_lost_connection(error: BaseException) -> bool:
    """Whether torch reports a broken connection to another rank; only the text of its error tells."""
    text = str(error).lower()
    return any(sign in text for sign in ("closed by peer", "connection reset", "broken pipe"))


@contextmanager
def reporting_lost_ranks(ranks: Ranks, way_out: str) -> Iterator[None]:
    """Inside, a lost rank is a ProcessError on the others."""
    try:
        yield
    except RuntimeError as error:
        if ranks.world == 1 or not is_lost_connection(error):
            raise
        raise ProcessError(f"another process of this run has ended; {way_out}") from error


@contextmanager
def forward_passes(model: object) -> Iterator[None]:
    """Around the forward passes of an evaluation, of which each rank may have another number.

    Where the ranks share the weights of the model, all have to run it equally often: a rank that is through runs it on
    nothing until the others are through, too.
    """
    try:
        yield
    finally:
        join = getattr(model, "join_forward_passes", None)
        if join is not None:
            join()


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the processes that torchrun started with this one; nothing happens where it started none.

    Objects travel through gloo, tensors of a GPU through nccl.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield current_ranks()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
    distributed.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield current_ranks()
    finally:
        distributed.destroy_process_group()
