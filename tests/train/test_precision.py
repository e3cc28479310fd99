from __future__ import annotations

from typing import Any

import pytest
import torch

from uniformerv2.errors import RecipeError
from uniformerv2.train import precision
from uniformerv2.train.precision import (
    BF16_MIN_WIDTH,
    allow_tf32,
    autocast,
    loss_scaler,
    pick_compile,
    pick_training_precision,
)


@pytest.mark.parametrize("hardware", [True, False])
def test_auto_on_a_cpu_needs_hardware_and_width(monkeypatch: pytest.MonkeyPatch, hardware: bool) -> None:
    monkeypatch.setattr(precision, "bf16_gain", lambda device: 1.4 if hardware else 1.2)
    cpu = torch.device("cpu")
    assert pick_training_precision("auto", cpu, width=BF16_MIN_WIDTH) == ("bf16" if hardware else "fp32")
    assert pick_training_precision("auto", cpu, width=BF16_MIN_WIDTH - 1) == "fp32"
    assert pick_training_precision("bf16", cpu, width=8) == "bf16"
    assert pick_training_precision("fp32", cpu, width=4096) == "fp32"


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_what_only_gpus_compute_is_refused_elsewhere(precision: Any) -> None:
    with pytest.raises(RecipeError, match=rf"precision {precision} needs a GPU of NVIDIA's, got device cpu; take fp32"):
        pick_training_precision(precision, torch.device("cpu"), width=768)
    assert pick_training_precision(precision, torch.device("cuda"), width=768) == precision


@pytest.mark.parametrize("works", [True, False])
def test_auto_compiles_on_a_gpu_where_that_works(monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    monkeypatch.setattr(precision, "can_compile", lambda device: works)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [pick_compile("auto", device) for device in (cpu, gpu)] == [False, works]
    assert [pick_compile(wanted, device) for wanted in (True, False) for device in (cpu, gpu)] == [True] * 2 + [
        False
    ] * 2


def test_autocast_and_scaler_are_those_of_the_precision() -> None:
    cpu = torch.device("cpu")
    for wanted, dtype in (("fp32", None), ("tf32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with autocast(wanted, cpu):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (dtype or torch.float32)
        assert loss_scaler(wanted, cpu).is_enabled() == (wanted == "fp16")


def test_float32_products_are_exact_unless_tf32_is_asked_for() -> None:
    allow_tf32("tf32")
    assert torch.backends.cuda.matmul.allow_tf32
    allow_tf32("fp32")
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
