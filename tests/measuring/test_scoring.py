from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import Constant, batch_of
from uniformerv2.data.annotations import Annotation
from uniformerv2.errors import CheckpointError
from uniformerv2.measuring.evaluation import Scoring, average_views, summarise
from uniformerv2.video.views import Views


def test_views_are_averaged_as_probabilities_whatever_the_batch_size() -> None:
    class Brightness(Constant):
        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            super().forward(clips)
            return clips.flatten(1).mean(1, keepdim=True) * torch.tensor([1.0, -1.0])

    clips = torch.linspace(-3, 3, 6).view(2, 3, 1, 1, 1, 1).expand(2, 3, 3, 2, 4, 4)
    # two logits b and -b: the first has probability 1 / (1 + exp(-2b))
    expected = [
        sum(1 / (1 + math.exp(-2 * b)) for b in (-3, -1.8, -0.6)) / 3,
        sum(1 / (1 + math.exp(-2 * b)) for b in (0.6, 1.8, 3)) / 3,
    ]
    for batch_size, seen in ((100, [6]), (6, [6]), (4, [4, 2]), (1, [1] * 6)):
        model = Brightness([0.0, 0.0])
        scores = average_views(model, clips, batch_size=batch_size)  # type: ignore[arg-type]
        assert scores[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
        assert scores.sum(1).tolist() == pytest.approx([1.0, 1.0])
        assert model.seen == seen


def test_logits_can_be_averaged_instead() -> None:
    class Views2(Constant):
        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            return clips.flatten(1).mean(1, keepdim=True) * torch.tensor([1.0, 0.0])

    clips = torch.tensor([4.0, -2.0]).view(1, 2, 1, 1, 1, 1).expand(1, 2, 3, 2, 4, 4)
    model: Any = Views2([0.0, 0.0])
    mean_of_logits = average_views(model, clips, batch_size=8, average="logits")
    assert mean_of_logits[0, 0].item() == pytest.approx(1 / (1 + math.exp(-1)))
    mean_of_probabilities = average_views(model, clips, batch_size=8)
    assert mean_of_probabilities[0, 0].item() == pytest.approx((1 / (1 + math.exp(-4)) + 1 / (1 + math.exp(2))) / 2)


def test_accuracy_is_counted_per_class_and_over_five_guesses() -> None:
    labels = [f"class {number}" for number in range(7)]
    batch = batch_of([0, 4, 5, 0])
    rows = [Annotation(Path(path), labels[label]) for path, label in zip(batch.paths, batch.labels, strict=True)]
    probabilities = [0.3, 0.2, 0.15, 0.12, 0.11, 0.1, 0.02]
    model: Any = Constant([math.log(share) for share in probabilities])
    result = summarise(labels, rows, [Scoring().score(model, batch, range(4))], Views())
    assert result.top1 == 0.5
    assert result.top5 == 0.75  # class 4 is the fifth guess, class 5 the sixth
    assert [(one.videos, one.correct, one.top1) for one in result.classes] == [
        (2, 2, 1.0),
        (0, 0, None),
        (0, 0, None),
        (0, 0, None),
        (1, 0, 0.0),
        (1, 0, 0.0),
        (0, 0, None),
    ]
    assert result.mean_class_accuracy == pytest.approx(1 / 3)  # of the three classes with videos
    assert result.loss == pytest.approx(-sum(math.log(share) for share in (0.3, 0.11, 0.1, 0.3)) / 4, rel=1e-6)
    assert result.videos[1].labels == tuple(labels[:5])


def test_numbers_that_are_none_are_no_result() -> None:
    model: Any = Constant([math.nan, 0.0])
    with pytest.raises(CheckpointError, match="NaN"):
        Scoring().score(model, batch_of([0]), range(1))


def test_of_equally_likely_classes_the_first_is_said() -> None:
    model: Any = Constant([0.0] * 4)
    result = Scoring().score(model, batch_of([3]), range(1))
    assert result["videos"][0][1] == [0, 1, 2, 3]
