from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from uniformerv2.data.annotations import Annotation, read_annotations
from uniformerv2.data.dataset import Batch
from uniformerv2.errors import AnnotationError, CheckpointError, VideoError
from uniformerv2.model.config import named_config
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.predict import Predictor
from uniformerv2.tasks.classification import train_classifier
from uniformerv2.tasks.evaluation import (
    Views,
    average_views,
    evaluate,
    of_split,
    score,
    summarise,
)
from uniformerv2.train.recipe import ClipRecipe, ModelRecipe, Optimization, Recipe
from uniformerv2.weights import load_model
from uniformerv2.weights.labels import class_list, map_head


@pytest.fixture(scope="module")
def checkpoint(image_model: Path, colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that tells blue, green and red apart."""
    recipe = Recipe(
        ModelRecipe(arm=str(image_model)),
        ClipRecipe(num_frames=4, size=32),
        Optimization(epochs=5, batch_size=4, lr=2e-3, warmup_epochs=1, precision="fp32"),
    )
    return train_classifier(colours, tmp_path_factory.mktemp("runs") / "colours", recipe).last


class Constant(nn.Module):
    """Gives the same logits for every clip and remembers how many clips it saw at once."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.seen: list[int] = []

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(clips))
        return self.logits.expand(len(clips), -1)


def batch_of(labels: list[int]) -> Batch:
    names = [f"{number}.mp4" for number in range(len(labels))]
    return Batch(torch.zeros(len(labels), 1, 3, 2, 4, 4), torch.tensor(labels), [*range(len(labels))], names, [], [])


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


# --- evaluation


def test_multi_view_evaluation_agrees_with_the_predictor_video_by_video(checkpoint: Path, colours: Path) -> None:
    rows = read_annotations(colours)
    result = evaluate(load_model(checkpoint), rows, num_clips=2, num_crops=3, batch_size=4)
    predictor = Predictor(checkpoint, num_clips=2, num_crops=3)
    assert [video.path for video in result.videos] == [str(row.path) for row in rows]
    for row, video in zip(rows, result.videos, strict=True):
        alone = predictor.predict(row.path)
        assert (video.label, video.labels) == (row.label, alone.labels)
        assert video.scores == pytest.approx(alone.scores, abs=1e-5)
    right = [video.labels[0] == video.label for video in result.videos]
    assert result.top1 == sum(right) / 15
    assert result.top5 == 1.0  # of three classes
    own = [dict(zip(video.labels, video.scores, strict=True))[video.label] for video in result.videos]
    assert result.loss == pytest.approx(-sum(map(math.log, own)) / 15, rel=1e-5)
    assert [(one.label, one.videos) for one in result.classes] == [("blue", 5), ("green", 5), ("red", 5)]
    assert (result.num_clips, result.num_crops, result.to_json()["views"]) == (2, 3, 6)


def test_accuracy_is_counted_per_class_and_over_five_guesses() -> None:
    labels = [f"class {number}" for number in range(7)]
    batch = batch_of([0, 4, 5, 0])
    rows = [Annotation(Path(path), labels[label]) for path, label in zip(batch.paths, batch.labels, strict=True)]
    probabilities = [0.3, 0.2, 0.15, 0.12, 0.11, 0.1, 0.02]
    model: Any = Constant([math.log(share) for share in probabilities])
    result = summarise(labels, rows, [score(model, batch, Views(), range(4))], Views())
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


def test_an_unreadable_video_is_named_and_left_out_of_the_accuracy(
    checkpoint: Path, colours: Path, tmp_path: Path
) -> None:
    broken, absent = tmp_path / "broken.mp4", tmp_path / "absent.mp4"
    broken.write_text("no video")
    good = read_annotations(colours)
    model = load_model(checkpoint)
    rows = [good[0], Annotation(broken, "red"), *good[1:], Annotation(absent, "blue")]
    result = evaluate(model, rows, batch_size=2)
    assert [(one.path, one.row) for one in result.skipped] == [(str(broken), 1), (str(absent), 16)]
    assert all(one.path in one.reason for one in result.skipped)
    without = evaluate(model, good, batch_size=2)
    assert (result.top1, result.top5, result.classes) == (without.top1, without.top5, without.classes)
    assert [video.path for video in result.videos] == [video.path for video in without.videos]
    assert result.loss == pytest.approx(without.loss)
    assert [one["path"] for one in result.to_json()["skipped"]] == [str(broken), str(absent)]
    assert result.to_json()["evaluated"] == 15


