"""The device that computes: its choice, its memory, its speed in bfloat16."""

from __future__ import annotations

import ctypes
import platform
import re
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from uniformerv2.errors import RecipeError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# parameters of glibc's mallopt (malloc.h)
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


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


def read_later(tensor: Tensor) -> Callable[[], list[float]]:
    """Start to copy a few numbers (n) from the device that computes; what is returned waits for them and gives them."""
    if tensor.device.type != "cuda":
        return tensor.tolist
    numbers = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    numbers.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        return numbers.tolist()

    return read


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device; to a GPU it goes from pinned memory, so that the host need not wait."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


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
