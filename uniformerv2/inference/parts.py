"""Batches that fit into memory: where it runs out, they are halved, and the run goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from uniformerv2.errors import RecipeError

Result = TypeVar("Result")

_fitting: WeakKeyDictionary[object, int] = WeakKeyDictionary()  # rows at once, by whose memory ran out with more


def in_parts(compute: Callable[[Tensor], Result], rows: Tensor, size: int, *, by: object) -> list[Result]:
    """The results of some rows after the other.

    Where the memory of the device runs out, half as many are computed at once from then on, with a warning the first
    time.

    Args:
        compute: the result of tensors of up to `size` of the rows; each row has the same result among any others.
        rows: at least one.
        size: rows at once.
        by: what computes; how many rows fit is remembered as long as it lives.

    Raises:
        RecipeError: memory runs out for one row.
    """
    results: list[Result] = []
    first = 0
    while first < len(rows):
        part = rows[first : first + min(size, _fitting.get(by, size))]
        reason = ""
        try:
            results.append(compute(part))
            first += len(part)
        except torch.OutOfMemoryError as error:
            reason = str(error).split(". ")[0]
            if len(part) == 1:
                raise RecipeError(f"one clip at a time takes more memory than there is: {reason}") from error
        if reason:  # here, as the traceback held what was computed so far
            _halve(len(part), reason, by)
    return results


def _halve(rows: int, reason: str, by: object) -> None:
    torch.cuda.empty_cache()
    if by not in _fitting:
        warnings.warn(
            f"memory ran out with {rows} clips at once ({reason}): smaller batches from here on",
            stacklevel=3,
        )
    _fitting[by] = rows // 2
