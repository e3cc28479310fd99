from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from uniformerv2.train.optim import build_optimizer, learning_rate
from uniformerv2.train.recipe import Optimization


def test_warm_up_is_linear_and_the_cosine_ends_at_the_last_step() -> None:
    optimization = Optimization(epochs=11, warmup_epochs=1.0, lr=1.0, start_lr=0.2, end_lr=0.4)
    rates = [learning_rate(step, steps_per_epoch=10, optimization=optimization) for step in range(110)]
    assert rates[0] == 0.2
    assert rates[5] == pytest.approx(0.6)  # half of the warm-up
    assert rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.4)
    # halfway between the peak (step 10) and the last step (109) lies the mean of the two rates
    assert (rates[59] + rates[60]) / 2 == pytest.approx(0.7)
    # a third of the way, cos(60 degrees) = 1/2: three quarters of the way up from end_lr
    assert rates[10 + 33] == pytest.approx(0.4 + 0.75 * 0.6)
    assert all(before > after for before, after in itertools.pairwise(rates[10:]))


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    optimization = Optimization(epochs=2, warmup_epochs=0, lr=0.5)
    assert learning_rate(0, steps_per_epoch=3, optimization=optimization) == 0.5


def test_a_run_that_is_all_warm_up_never_exceeds_lr() -> None:
    optimization = Optimization(epochs=1, warmup_epochs=1.0, lr=1.0, start_lr=0.0)
    assert [learning_rate(step, steps_per_epoch=4, optimization=optimization) for step in range(4)] == [
        0.0,
        0.25,
        0.5,
        0.75,
    ]


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    model.register_parameter("frozen", nn.Parameter(torch.ones(2, 2), requires_grad=False))
    for parameter in model.parameters():
        parameter.data.fill_(2.0)
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(model, Optimization(lr=0.1, weight_decay=0.5)).step()
    # without a gradient AdamW only multiplies by 1 - lr · weight_decay
    assert model[0].weight.tolist() == [[pytest.approx(2 * (1 - 0.1 * 0.5))] * 3] * 3
    for untouched in (model[0].bias, model[1].weight, model[1].bias, model.frozen):
        assert (untouched == 2).all()


def test_the_step_is_that_of_the_adamw_paper() -> None:
    parameter = nn.Linear(1, 1, bias=False)
    parameter.weight.data.fill_(1.0)
    optimizer = build_optimizer(parameter, Optimization(lr=0.1, weight_decay=0.0, betas=(0.8, 0.9)))
    first = second = 0.0
    expected = 1.0
    for step, gradient in enumerate((0.5, -2.0), start=1):
        parameter.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        expected -= 0.1 * (first / (1 - 0.8**step)) / (math.sqrt(second / (1 - 0.9**step)) + 1e-8)
    assert parameter.weight.item() == pytest.approx(expected, rel=1e-5)
