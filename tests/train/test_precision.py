from __future__ import annotations

import pytest
import torch

from uniformerv2.train import precision
from uniformerv2.train.precision import BF16_MIN_WIDTH, pick_precision


@pytest.mark.parametrize("hardware", [True, False])
def test_auto_on_a_cpu_needs_hardware_and_width(monkeypatch: pytest.MonkeyPatch, hardware: bool) -> None:
    monkeypatch.setattr(precision, "_cpu_multiplies_bf16", lambda: hardware)
    cpu = torch.device("cpu")
    assert pick_precision("auto", cpu, width=BF16_MIN_WIDTH) == ("bf16" if hardware else "fp32")
    assert pick_precision("auto", cpu, width=BF16_MIN_WIDTH - 1) == "fp32"
    assert pick_precision("bf16", cpu, width=8) == "bf16"
    assert pick_precision("fp32", cpu, width=4096) == "fp32"
