"""Fewer tokens: models that compute less, approximately the same."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, cast, get_args

from torch import nn

from uniformerv2.errors import RecipeError
from uniformerv2.inference.merging import MergingTransformer, merging_obstacle
from uniformerv2.inference.sharing import sharing_obstacle
from uniformerv2.inference.unchanged import SkippingTransformer
from uniformerv2.model.uniformerv2 import UniFormerV2

Method = Literal["merge", "unchanged"]


@dataclass(frozen=True)
class Reduction:
    """How the image blocks compute fewer tokens.

    "merge" averages similar patches of a frame; `amount` is the share of them that is merged into others by the last
    block, between 0 and 1. "unchanged" keeps the tokens of a patch until its pixels change; `amount` is the mean
    absolute difference of the pixels, in [0, 1], up to which it counts as unchanged.

    Raises:
        RecipeError: another method, or an amount that is out of range.
    """

    method: Method
    amount: float

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise RecipeError(f"the tokens can be reduced by {' or '.join(get_args(Method))}, got {self.method!r}")
        inside = 0 < self.amount < 1 if self.method == "merge" else 0 <= self.amount < 1
        if not inside:
            raise RecipeError(f"the amount of {self.method} must be between 0 and 1, got {self.amount:g}")

    @classmethod
    def parse(cls, text: str) -> Reduction:
        """From METHOD:AMOUNT, such as "merge:0.5". Raises RecipeError for anything else."""
        method, _, amount = text.partition(":")
        try:
            number = float(amount)
        except ValueError:
            raise RecipeError(f"a reduction is METHOD:AMOUNT, such as merge:0.5, got {text!r}") from None
        return cls(cast(Method, method), number)  # checked by the constructor

    def __str__(self) -> str:
        return f"{self.method}:{self.amount:g}"


def reduce_tokens(model: UniFormerV2, reduction: Reduction) -> UniFormerV2:
    """A model that computes fewer tokens, with the same weights in memory.

    Raises:
        RecipeError: this architecture does not allow it.
    """
    merging = reduction.method == "merge"
    obstacle = merging_obstacle(model.config) if merging else sharing_obstacle(model.config)
    if obstacle:
        raise RecipeError(f"this model cannot reduce its tokens by {reduction.method}: {obstacle}")
    reduced = copy.copy(model)
    reduced._modules = dict(model._modules)
    if merging:
        backbone: nn.Module = MergingTransformer(model.backbone, reduction.amount)
    else:
        backbone = SkippingTransformer(model.backbone, model.preprocessing, reduction.amount)
    reduced.backbone = backbone  # type: ignore[assignment]  # only its `encode` is called
    return reduced.eval()
