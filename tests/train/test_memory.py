from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# bytes of the heap that a process keeps once a tensor is freed
CODE = """
import ctypes, torch
from uniformerv2.train.memory import keep_freed_memory

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
