"""The choice of a precision, and its reason."""

from __future__ import annotations

import pytest
import torch

from uniformerv2.errors import RecipeError
from uniformerv2.inference import precision
from uniformerv2.inference.precision import pick_inference_precision

CPU = torch.device("cpu")


def pretend(monkeypatch: pytest.MonkeyPatch, *, has_bf16: bool, gain: float = 1.0) -> None:
    """A processor that has the instructions or not, and is so many times as fast with them."""
    monkeypatch.setattr(precision, "has_bf16", lambda device: has_bf16)
    monkeypatch.setattr(precision, "bf16_gain", lambda device: gain)


def test_auto_is_bf16_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, has_bf16=True, gain=2.0)
    assert pick_inference_precision("auto", CPU) == (
        "bf16",
        "precision auto is bf16: a product in bf16 is 2.00 times as fast as in fp32",
    )


@pytest.mark.parametrize(("has", "gain", "why"), [(True, 0.7, "is 0.70 times"), (False, 2.0, "in hardware")])
def test_auto_falls_back_with_its_reason(monkeypatch: pytest.MonkeyPatch, has: bool, gain: float, why: str) -> None:
    pretend(monkeypatch, has_bf16=has, gain=gain)
    chosen, note = pick_inference_precision("auto", CPU)
    assert chosen == "fp32"
    assert why in note


def test_a_precision_by_name_is_taken_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, has_bf16=False)
    assert pick_inference_precision("fp32", CPU) == ("fp32", "")
    with pytest.raises(RecipeError, match="take fp32 or auto"):
        pick_inference_precision("bf16", CPU)


def test_this_processor_has_an_answer() -> None:
    assert precision.has_bf16(CPU) in (True, False)
