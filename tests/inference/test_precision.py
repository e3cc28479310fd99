"""The precision that is taken, and what is said of it."""

from __future__ import annotations

import pytest
import torch

from uniformerv2.errors import RecipeError
from uniformerv2.inference import precision
from uniformerv2.inference.precision import pick_precision

CPU = torch.device("cpu")


def pretend(monkeypatch: pytest.MonkeyPatch, *, has_bf16: bool, share: float = 1.0) -> None:
    """A processor that has the instructions or not, and takes `share` of the time of fp32 with them."""
    monkeypatch.setattr(precision, "has_bf16", lambda device: has_bf16)
    monkeypatch.setattr(precision, "_product_time", lambda dtype, device: share if dtype == torch.bfloat16 else 1.0)


def test_auto_is_bf16_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, has_bf16=True, share=0.5)
    assert pick_precision("auto", CPU) == (
        "bf16",
        "precision auto is bf16: a product in bf16 takes 0.50 of the time in fp32",
    )


@pytest.mark.parametrize(("has", "share", "why"), [(True, 1.4, "takes 1.40"), (False, 0.5, "in hardware")])
def test_auto_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch, has: bool, share: float, why: str) -> None:
    pretend(monkeypatch, has_bf16=has, share=share)
    chosen, note = pick_precision("auto", CPU)
    assert chosen == "fp32"
    assert why in note


def test_what_is_asked_for_is_taken_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, has_bf16=False)
    assert pick_precision("fp32", CPU) == ("fp32", "")
    with pytest.raises(RecipeError, match="take fp32 or auto"):
        pick_precision("bf16", CPU)


def test_this_processor_can_be_asked() -> None:
    assert precision.has_bf16(CPU) in (True, False)
    assert precision._product_time(torch.float32, CPU, side=8, repeats=1) > 0
