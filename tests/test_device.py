from __future__ import annotations

import pytest
import torch

from uniformerv2 import device
from uniformerv2.device import bf16_gain


@pytest.mark.parametrize("ratio", [0.5, 1.2, 2.0])
def test_the_gain_of_bf16_is_the_ratio_of_the_times(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    moments = [0.0]
    for slowdown in (3.0, 1.0, 1.0, 2.0, 1.0):  # other work disturbs some
        for duration in (ratio * slowdown, slowdown):  # float32, bfloat16
            moments += [moments[-1], moments[-1] + duration]
    clock = iter(moments[1:])
    monkeypatch.setattr(device.time, "perf_counter", lambda: next(clock))
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, **options: ones(1, 1, **options))  # nothing is timed
    assert bf16_gain.__wrapped__(torch.device("cpu")) == pytest.approx(ratio)
