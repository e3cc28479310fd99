from __future__ import annotations

import torch
from torch import nn

from uniformerv2.train.frozen import train_mode


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