def test_an_evaluation_is_json(checkpoint: Path, colours: Path) -> None:
    reds = [row for row in read_annotations(colours) if row.label == "red"]
    parsed = json.loads(json.dumps(evaluate(load_model(checkpoint), reds).to_json(), allow_nan=False))
    assert parsed["classes"][0] == {"label": "blue", "videos": 0, "correct": 0, "top1": None}
    assert parsed["top1"] == parsed["correct"] / parsed["evaluated"]


def test_what_cannot_be_evaluated_is_refused(checkpoint: Path, colours: Path, tmp_path: Path) -> None:
    model = load_model(checkpoint)
    with pytest.raises(AnnotationError, match="purple"):
        evaluate(model, [Annotation(colours / "red" / "red0.mp4", "purple")])
    with pytest.raises(VideoError, match=r"not one of 1 videos.*absent\.mp4"):
        evaluate(model, [Annotation(tmp_path / "absent.mp4", "red")])
    nameless = UniFormerV2(named_config("Ti/16", "scene", image_size=(32, 32), num_classes=3))
    with pytest.raises(CheckpointError, match="no labels"):
        evaluate(nameless, read_annotations(colours))


KINETICS = {"blue": "archery", "green": "bowling", "red": "yoga"}


def as_kinetics(model: UniFormerV2, order: tuple[str, ...]) -> UniFormerV2:
    """The model of three colours with names of Kinetics for them, and the rows of its head in an order of these."""
    head = nn.Linear(model.config.width, len(order))
    with torch.no_grad():
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, -100)
        rows = [order.index(KINETICS[label]) for label in model.labels]
        head.weight[rows], head.bias[rows] = model.head.linear.weight, model.head.linear.bias
    model.head.linear = head
    model.config, model.labels = replace(model.config, num_classes=len(order)), order
    return model


def test_labels_in_the_wrong_order_are_suspected(checkpoint: Path, colours: Path) -> None:
    official, mmaction2 = class_list("kinetics400", "official"), class_list("kinetics400", "mmaction2")
    rows = [replace(row, label=KINETICS[row.label]) for row in read_annotations(colours)]
    model = as_kinetics(load_model(checkpoint), mmaction2)
    right = evaluate(model, rows)
    assert (right.top1, right.warning) == (1.0, "")
    model.labels = official
    wrong = evaluate(model, rows)
    assert wrong.top1 == 0
    assert "top-1 0.0% is what guessing gives with 400 classes" in wrong.warning
    assert "mmaction2's kinetics400 order top-1 would be 100.0%" in wrong.warning
    assert wrong.to_json()["warning"] == wrong.warning


def test_a_mapped_head_is_as_good_as_the_whole_one(checkpoint: Path, colours: Path) -> None:
    rows = [replace(row, label=KINETICS[row.label]) for row in read_annotations(colours)]
    model = as_kinetics(load_model(checkpoint), class_list("kinetics710", "official"))
    part = map_head(model, "kinetics600")
    whole, mapped = evaluate(model, rows), evaluate(part, rows)
    assert (whole.top1, mapped.top1) == (1.0, 1.0)
    assert (len(whole.classes), len(mapped.classes)) == (710, 600)


def test_rows_of_a_split() -> None:
    make: Callable[[str | None], Annotation] = lambda split: Annotation(Path("a.mp4"), "a", split=split)  # noqa: E731
    train, val, test, none = (make(split) for split in ("train", "val", "test", None))
    rows = [train, val, test]
    assert of_split(rows, "held-out") == [val, test]
    assert of_split(rows, "test") == [test]
    assert of_split(rows, "all") == rows
    assert of_split([none], "held-out") == [none]
    with pytest.raises(AnnotationError, match="'val'"):
        of_split([train], "val")
