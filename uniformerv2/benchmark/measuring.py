"""Contenders in turn, each in a process of its own, and the machine that they are measured on.

Memory is measured apart, and changes of load hit all alike.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uniformerv2.benchmark.contenders import Case, Contender, build
from uniformerv2.data.processes import Crash, Worker
from uniformerv2.device import peak_memory_mib
from uniformerv2.errors import ProcessError, RecipeError, UniFormerV2Error
from uniformerv2.inference.cpu import PackedLinear, can_pack
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

    Raises:
        RecipeError: impossible batch sizes or rounds.
    """
    if tuple(batch_sizes[:1]) != (1,) or min(batch_sizes) < 1 or rounds < 1:
        raise RecipeError(
            f"need batch sizes that begin with 1, and 1 round or more, got {tuple(batch_sizes)} and {rounds}"
        )
    workers: dict[Contender, Worker[str | int]] = {}
    failed: list[str] = []
    facts: dict[Contender, Any] = {}
    seconds: dict[tuple[Contender, int], list[float]] = defaultdict(list)

    def ask(contender: Contender, what: str | int) -> Any:
        """The answer of a contender; one that fails is left out from then on."""
        try:
            return _ask(workers[contender], what)
        except UniFormerV2Error as error:
            failed.append(f"{contender.name}: {error}")
            workers.pop(contender).stop()

    try:
        for contender in contenders:
            say(f"building {contender.name}", progress=progress)
            process = _Process(contender, case, str(device))
            workers[contender] = Worker(process, threads=torch.get_num_threads(), start_method="spawn")
            ask(contender, "build")
        for batch in batch_sizes:
            say(f"timing {len(workers)} contenders, batch size {batch}", progress=progress)
            for _ in range(rounds):
                for contender in list(workers):
                    seconds[contender, batch].append(ask(contender, batch))
            if batch == 1:
                facts = {contender: ask(contender, "facts") for contender in list(workers)}
        times = {
            contender: tuple(Times(batch, tuple(seconds[contender, batch])) for batch in batch_sizes)
            for contender in workers
        }
    finally:
        for worker in workers.values():
            worker.stop()
    return [Measured(contender, times=times[contender], **facts[contender]) for contender in times], failed


def _ask(worker: Worker[str | int], what: str | int) -> Any:
    worker.give(what)
    while not (answers := worker.receive()):
        pass
    if isinstance(answers[0][1], Crash):
        raise ProcessError(f"its process ended ({answers[0][1].cause})")
    return answers[0][1]


class _Process:
    """What a process does that holds a contender: "build" it, time it at a batch size, and then report "facts"."""

    def __init__(self, contender: Contender, case: Case, device: str) -> None:
        self.contender, self.case, self.device = contender, case, torch.device(device)

    def __call__(self, what: str | int) -> Any:
        if what == "build":
            self.built = build(self.contender, self.case, self.device)
            return None
        if isinstance(what, int):
            clips = self.case.clips(what).to(self.device)
            with torch.inference_mode():
                self.built.run(clips)  # the turns of the others have emptied the caches
                return _seconds(self.built.run, clips, self.device)
        facts = {"memory_mib": peak_memory_mib(self.device), "parameters": self.built.parameters}
        return {**facts, "multiply_adds": self.built.multiply_adds()}


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


def machine() -> str:
    """The machine, its threads and the versions that matter, in one line."""
    return (
        f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
