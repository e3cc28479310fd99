from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from helpers import Constant, batch_of
from uniformerv2.data.annotations import Annotation
from uniformerv2.data.sources import read_annotations
from uniformerv2.errors import AnnotationError, CheckpointError, RecipeError, VideoError
from uniformerv2.measuring.evaluation import (
    ClassAccuracy,
    Evaluation,
    VideoResult,
    average_views,
    evaluate,
    match_labels,
    of_split,
    score,
    summarise,
    write_predictions,
)
from uniformerv2.measuring.published_figures import VALIDATION_VIDEOS, Published, published_figure
from uniformerv2.model.config import Preprocessing, named_config
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.predict import Predictor
from uniformerv2.tasks.classification.training import train_classifier
from uniformerv2.train.recipe import ClipRecipe, ModelRecipe, Optimization, Recipe
from uniformerv2.video.views import Views
from uniformerv2.weights import load_model
from uniformerv2.weights.labels import class_list, map_head
from uniformerv2.weights.zoo import list_models, zoo_entry


@pytest.fixture(scope="module")
def checkpoint(image_model: Path, colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that tells blue, green and red apart."""
    recipe = Recipe(
        ModelRecipe(arm=str(image_model)),
        ClipRecipe(num_frames=4, size=32),
        Optimization(epochs=5, batch_size=4, lr=2e-3, warmup_epochs=1, precision="fp32"),
    )
    return train_classifier(colours, tmp_path_factory.mktemp("runs") / "colours", recipe).last


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
    result = evaluate(load_model(checkpoint), rows, views=Views(2, 3), batch_size=4)
    predictor = Predictor(checkpoint, views=Views(2, 3))
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


# --- more than accuracy


def evaluation_of(results: list[VideoResult], labels: list[str]) -> Evaluation:
    counts = [(sum(one.label == label for one in results), label) for label in labels]
    classes = tuple(
        ClassAccuracy(label, videos, sum(one.label == label == one.labels[0] for one in results))
        for videos, label in counts
    )
    return Evaluation(0.0, 0.0, 0.0, 1, 1, classes, tuple(results), ())


def test_calibration_error_is_weighed_by_bins_of_equal_width() -> None:
    def video(confidence: float, right: bool) -> VideoResult:
        return VideoResult("a.mp4", "a", ("a" if right else "b",), (confidence,))

    # one bin, (13/15, 14/15]: accuracy 1/2, mean confidence 0.9
    assert evaluation_of([video(0.88, True), video(0.92, False)], ["a", "b"]).calibration_error == pytest.approx(0.4)
    # three bins: 1/4 of the videos err by 0.3, 1/2 by 1/2 (0.5 of confidence, all or nothing right), 1/4 not at all
    some = [video(0.7, True), video(0.5, False), video(0.5, False), video(1.0, True)]
    assert evaluation_of(some, ["a", "b"]).calibration_error == pytest.approx(0.25 * 0.3 + 0.5 * 0.5)
    # a bin includes its upper end: 0.2 = 3/15 shares one with 0.19, not with 0.21
    edge = [video(0.2, True), video(0.21, False)]
    assert evaluation_of(edge, ["a", "b"]).calibration_error == pytest.approx((0.8 + 0.21) / 2)
    assert evaluation_of([video(1.0000001, True)], ["a"]).calibration_error == 0.0


def test_the_most_confused_classes_come_first() -> None:
    pairs = [("a", "b"), ("b", "a"), ("c", "a"), ("c", "a"), ("a", "a"), ("c", "c")]
    result = evaluation_of([VideoResult("x.mp4", right, (said,), (1.0,)) for right, said in pairs], ["a", "b", "c"])
    assert [(one.label, one.taken_for, one.videos) for one in result.confusions] == [
        ("c", "a", 2),
        ("a", "b", 1),
        ("b", "a", 1),
    ]
    assert result.to_json()["confusions"][0] == {"label": "c", "taken_for": "a", "videos": 2}
    assert result.mean_class_accuracy == pytest.approx((1 / 2 + 0 + 1 / 3) / 3)


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


def test_numbers_that_are_none_are_no_result() -> None:
    model: Any = Constant([math.nan, 0.0])
    with pytest.raises(CheckpointError, match="NaN"):
        score(model, batch_of([0]), Views(), range(1))


def test_of_equally_likely_classes_the_first_is_said() -> None:
    model: Any = Constant([0.0] * 4)
    record = score(model, batch_of([3]), Views(), range(1))
    assert record["videos"][0][1] == [0, 1, 2, 3]


def test_a_batch_without_clips_is_refused(checkpoint: Path, colours: Path) -> None:
    with pytest.raises(RecipeError, match="got 0"):
        evaluate(load_model(checkpoint), read_annotations(colours), batch_size=0)


# --- labels that are spelled otherwise


def labelled(*labels: str) -> list[Annotation]:
    return [Annotation(Path(f"{number}.mp4"), label) for number, label in enumerate(labels)]


def test_labels_are_matched_exactly_first() -> None:
    official = class_list("kinetics700", "official")
    rows, renamed = match_labels(labelled("hugging baby", "hugging (not baby)"), official)
    assert [row.label for row in rows] == ["hugging baby", "hugging (not baby)"]
    assert renamed == {}
    rows, renamed = match_labels(labelled("hugging", "hugging baby"), official)
    assert [row.label for row in rows] == ["hugging (not baby)", "hugging baby"]
    assert renamed == {"hugging": "hugging (not baby)"}


def test_no_two_labels_become_one() -> None:
    with pytest.raises(AnnotationError, match=r"0\.mp4: label 'Brush_Hair'"):
        match_labels(labelled("Brush_Hair", "brush hair"), ["brush hair", "yoga"])
    rows, renamed = match_labels(labelled("Brush_Hair", "yoga"), ["brush hair", "yoga"])
    assert [row.label for row in rows] == ["brush hair", "yoga"]
    assert renamed == {"Brush_Hair": "brush hair"}


def test_unknown_labels_are_named() -> None:
    with pytest.raises(AnnotationError, match=r"2\.mp4: label 'nothing'.*2 label.*: nothing, stacking cups$"):
        match_labels(labelled("hugging", "stacking cups", "nothing"), class_list("kinetics400", "official"))


# --- what was published


def published_model(**changes: Any) -> Any:
    entry = zoo_entry("b16-k400-8x224")
    assert entry is not None
    fields = {"origin": entry.name, "labels": class_list("kinetics400"), "preprocessing": entry.preprocessing()}
    return SimpleNamespace(**fields | changes)


def validation_set(videos: int = 19_404, classes: int = 400) -> list[Annotation]:
    names = class_list("kinetics400")[:classes]
    return [Annotation(Path(f"{number}.mp4"), names[number % classes], split="val") for number in range(videos)]


AS_PUBLISHED = Views(clips=4, crops=3)


def test_the_published_figure_of_an_equal_measurement() -> None:
    found = published_figure(published_model(), validation_set(), views=AS_PUBLISHED, skipped=0)
    assert found == Published("b16-k400-8x224", "kinetics400", "8x3x4", 84.4, 96.3, ())


@pytest.mark.parametrize(
    ("model", "rows", "views", "skipped", "difference"),
    [
        ({}, {}, Views(clips=1, crops=3), 0, "measured with 8x3x1 views"),
        ({}, {}, Views(clips=4, crops=3, average="logits"), 0, "averaged logits"),
        ({"preprocessing": Preprocessing(num_frames=16)}, {}, AS_PUBLISHED, 0, "measured with 16x3x4 views"),
        ({"preprocessing": Preprocessing(size=(256, 256))}, {}, AS_PUBLISHED, 0, "256x256 pixels"),
        ({}, {}, AS_PUBLISHED, 7, "7 videos could not be read"),
        ({}, {"videos": 1000}, AS_PUBLISHED, 0, "measured on 1,000 videos, the validation set has about 19,906"),
        ({}, {"videos": 38_685}, AS_PUBLISHED, 0, "measured on 38,685 videos"),
        ({}, {"classes": 390}, AS_PUBLISHED, 0, "measured without 10 of its 400 classes"),
    ],
)
def test_what_cannot_be_compared_is_said(
    model: dict[str, Any], rows: dict[str, int], views: Views, skipped: int, difference: str
) -> None:
    found = published_figure(published_model(**model), validation_set(**rows), views=views, skipped=skipped)
    assert found is not None
    assert len(found.differences) == 1
    assert difference in found.differences[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"origin": ""},
        {"origin": "trained on colours, from b16-k400-8x224"},
        {"labels": class_list("kinetics600")},  # another head
        {"origin": "l14-k710-8x224-mmaction2", "labels": class_list("kinetics710")},  # no accuracy was published
    ],
)
def test_of_what_is_not_known_nothing_is_said(changes: dict[str, Any]) -> None:
    assert published_figure(published_model(**changes), validation_set(), views=AS_PUBLISHED, skipped=0) is None


def test_rows_of_another_split_are_said_to_be_others() -> None:
    rows = [replace(row, split="test") for row in validation_set()]
    found = published_figure(published_model(), rows, views=AS_PUBLISHED, skipped=0)
    assert found is not None
    assert found.differences == ("measured on the split test",)


def test_every_published_accuracy_can_be_compared_with_something() -> None:
    for entry in list_models():
        assert entry.dataset == "kinetics710" or entry.dataset in VALIDATION_VIDEOS, entry.name


# --- tables


def test_a_table_of_predictions_is_a_manifest_too(checkpoint: Path, colours: Path, tmp_path: Path) -> None:
    rows = [replace(row, start=0.2, end=1.0) for row in read_annotations(colours)]
    rows[3] = Annotation(tmp_path / "absent.mp4", "green")
    result = evaluate(load_model(checkpoint), rows)
    write_predictions(tmp_path / "table.csv", result, rows)
    again = read_annotations(tmp_path / "table.csv", must_exist=False)
    assert again == rows
