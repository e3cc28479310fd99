from __future__ import annotations

import pytest
import torch
from torch import nn

from uniformerv2.train.ema import WeightAverage


def test_the_average_follows_the_formula_and_counts_are_copied() -> None:
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, 0.3)
    expected = 1.0
    for number, weight in enumerate((3.0, -1.0, 2.0, 5.0, 7.0)):
        nn.init.constant_(model.weight, weight)
        model.num_batches_tracked.fill_(number)
        average.update()
        decay = min(0.3, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * weight
    assert average.average["weight"].item() == pytest.approx(expected)
    assert average.average["num_batches_tracked"].item() == 4


def test_the_model_has_the_average_only_inside_and_gets_its_weights_back_bit_for_bit() -> None:
    model = nn.Linear(50, 50)
    average = WeightAverage(model, 0.9)
    nn.init.normal_(model.weight)
    average.update()
    weights, mean = model.weight.detach().clone(), average.average["weight"].clone()
    with average.applied():
        assert torch.equal(model.weight, mean)
    assert torch.equal(model.weight, weights)
    assert torch.equal(average.average["weight"], mean)
