"""Memory of weights that are maps of a file, given back."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import Tensor, nn

PAGEMAP = Path("/proc/self/pagemap")  # Linux: 64 bits about every page of this process (admin-guide/mm/pagemap)
IN_USE, OF_A_FILE = 3 << 62, 1 << 61  # in memory or swapped out; not this process's own


def release_mapped_weights(module: nn.Module) -> None:
    """Let go of the memory of weights that are maps of a file; who uses one again reads it again.

    A map takes memory once it was read, and keeps it. Weights that changed since, or are none of a file, stay as they
    are. Does nothing where the system does not tell them apart. No other thread may write to the weights meanwhile.
    """
    if sys.platform != "linux":
        return
    try:
        pagemap = PAGEMAP.open("rb")
    except OSError:  # a system that only resembles Linux, or hides it
        return
    madvise = ctypes.CDLL(None).madvise
    with pagemap:
        for weight in module.parameters():
            if weight.device.type == "cpu":
                start, count = _pages(weight)
                # for any other page this would be the loss of what it holds
                if _of_a_file(pagemap, start, count):
                    address, length = (ctypes.c_size_t(pages * mmap.PAGESIZE) for pages in (start, count))
                    madvise(address, length, mmap.MADV_DONTNEED)


def _pages(tensor: Tensor) -> tuple[int, int]:
    """The first page that a contiguous tensor touches, and how many it touches."""
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    first = start // mmap.PAGESIZE
    return first, -(-end // mmap.PAGESIZE) - first


def _of_a_file(pagemap: BinaryIO, start: int, count: int) -> bool:
    """Whether all pages that are in use hold what a file holds."""
    pagemap.seek(8 * start)
    pages = np.frombuffer(pagemap.read(8 * count), dtype=np.uint64)
    return bool(np.all((pages & np.uint64(IN_USE) == 0) | (pages & np.uint64(OF_A_FILE) != 0)))
