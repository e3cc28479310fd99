"""A compiled training does what one that is not compiled does."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from models import randn, small_model
from uniformerv2.data.loader import Batch
from uniformerv2.tasks.classification.task import Classification
from uniformerv2.train.optim import train_mode
from uniformerv2.train.parallel import FullBatchesCompiled
from uniformerv2.train.recipe import ModelRecipe, Recipe
from uniformerv2.train.step import TrainingStep

STEPS = 3


def trained(*, compiled: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of some steps, and what they leave: weights, their average, the state of the optimizer."""
    model = small_model(depth=1, global_after=(), checkpoint_blocks=1)
    recipe = Recipe(model=ModelRecipe(arm="x")).vary(
        batch_size=4, accumulate=2, precision="fp32", ema=0.9, mixup=0.2, compile=compiled
    )
    step = TrainingStep(model, Classification(recipe, model), recipe.optimization, batch_size=2)
    train_mode(model)
    torch.manual_seed(0)
    clips = torch.randn(2, 2, 1, 3, 2, 16, 24)
    batches = [Batch(part, torch.tensor([0, 1]), [0, 1], ["a.mp4"] * 2) for part in clips]
    results = [step(batches, count=2, lr=1e-3) for _ in range(STEPS)]
    return [result.means["loss"] for result in results], step.tensors()


def test_a_compiled_step_updates_weights_and_their_average_alike() -> None:
    """By inductor, as users have it."""
    losses, tensors = trained(compiled=True)
    expected_losses, expected = trained(compiled=False)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-5)
    assert tensors.keys() == expected.keys()
    for name, moment in expected.items():
        if name.endswith("exp_avg"):
            torch.testing.assert_close(tensors[name], moment, rtol=0, atol=1e-5, msg=name)
            # AdamW makes full updates of gradients that are nothing but rounding, such as those of the keys' biases
            real, weight = moment.abs() > 1e-5, name.removeprefix("optimizer/").removesuffix(" exp_avg")
            for kind in ("model", "average"):
                ours, plain = (values[f"{kind}/{weight}"][real] for values in (tensors, expected))
                torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5, msg=weight)


def test_nothing_is_compiled_again_for_a_smaller_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    def backend(graph: Any, inputs: list[Any]) -> Any:
        def run(*given: Any) -> Any:
            compiled.append(max(len(tensor) for tensor in given))
            return graph(*given)

        return run

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    model = nn.Conv1d(1, 1, 1)
    called = FullBatchesCompiled(model)
    for clips in (3, 4, 2, 4, 0, 4):
        x = randn(clips, 1, 5)
        torch.testing.assert_close(called(x), model(x))
    assert compiled == [3, 4, 4, 4]
