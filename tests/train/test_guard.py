from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from uniformerv2.distributed import Ranks
from uniformerv2.train.step import NOTHING_BAD, first_bad


class Root(nn.Module):
    """The square root, whose gradient at 0 is infinite."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


class Logarithm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


def model(last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), last, nn.Identity())


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (Logarithm(), "the output of 1"),  # of a negative number or of zero
        (Root(), "the gradient at the output of 0.1"),
        (nn.Identity(), NOTHING_BAD),
    ],
)
def test_the_first_layer_is_named(last: nn.Module, reason: str) -> None:
    net, clips = model(last), torch.tensor([[0.0, 0.0]])
    nn.init.zeros_(net[0][0].bias)
    assert first_bad(net, lambda: net(clips).sum(), Ranks()) == reason


def test_bad_clips_and_bad_weights_are_named() -> None:
    net = model(nn.Identity())
    assert first_bad(net, lambda: net(torch.tensor([[1.0, float("nan")]])).sum(), Ranks()) == "the clips themselves"
    with torch.no_grad():
        net[0][0].bias[1] = float("inf")
    assert first_bad(net, lambda: net(torch.ones(1, 2)).sum(), Ranks()) == "the weights 0.0.bias"


def test_the_loss_itself_may_be_bad_and_no_hook_stays() -> None:
    net = model(nn.Identity())
    assert first_bad(net, lambda: net(torch.ones(1, 2)).sum() / 0, Ranks()) == NOTHING_BAD
    assert first_bad(net, lambda: None, Ranks()) == NOTHING_BAD
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
