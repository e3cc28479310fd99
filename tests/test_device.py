from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from uniformerv2 import device
from uniformerv2.device import bf16_gain


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
