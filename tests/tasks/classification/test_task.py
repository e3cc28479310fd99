from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import Constant, batch_of
from uniformerv2.data.annotations import Annotation
from uniformerv2.tasks.classification.task import Classification
from uniformerv2.tasks.mixing import Mixing, mix
from uniformerv2.train.recipe import ModelRecipe, Recipe

RECIPE = Recipe(ModelRecipe(model="Ti/16")).vary(label_smoothing=0.3)


def task_of(recipe: Recipe) -> Classification:
    return Classification(recipe, None)  # type: ignore[arg-type]  # nothing is held out


def test_the_loss_is_smoothed_cross_entropy() -> None:
    found = task_of(RECIPE).loss(Constant([2.0, 1.0, 0.0]), batch_of([0, 0, 2, 1]))
    total = math.log(math.exp(2) + math.exp(1) + 1)
    logs = [2 - total, 1 - total, -total]  # log probabilities
    smoothed = [-0.7 * logs[label] - 0.3 * sum(logs) / 3 for label in (0, 0, 2, 1)]
    assert found.loss.item() == pytest.approx(sum(smoothed) / 4, rel=1e-6)
    assert found.scalars == {"accuracy": 0.5}
    assert tuple(found.scalars) == Classification.scalars
    assert found.clips == 4


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.8), Mixing(cutmix=1.0)])
def test_the_loss_of_mixed_clips_is_that_of_the_mixed_and_smoothed_target(mixing: Mixing) -> None:
    logits = [2.0, 1.0, 0.0]
    task = task_of(RECIPE.vary(mixup=mixing.mixup, cutmix=mixing.cutmix))
    labels = torch.tensor([0, 0, 2, 1])
    torch.manual_seed(3)
    found = task.loss(Constant(logits), batch_of(labels.tolist()))
    torch.manual_seed(3)
    _, others, kept = mix(torch.zeros(4, 3, 2, 4, 4), mixing)
    assert 0 < kept < 1
    one_hot = torch.eye(3)[labels]
    target = (kept * one_hot + (1 - kept) * one_hot[others]) * 0.7 + 0.3 / 3
    expected = -(target * torch.tensor(logits).log_softmax(0)).sum(1).mean()
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    wanted = labels if kept >= 0.5 else labels[others]
    assert found.scalars["accuracy"] == (wanted == 0).float().mean().item()


@pytest.mark.parametrize("mixup", [0.0, 0.8])
def test_balanced_class_weights_are_a_mean_of_one_over_the_training_rows(mixup: float) -> None:
    """Six rows of class 0, three of 1 and one of 2: weights rows / (classes x count) = 10/18, 10/9 and 10/3."""
    logits, names = [2.0, 1.0, 0.0], ("a", "b", "c")
    model: Any = Constant(logits)
    model.labels = names
    training = [Annotation(Path("x.mp4"), name) for name in "aaaaaabbbc"]
    recipe = RECIPE.vary(class_weights="balanced", mixup=mixup)
    task = Classification(recipe, model, training=training)
    labels = torch.tensor([0, 0, 2, 1])
    torch.manual_seed(3)
    found = task.loss(model, batch_of(labels.tolist()))
    torch.manual_seed(3)
    _, others, kept = mix(torch.zeros(4, 3, 2, 4, 4), Mixing(mixup=mixup))
    smoothed = -(torch.eye(3) * 0.7 + 0.3 / 3) @ torch.tensor(logits).log_softmax(0)  # the loss of each label
    each = torch.tensor([10 / 18, 10 / 9, 10 / 3]) * smoothed
    assert found is not None
    expected = (kept * each[labels] + (1 - kept) * each[labels[others]]).sum() / 4
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_each_view_of_a_repeated_video_is_a_clip() -> None:
    batch = batch_of([0, 1])
    batch.clips = batch.clips.repeat(1, 3, 1, 1, 1, 1)
    model = Constant([5.0, 0.0])
    found = task_of(RECIPE).loss(model, batch)
    assert model.seen == [6]
    assert found.clips == 6
    assert found.scalars["accuracy"] == 0.5


def test_views_of_a_video_may_have_labels_of_their_own() -> None:
    batch = batch_of([0, 1])
    batch.clips = batch.clips.repeat(1, 3, 1, 1, 1, 1)
    batch.labels = torch.tensor([[0, 0, 1], [1, 1, 1]])
    found = task_of(RECIPE).loss(Constant([5.0, 0.0]), batch)
    assert found.clips == 6
    assert found.scalars["accuracy"] == pytest.approx(2 / 6)


def test_class_weights_count_mirrored_clips_where_they_are_seen() -> None:
    """Six rows of left and two of right: with half of the clips mirrored, four of each are seen."""
    model: Any = Constant([0.0] * 4)
    model.labels = ("go left", "go right", "turn left", "wave")
    training = [
        Annotation(Path("x.mp4"), label)
        for label, count in zip(model.labels, (6, 2, 1, 3), strict=True)
        for _ in range(count)
    ]
    recipe = RECIPE.vary(class_weights="balanced", flip_labels="left,right")
    weights = Classification(recipe, model, training=training).class_weights
    assert weights.tolist() == pytest.approx([12 / 16, 12 / 16, 12 / 4, 12 / 12])
    # backwards too: of turn left's row, one half is seen as wave; of wave's three rows, one and a half as turn left
    both = recipe.vary(reverse_labels="turn left,wave;go right,go right")
    weights = Classification(both, model, training=training).class_weights
    assert weights.tolist() == pytest.approx([12 / 16, 12 / 16, 12 / 8, 12 / 8])
    # go left is mirrored as what it shows: three rows as wave, three as go left, of which half become go right
    both = recipe.vary(reverse_labels="go left,wave")
    weights = Classification(both, model, training=training).class_weights
    seen = ((3 + 1.5) / 2 + 1, (3 + 1.5) / 2 + 1, 1, 3 + 1.5)
    assert weights.tolist() == pytest.approx([12 / 4 / count for count in seen])
