"""Release the memory of weights that are mapped from a file."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import nn

PAGEMAP = Path("/proc/self/pagemap")  # Linux: 64 bits for each page of this process (admin-guide/mm/pagemap)
PRESENT_OR_SWAPPED, FILE_BACKED = 3 << 62, 1 << 61


def release_mapped_weights(module: nn.Module) -> None:
    """Release the memory of weights that are mapped from a file; they are read again when they are used again.

    A mapped page stays in memory once it was read. Weights that changed since, or that no file backs, stay in memory.
    Does nothing where the system does not tell them apart. No other thread may write to the weights meanwhile.
    """
    if sys.platform != "linux":
        return
    try:
        pagemap = PAGEMAP.open("rb")
    except OSError:  # another system with Linux's name, or one that denies access
        return
    madvise = ctypes.CDLL(None).madvise
    with pagemap:
        for weight in module.parameters():
            if weight.device.type == "cpu":
                start = weight.data_ptr() // mmap.PAGESIZE  # the first page that the weight touches
                count = -(-(weight.data_ptr() + weight.nbytes) // mmap.PAGESIZE) - start
                # any other page would lose what it holds
                if _file_backed(pagemap, start, count):
                    address, length = (ctypes.c_size_t(pages * mmap.PAGESIZE) for pages in (start, count))
                    madvise(address, length, mmap.MADV_DONTNEED)


def _file_backed(pagemap: BinaryIO, start: int, count: int) -> bool:
    """Whether a file backs all of the pages that are in memory or swapped out."""
    pagemap.seek(8 * start)
    pages = np.frombuffer(pagemap.read(8 * count), dtype=np.uint64)
    return bool(np.all((pages & np.uint64(PRESENT_OR_SWAPPED) == 0) | (pages & np.uint64(FILE_BACKED) != 0)))
