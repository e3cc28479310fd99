"""Numbers drawn by rule: weights and inputs that need no file, and sums by which two tensors are compared.

They come from integers (SplitMix64, seeded by a hash of a name), and each step to a float is exact. So they are the
same on any platform and with any version of NumPy and PyTorch; test_drawn.py pins them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SUMS = 4  # signed sums of a tensor
FEW = 128  # an output of no more entries is recorded whole

Entry = dict[str, Any]  # what is recorded of a tensor


def splitmix64(seed: int, count: int) -> NDArray[np.uint64]:
    """The first `count` words of SplitMix64 (Steele, Lea and Flood, 2014)."""
    words = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def draw_words(name: str, count: int) -> NDArray[np.uint64]:
    """SplitMix64, seeded by the first eight bytes of the name's SHA-256."""
    return splitmix64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"), count)


def draw(name: str, shape: Sequence[int], *, scale: float = 1.0, centre: float = 0.0) -> Tensor:
    """Evenly spread over centre ± scale, float32, in 2 ** 16 steps; exact where `scale` is a power of two."""
    steps = (draw_words(name, math.prod(shape)) >> np.uint64(48)).astype(np.float64)
    values = centre + scale * ((2 * steps + 1) / 65536 - 1)
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def draw_pixels(name: str, shape: Sequence[int]) -> Tensor:
    """Values 0 to 255, uint8."""
    return torch.from_numpy((draw_words(name, math.prod(shape)) >> np.uint64(56)).astype(np.uint8).reshape(shape))


def draw_state(shapes: Mapping[str, Sequence[int]], *, seed: str) -> dict[str, Tensor]:
    """A state dict in which every tensor counts and activations keep their size, zero-initialised layers included."""
    return {name: _draw_weight(name, shape, f"{seed} {name}") for name, shape in shapes.items()}


def _draw_weight(name: str, shape: Sequence[int], key: str) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    if name.endswith("running_var"):
        return draw(key, shape, scale=0.5, centre=1.0)
    if len(shape) < 2:  # norms are around 1; biases, constants and running means around 0
        return draw(key, shape, scale=0.25, centre=float(name.endswith("weight")))
    # about the square root of 3 / inputs, which gives an output the variance of its inputs
    return draw(key, shape, scale=2.0 ** (1 - math.prod(shape[1:]).bit_length() // 2))


def summarise(outputs: Mapping[str, Tensor]) -> dict[str, Entry]:
    """What is recorded: the values of small outputs, norms and sums of large ones, of gradients and of statistics."""
    sums = ("train.grad.", "train.after.")
    return {
        name: _sums(tensor) if tensor.numel() > FEW or name.startswith(sums) else {"values": tensor.flatten().tolist()}
        for name, tensor in outputs.items()
    }


def _sums(tensor: Tensor) -> Entry:
    """The norm, and the sums of all entries under drawn signs.

    An error e of a tensor changes each sum by a random number of variance |e| ** 2, wherever the error is.
    """
    values = tensor.detach().double().flatten().numpy()
    bits = draw_words("signs", len(values))[:, None] >> np.arange(SUMS, dtype=np.uint64) & np.uint64(1)
    return {"norm": float(np.linalg.norm(values)), "sums": (values @ (1.0 - 2.0 * bits)).tolist()}


def difference(entry: Entry, recorded: Entry) -> float:
    """How far two summaries are apart: relative to the largest absolute value, or to the norm where there are sums."""
    if entry.keys() != recorded.keys():
        return math.inf
    whole = "values" in recorded
    ours, theirs = (np.array(each["values" if whole else "sums"]) for each in (entry, recorded))
    if ours.shape != theirs.shape:
        return math.inf
    size = np.abs(theirs).max() if whole else recorded["norm"]
    error = float(np.abs(ours - theirs).max() / max(size, 1e-12))
    return math.inf if math.isnan(error) else error
