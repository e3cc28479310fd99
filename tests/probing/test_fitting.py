"""The optimizer of many settings is torch's AdamW of each."""

from __future__ import annotations

import copy

import torch
from torch.nn import functional as F

from models import randn, small_model
from uniformerv2.model.uniformerv2 import EncodedFrames, UniFormerV2
from uniformerv2.probing.fitting import Scores, StackedAdamW, stacked_losses
from uniformerv2.probing.recipe import Setting
from uniformerv2.probing.run import rate_settings
from uniformerv2.probing.stacked import SharedTokens, probe_parameters, stack, stacked_logits
from uniformerv2.train.optim import build_optimizer, set_learning_rate
from uniformerv2.train.recipe import Optimization

LABELS = torch.tensor([0, 3])
RATES = (0.5, 1.0, 0.25)  # of a schedule, step by step
SETTINGS = [Setting(1e-2, 0.0), Setting(3e-3, 0.8), Setting(1e-2, 0.8)]


def start() -> tuple[UniFormerV2, EncodedFrames]:
    model = small_model("scene").double().requires_grad_(False)
    for parameter in probe_parameters(model).values():
        parameter.requires_grad_()
    return model, model.encode(randn(2, 3, 4, 16, 24).double())


def test_steps_are_those_that_the_training_takes_with_each_setting() -> None:
    model, encoded = start()
    stacked, tokens = stack(model, len(SETTINGS)), SharedTokens.of(model, encoded)
    optimizer = StackedAdamW(stacked, SETTINGS, (0.9, 0.999))
    for rate in RATES:
        optimizer.step(stacked_losses(stacked_logits(model.config, stacked, tokens), LABELS), rate=rate)
    for number, setting in enumerate(SETTINGS):
        alone = copy.deepcopy(model)
        own = Optimization(lr=setting.learning_rate, weight_decay=setting.weight_decay)
        reference = build_optimizer(alone, own)
        for rate in RATES:
            reference.zero_grad()
            F.cross_entropy(alone(encoded), LABELS).backward()
            set_learning_rate(reference, rate * own.lr)
            reference.step()
        for name, parameter in probe_parameters(alone).items():
            torch.testing.assert_close(
                stacked[name][number], parameter, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}"
            )
            assert not torch.equal(parameter, probe_parameters(model)[name])


def test_a_setting_that_diverges_is_marked_and_the_others_learn_on() -> None:
    model, encoded = start()
    tokens = SharedTokens.of(model, encoded)
    probabilities = {}
    for rate in (1e-2, 1e300):
        stacked = stack(model, 2)
        optimizer = StackedAdamW(stacked, [Setting(1e-2, 0.1), Setting(rate, 0.1)], (0.9, 0.999))
        for _ in range(4):
            optimizer.step(stacked_losses(stacked_logits(model.config, stacked, tokens), LABELS), rate=1.0)
        probabilities[rate] = stacked_logits(model.config, stacked, tokens).detach().softmax(-1)
    assert torch.equal(probabilities[1e300][0], probabilities[1e-2][0])
    first, second = rate_settings([Setting(1e-2, 0.1), Setting(1e300, 0.1)], Scores(probabilities[1e300], LABELS))
    assert first.top1 is not None
    assert (second.top1, second.loss) == (None, None)
    assert min((second, first), key=lambda setting: setting.order) == first
