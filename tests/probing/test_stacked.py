"""Stacked global stages compute what the modules compute, setting by setting."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models import randn, small_model
from uniformerv2.model.uniformerv2 import EncodedFrames, UniFormerV2
from uniformerv2.probing.fitting import stacked_losses
from uniformerv2.probing.stacked import SharedTokens, probe_parameters, stack, stacked_logits, unstack

LABELS = torch.tensor([0, 3, 3])


def probes(name: str, count: int = 3) -> tuple[list[UniFormerV2], EncodedFrames]:
    """Models in double precision that differ in all that a probe trains, and frames that their backbone has encoded."""
    model = small_model(name).double()
    models = [copy.deepcopy(model) for _ in range(count)]
    generator = torch.Generator().manual_seed(1)
    for one in models:
        for parameter in probe_parameters(one).values():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.double)
    with torch.no_grad():
        return models, model.encode(randn(3, 3, 4, 16, 24).double())


def stacked_of(models: list[UniFormerV2]) -> dict[str, Tensor]:
    of_all = [probe_parameters(model) for model in models]
    return {name: torch.stack([of[name].detach() for of in of_all]).requires_grad_() for name in of_all[0]}


@pytest.mark.parametrize("name", ["scene", "plain", "siglip", "dinov2", "downsampling", "temporal"])
def test_values_and_gradients_are_those_of_each_model(name: str) -> None:
    """With and without class tokens, registers, QuickGELU and local UniBlocks."""
    models, encoded = probes(name)
    stacked = stacked_of(models)
    logits = stacked_logits(models[0].config, stacked, SharedTokens.of(models[0], encoded))
    stacked_losses(logits, LABELS).sum().backward()
    for number, model in enumerate(models):
        expected = model(encoded)
        torch.testing.assert_close(logits[number], expected)
        F.cross_entropy(expected, LABELS).backward()
        for key, parameter in probe_parameters(model).items():
            torch.testing.assert_close(stacked[key].grad[number], parameter.grad, msg=key)


def test_settings_begin_as_the_model_and_end_in_it() -> None:
    (model, other), encoded = probes("scene", 2)
    stacked = stack(model, 2)
    tokens = SharedTokens.of(model, encoded)
    for logits in stacked_logits(model.config, stacked, tokens):
        torch.testing.assert_close(logits, model(encoded))
    unstack(model, stacked_of([model, other]), 1)
    torch.testing.assert_close(model(encoded), other(encoded))


def test_a_setting_that_is_not_finite_moves_no_gradient_of_another() -> None:
    models, encoded = probes("scene")
    gradients = []
    for broken in (False, True):
        stacked = stacked_of(models)
        if broken:
            for tensor in stacked.values():
                tensor.data[1] = torch.nan
        logits = stacked_logits(models[0].config, stacked, SharedTokens.of(models[0], encoded))
        stacked_losses(logits, LABELS).sum().backward()
        gradients.append([tensor.grad[[0, 2]] for tensor in stacked.values()])
    for clean, beside in zip(*gradients, strict=True):
        assert torch.equal(clean, beside)
