"""What the host reads back from the device while it trains and predicts: a dispatch mode sees it on a CPU too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from models import randomised, small_model
from readback import ReadBack
from uniformerv2.data.loader import Batch
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.model.wrappers import inference_copy
from uniformerv2.tasks.classification.task import Classification
from uniformerv2.train import step as step_module
from uniformerv2.train.optim import train_mode
from uniformerv2.train.recipe import ModelRecipe, Recipe
from uniformerv2.train.step import NotFiniteError, TrainingStep

STEPS = 20


@pytest.fixture
def model() -> UniFormerV2:
    return randomised(small_model("scene", checkpoint_blocks=2))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to the numbers of each step: "asked" and "read"."""
    happened: list[str] = []
    genuine = step_module.read_later

    def watched(tensor: Tensor) -> Callable[[], list[float]]:
        assert tensor.numel() < 10
        read = genuine(tensor)
        happened.append("asked")
        return lambda: (happened.append("read"), read())[1]

    monkeypatch.setattr(step_module, "read_later", watched)
    return happened


def batch(model: UniFormerV2, bad: bool = False) -> Batch:
    shape = model.preprocessing
    clips = torch.randn(2, 1, 3, shape.num_frames, *shape.size)
    return Batch(clips / (0 if bad else 1), torch.tensor([0, 1]), [0, 1], ["bad.mp4" if bad else "a.mp4"] * 2)


@pytest.mark.parametrize("options", [{}, {"mixup": 0.2, "cutmix": 1.0, "accumulate": 2, "ema": 0.9}])
def test_a_training_step_reads_one_small_tensor_a_step_late(
    model: UniFormerV2, reads: list[str], options: dict[str, Any]
) -> None:
    recipe = Recipe(model=ModelRecipe(arm="x")).vary(batch_size=4, precision="fp32", **options)
    step = TrainingStep(model, Classification(recipe, model), recipe.optimization, batch_size=2)
    train_mode(model)
    mode = ReadBack([*model.parameters(), *model.buffers()])
    before = None
    with mode:
        for _ in range(STEPS):
            batches = [batch(model) for _ in range(recipe.optimization.accumulate)]
            result = step(batches, count=len(batches), lr=1e-4)
            if before is not None:
                assert before.means["loss"] > 0
            before = result
    assert not mode.waits
    assert reads == ["asked", *["asked", "read"] * (STEPS - 1)]


def test_the_weights_stay_as_they_were_before_a_bad_step_however_late_it_is_read(model: UniFormerV2) -> None:
    recipe = Recipe(model=ModelRecipe(arm="x")).vary(batch_size=2, precision="fp32", ema=0.9)
    step = TrainingStep(model, Classification(recipe, model), recipe.optimization, batch_size=2)
    train_mode(model)
    assert step([batch(model)], lr=1e-3).means
    kept = {name: tensor.clone() for name, tensor in step.tensors().items()}
    result = step([batch(model, bad=True)], lr=1e-3, name=" at step 2")
    for _ in range(2):
        step([batch(model)], lr=1e-3)
    for name, tensor in step.tensors().items():
        if not name.split(".")[-1].startswith(("running", "num_batches")):
            assert torch.equal(tensor, kept[name]), name
    with pytest.raises(NotFiniteError, match=r"at step 2; .*the clips themselves; files of the batch: bad.mp4"):
        _ = result.means


def test_the_model_waits_for_nothing_in_a_prediction(model: UniFormerV2) -> None:
    classify = inference_copy(model)
    mode = ReadBack(classify.parameters())
    with torch.inference_mode(), mode:
        for _ in range(STEPS):
            scores = classify(batch(model).clips[:, 0])
    assert not mode.waits
    with mode:
        scores.max().item()
    assert mode.waits == {"_local_scalar_dense": 1}
