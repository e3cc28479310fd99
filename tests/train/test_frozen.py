from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from models import architecture
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.train.optim import freeze_unused, train_mode


def test_frozen_parts_keep_their_statistics_and_drop_nothing() -> None:
    frozen = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)).requires_grad_(False)
    model = nn.Sequential(frozen, nn.Linear(2, 2), nn.Dropout(0.5))
    model.eval()
    train_mode(model)
    assert [name for name, part in model.named_modules() if part.training] == ["", "1", "2"]
    before = frozen[1].running_mean.clone()
    model(torch.randn(8, 2))
    assert torch.equal(frozen[1].running_mean, before)


def test_without_frozen_parts_everything_trains() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    train_mode(model)
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize("mixes", [True, False])
@pytest.mark.parametrize("pool", ["class_token", "mean", "attention"])
@pytest.mark.parametrize("global_after", [(0, 1), (2,), ()])
def test_what_has_no_gradient_is_frozen_and_nothing_else(mixes: bool, pool: Any, global_after: tuple[int, ...]) -> None:
    if not mixes and not global_after:
        return  # no such model
    options = {"pool": pool, "pool_norm": True, "global_after": global_after, "mix_class_token": mixes}
    model = UniFormerV2(architecture("clip", register_tokens=1, local_blocks="attention", **options))
    model(torch.rand(1, 3, 2, 16, 16)).sum().backward()
    useless = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    freeze_unused(model)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == useless
    assert bool(useless) == (not mixes)
