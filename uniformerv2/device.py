"""The device that computes: its choice, its memory, its speed in bfloat16."""

from __future__ import annotations

import ctypes
import platform
import re
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from uniformerv2.ahead import ahead
from uniformerv2.errors import RecipeError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# parameters of glibc's mallopt (malloc.h)
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


class Movable(Protocol):
    """A batch of data."""

    @property
    def tensors(self) -> Sequence[Tensor]:
        """All that it has."""

    def to(self, device: torch.device) -> Any:
        """The same batch with each of its tensors as of `upload`."""


Batches = TypeVar("Batches", bound=Movable)
Key = TypeVar("Key")
Value = TypeVar("Value")


def pick_device(name: str) -> torch.device:
    """The named device; "auto" is the GPU where there is one. Raises RecipeError for a device that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()  # a device without kernels, such as "meta", fails here
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise RecipeError(f"device {name!r} cannot be used here: {reason}") from error
    return device


def model_device(model: nn.Module) -> torch.device:
    """The device that a model's parameters are on."""
    return next(model.parameters()).device


def number_type(device: torch.device) -> torch.dtype:
    """The type that Python computes with, float64, for numbers on a device; float32 on Apple's, which has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def fetch_later(tensor: Tensor) -> Callable[[], Tensor]:
    """Start to copy a tensor from the device that computes; what is returned waits for the copy and gives it."""
    if tensor.device.type != "cuda":
        return tensor.cpu
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def fetch() -> Tensor:
        copied.synchronize()
        return copy

    return fetch


def read_later(tensor: Tensor) -> Callable[[], list[float]]:
    """The same of a few numbers (n)."""
    fetch = fetch_later(tensor)
    return lambda: fetch().tolist()


def one_late(begun: Iterable[tuple[Key, Callable[[], Value]]]) -> Iterator[tuple[Key, Value]]:
    """Results of which each is waited for once the next is begun, so that the device has something to do.

    Where beginning the next fails, the result before comes first.

    Args:
        begun: (key, what waits for the result), begun as they are taken.
    """
    coming, waiting = iter(begun), list[tuple[Key, Callable[[], Value]]]()
    while True:
        try:
            waiting.append(next(coming))
        except BaseException as error:
            yield from ((key, wait()) for key, wait in waiting)
            if isinstance(error, StopIteration):
                return
            raise
        if len(waiting) > 1:
            key, wait = waiting.pop(0)
            yield key, wait()


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device; to a GPU it goes from pinned memory, so that the host need not wait."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")  # elsewhere the host may change the memory too early


def on_device(batches: Iterator[Batches], device: torch.device) -> Generator[Batches, None, None]:
    """The same batches on a GPU, each read and uploaded while the one before is computed; as they are elsewhere.

    A thread takes them and copies them through pinned memory, on a stream of their own, for which the stream of the
    consumer waits, not the host. The GPU holds up to two batches more than the one in use. Not run on a GPU yet.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)

    def upload_next(batches: Iterator[Batches]) -> tuple[Batches, torch.cuda.Event] | None:
        batch = next(batches, None)
        if batch is None:
            return None
        with torch.cuda.stream(stream):  # and its device, which a thread does not have by itself
            return batch.to(device), stream.record_event()

    with closing(ahead(upload_next, repeat(batches), count=1)) as uploads:
        for _, future in uploads:
            found = future.result()
            if found is None:
                return
            batch, uploaded = found
            computing = torch.cuda.current_stream(device)
            computing.wait_event(uploaded)
            for tensor in batch.tensors:  # or its memory could be used again while it is computed with
                tensor.record_stream(computing)
            yield batch


def peak_memory_mib(device: torch.device) -> float:
    """MiB, at most so far: of a GPU's memory in tensors, else of the machine's in this process; 0 where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, whose rusage counts the memory of the parent at the start of a process
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        return int(found[1]) / 2**10 if found else 0.0
    if resource is None:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def keep_freed_memory() -> None:
    """Tell glibc to give freed memory to the next tensor and not back to the system; for the rest of the process.

    A training step frees and asks for gigabytes. By default each large tensor is a mapping of its own, whose pages the
    system fills with zeros when they are first touched: 6 to 9 % of a step on a CPU. Does nothing without glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_MAX, 0)  # no mapping of its own for a large tensor
    library.mallopt(_TRIM_THRESHOLD, -1)  # the end of the heap stays, too


@cache
def bf16_gain(device: torch.device) -> float:
    """How many times as fast as in float32 a device multiplies matrices in bfloat16; measured once, in some 100 ms.

    Instruction sets do not decide it: with AVX512-BF16, PyTorch 2.13 was 2.1 times as fast on an AMD EPYC, and half as
    fast on an Intel Xeon without AMX.
    """
    factors = {dtype: torch.ones(1024, 1024, dtype=dtype, device=device) for dtype in (torch.float32, torch.bfloat16)}
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in factors}
    for _ in range(5):
        for dtype, factor in factors.items():
            start = time.perf_counter()
            (factor @ factor)[0, 0].item()  # waits for a GPU
            seconds[dtype].append(time.perf_counter() - start)
    return min(seconds[torch.float32]) / min(seconds[torch.bfloat16])
