"""Contenders in turn, each in a process of its own: memory is measured apart, and changes of load hit all alike."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from uniformerv2.benchmark.contenders import Case, Contender, build
from uniformerv2.device import peak_memory_mib
from uniformerv2.errors import UniFormerV2Error
from uniformerv2.inference.packed import PackedLinear, can_pack
from uniformerv2.progress import say


@dataclass(frozen=True)
class Times:
    """Seconds of the counted runs at one batch size."""

    batch: int
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half of the distance between the quartiles, as a share of the median."""
        if len(self.seconds) < 3:
            return (max(self.seconds) - min(self.seconds)) / 2 / self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median


@dataclass(frozen=True)
class Measured:
    """The figures of a contender."""

    contender: Contender
    parameters: int
    multiply_adds: int  # for one clip
    memory_mib: float  # of the process at most, or of its tensors on a GPU, with one clip at a time
    times: tuple[Times, ...]

    @property
    def latency(self) -> float:
        """Seconds for one clip alone."""
        return self.times[0].median

    @property
    def throughput(self) -> Times:
        """At the batch size that gives the most clips per second."""
        return min(self.times, key=lambda times: times.median / times.batch)


def measure(
    contenders: Sequence[Contender],
    case: Case,
    device: torch.device,
    *,
    batch_sizes: Sequence[int] = (1, 4),
    rounds: int = 5,
    progress: bool = False,
) -> tuple[list[Measured], list[str]]:
    """Time all contenders in turn, A B C A B C ...; in each turn a contender runs twice, and the second run counts.

    Args:
        batch_sizes: clips at a time; 1 comes first.
        rounds: turns of each contender.
        progress: print a line about each step.

    Returns:
        What was measured, and a line for each contender that failed.
    """
    failed: list[str] = []
    with ExitStack() as stack:
        workers: dict[Contender, _Worker] = {}
        for contender in contenders:
            say(f"building {contender.name}", progress=progress)
            worker = stack.enter_context(_Worker(contender, case, device))
            try:
                worker.receive()
            except UniFormerV2Error as error:
                failed.append(f"{contender.name}: {error}")
            else:
                workers[contender] = worker
        times: dict[Contender, list[Times]] = {contender: [] for contender in workers}
        facts: dict[Contender, Any] = {}
        for batch in batch_sizes:
            say(f"timing {len(workers)} contenders, batch size {batch}", progress=progress)
            seconds: dict[Contender, list[float]] = {contender: [] for contender in workers}
            for _ in range(rounds):
                for contender, worker in workers.items():
                    seconds[contender].append(worker.ask(batch))
            for contender, counted in seconds.items():
                times[contender].append(Times(batch, tuple(counted)))
            if batch == 1:
                facts = {contender: worker.ask("facts") for contender, worker in workers.items()}
    return [Measured(contender, times=tuple(times[contender]), **facts[contender]) for contender in workers], failed


class _Worker:
    """A process that holds one contender and runs it when asked."""

    def __init__(self, contender: Contender, case: Case, device: torch.device):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, contender, case, str(device), torch.get_num_threads())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)

    def __enter__(self) -> _Worker:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    def ask(self, what: int | str) -> Any:
        self._pipe.send(what)
        return self.receive()

    def receive(self) -> Any:
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(pipe: Connection, contender: Contender, case: Case, device_name: str, threads: int) -> None:
    """The life of a worker: builds, then answers a batch size with seconds, and "facts" with what it knows."""
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    try:
        built = build(contender, case, device)
    except Exception as error:
        pipe.send(error)
        return
    pipe.send(None)
    while True:
        what = pipe.recv()
        if what == "facts":
            facts = {"memory_mib": peak_memory_mib(device), "parameters": built.parameters}
            pipe.send({**facts, "multiply_adds": built.multiply_adds()})
            continue
        clips = case.clips(what).to(device)
        with torch.inference_mode():
            built.run(clips)  # the turns of the others have emptied the caches
            pipe.send(_seconds(built.run, clips, device))


@torch.inference_mode()
def product_limit(dtype: torch.dtype, device: torch.device, *, repeats: int = 7) -> float:
    """Operations per second, two a multiply-add, that this machine reaches in large matrix products at best.

    On a CPU the faster of PyTorch's own products and oneDNN's with weights in its own layout.
    """
    best = 0.0
    for rows, inside, columns in ((2048, 2048, 2048), (1536, 768, 3072)):
        factor = torch.randn(rows, inside, device=device).to(dtype)
        layer = nn.Linear(inside, columns, device=device).to(dtype)
        ways: list[nn.Module] = [layer]
        if device.type == "cpu" and can_pack(dtype):
            ways.append(PackedLinear(layer))
        for way in ways:
            seconds = min(_seconds(way, factor, device) for _ in range(repeats))
            best = max(best, 2 * rows * inside * columns / seconds)
    return best


def _seconds(run: Callable[[Tensor], object], argument: Tensor, device: torch.device) -> float:
    start = time.perf_counter()
    run(argument)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
