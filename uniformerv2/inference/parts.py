"""Batches that fit into memory, halved where it runs out; and the clips of a video put together."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from uniformerv2.errors import RecipeError
from uniformerv2.model.uniformerv2 import UniFormerV2

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


def over_views(model: UniFormerV2, logits: Tensor, average: str) -> Tensor:
    """Probabilities of videos over their views.

    Args:
        model: says whether they sum to 1.
        logits: (..., views, classes).
        average: `Views.average`.

    Returns:
        (..., classes).

    Raises:
        RecipeError: the maximum for a model whose probabilities sum to 1.
    """
    if average == "logits":
        return model.probabilities(logits.mean(-2))
    if average == "probabilities":
        return model.probabilities(logits).mean(-2)
    if not model.thresholds:
        raise RecipeError("average maximum is for models that name several labels: take probabilities or logits")
    return model.probabilities(logits).amax(-2)


def _halve(rows: int, reason: str, by: object) -> None:
    torch.cuda.empty_cache()
    if by not in _fitting:
        warnings.warn(
            f"memory ran out with {rows} clips at once ({reason}): smaller batches from here on",
            stacklevel=3,
        )
    _fitting[by] = rows // 2
