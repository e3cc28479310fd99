from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# bytes of a tensor that stay with the process once it is freed
CODE = """
import torch
from uniformerv2.train.memory import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

if {keep}:
    keep_freed_memory()
before = resident()
tensor = torch.ones(64 << 20, dtype=torch.uint8)
del tensor
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_freed_memory_stays_with_the_process() -> None:
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", CODE.format(keep=keep)], capture_output=True, check=True).stdout)
        for keep in (True, False)
    )
    assert kept > 60 << 20
    assert given_back < 4 << 20
