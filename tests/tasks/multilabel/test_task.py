from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import Constant
from uniformerv2.data.annotations import Annotation
from uniformerv2.data.loader import Batch
from uniformerv2.errors import RecipeError
from uniformerv2.tasks.classification.task import Classification
from uniformerv2.tasks.mixing import Mixing, mix
from uniformerv2.tasks.multilabel.task import Multilabel
from uniformerv2.train.recipe import ModelRecipe, Recipe

RECIPE = Recipe(ModelRecipe(model="Ti/16")).vary(label_smoothing=0.0)
LOGITS = [2.0, 0.5, -1.0]
SHOWN = [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]]


def task_of(recipe: Recipe, training: list[Annotation] | None = None) -> tuple[Multilabel, Any]:
    model: Any = Constant(LOGITS)
    model.labels, model.config = ("a", "b", "c"), type("Config", (), {"num_classes": 3})
    return Multilabel(recipe, model, training=training or []), model


def batch_of(shown: Any, views: int = 1) -> Batch:
    names = [f"{number}.mp4" for number in range(len(shown))]
    return Batch(torch.zeros(len(shown), views, 3, 2, 4, 4), torch.tensor(shown), [*range(len(shown))], names)


def loss_of(recipe: Recipe, shown: Any = SHOWN, training: list[Annotation] | None = None) -> float:
    task, model = task_of(recipe, training)
    found = task.loss(model, batch_of(shown))
    assert found is not None
    return found.loss.item()


def expected(there: Any, absent: Any, targets: Any = SHOWN) -> float:
    """A loss, out of what a class costs that is there or not, by its probability."""
    probabilities = [1 / (1 + math.exp(-logit)) for logit in LOGITS]
    of_clips = [
        sum(y * there(p) + (1 - y) * absent(p) for y, p in zip(row, probabilities, strict=True)) for row in targets
    ]
    return sum(of_clips) / len(of_clips)


def test_losses_are_those_of_the_papers() -> None:
    def log(p: float) -> float:
        return -math.log(p)

    found = {name: loss_of(RECIPE.vary(loss=name)) for name in ("cross-entropy", "focal", "asymmetric")}
    assert found["cross-entropy"] == pytest.approx(expected(log, lambda p: log(1 - p)), rel=1e-5)
    focal = expected(lambda p: 0.25 * (1 - p) ** 2 * log(p), lambda p: 0.75 * p**2 * log(1 - p))
    assert found["focal"] == pytest.approx(focal, rel=1e-5)
    asymmetric = expected(log, lambda p: max(p - 0.05, 0) ** 4 * log(1 - max(p - 0.05, 0)))
    assert found["asymmetric"] == pytest.approx(asymmetric, rel=1e-5)


@pytest.mark.parametrize("loss", ["cross-entropy", "focal", "asymmetric"])
@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_losses_and_their_gradients_are_finite_far_from_the_truth(loss: str, logit: float) -> None:
    task, model = task_of(RECIPE.vary(loss=loss))
    model.logits.data.fill_(logit)
    found = task.loss(model, batch_of(SHOWN))
    assert found is not None
    found.loss.backward()
    assert found.loss.isfinite()
    assert model.logits.grad.isfinite().all()


def test_label_smoothing_spreads_what_a_clip_shows_over_the_classes() -> None:
    smoothed = [[0.7 * y + 0.3 * sum(row) / 3 for y in row] for row in SHOWN]
    cost = expected(lambda p: -math.log(p), lambda p: -math.log(1 - p), smoothed)
    assert loss_of(RECIPE.vary(label_smoothing=0.3)) == pytest.approx(cost, rel=1e-5)


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.8), Mixing(cutmix=1.0)])
def test_mixed_clips_show_both_in_their_shares(mixing: Mixing) -> None:
    torch.manual_seed(3)
    found = loss_of(RECIPE.vary(mixup=mixing.mixup, cutmix=mixing.cutmix))
    torch.manual_seed(3)
    _, others, kept = mix(torch.zeros(4, 3, 2, 4, 4), mixing)
    assert 0 < kept < 1
    shown = torch.tensor(SHOWN, dtype=torch.float64)
    targets = kept * shown + (1 - kept) * shown[others]
    cost = expected(lambda p: -math.log(p), lambda p: -math.log(1 - p), targets.tolist())
    assert found == pytest.approx(cost, rel=1e-5)


def test_balanced_weights_make_what_is_there_weigh_as_much_as_what_is_not() -> None:
    """Of eight rows, four show a, one shows b and none c: a weighs 4/4 where it is there, b 7/1, c as without."""
    labels = [("a", ("b",)), ("a", ()), ("a", ()), ("a", ()), *[("", ())] * 4]
    training = [Annotation(Path("x.mp4"), label, other_labels=others) for label, others in labels]
    found = loss_of(RECIPE.vary(class_weights="balanced"), training=training)
    probabilities = torch.tensor(LOGITS, dtype=torch.float64).sigmoid()
    shown = torch.tensor(SHOWN, dtype=torch.float64)
    weights = torch.tensor([1.0, 7.0, 1.0], dtype=torch.float64)
    cost = -(shown * weights * probabilities.log() + (1 - shown) * (1 - probabilities).log()).sum(1).mean()
    assert found == pytest.approx(cost.item(), rel=1e-5)


def test_views_of_a_video_may_show_other_classes() -> None:
    task, model = task_of(RECIPE)
    of_views = [[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 0, 0]]]  # as where one of two views is mirrored
    found = task.loss(model, batch_of(of_views, views=2))
    assert found is not None
    assert found.clips == 4
    cost = expected(lambda p: -math.log(p), lambda p: -math.log(1 - p), [row for video in of_views for row in video])
    assert found.loss.item() == pytest.approx(cost, rel=1e-5)
    assert found.scalars["hit_at_1"] == 1 / 4  # the most likely class is the first


def test_a_batch_without_a_readable_video_has_no_loss() -> None:
    task, model = task_of(RECIPE)
    assert task.loss(model, batch_of([])) is None


def test_what_another_task_has_is_told() -> None:
    with pytest.raises(RecipeError, match="no monitor 'top1'; it has map, micro-map, macro-f1, loss"):
        task_of(RECIPE.vary(monitor="top1"))
    with pytest.raises(RecipeError, match="no loss 'focal'; it has cross-entropy"):
        Classification(RECIPE.vary(loss="focal"), None)  # type: ignore[arg-type]
    assert task_of(RECIPE)[0].monitor == "mean_average_precision"
