"""Scores of views and their average, and whole evaluations."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import KINETICS, Constant, as_kinetics, batch_of
from uniformerv2 import load_model
from uniformerv2.data.annotations import Annotation
from uniformerv2.data.sources import read_annotations
from uniformerv2.errors import AnnotationError, CheckpointError, RecipeError, VideoError
from uniformerv2.measuring.evaluation import Scoring, average_views, evaluate, summarise
from uniformerv2.measuring.results import default_output, write_predictions
from uniformerv2.model.config import named_config
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.predict import Predictor
from uniformerv2.video.views import Views
from uniformerv2.weights.labels import class_list, map_head


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
    result = summarise(labels, rows, [Scoring().score(model, batch, range(4))()], Views())
    assert result.top1 == 0.5
    assert result.top5 == 0.75  # class 4 is the fifth guess, class 5 the sixth
    assert [(one.videos, one.correct, one.recall) for one in result.classes] == [
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
        Scoring().score(model, batch_of([0]), range(1))()


def test_of_equally_likely_classes_the_first_is_said() -> None:
    model: Any = Constant([0.0] * 4)
    rows = [Annotation(Path("0.mp4"), "d")]
    result = summarise("abcd", rows, [Scoring().score(model, batch_of([3]), range(1))()], Views())
    assert result.videos[0].labels == ("a", "b", "c", "d")
    assert result.confusions[0].taken_for == "a"


measure = partial(evaluate, workers=0)


def test_multi_view_evaluation_agrees_with_the_predictor_video_by_video(checkpoint: Path, colours: Path) -> None:
    rows = read_annotations(colours)
    result = measure(load_model(checkpoint), rows, views=Views(2, 3), batch_size=4)
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
    assert (result.views, len(result.views)) == (Views(2, 3), 6)


def test_an_unreadable_video_is_named_and_left_out_of_the_accuracy(
    checkpoint: Path, colours: Path, tmp_path: Path
) -> None:
    broken, absent = tmp_path / "broken.mp4", tmp_path / "absent.mp4"
    broken.write_text("no video")
    good = read_annotations(colours)
    model = load_model(checkpoint)
    rows = [good[0], Annotation(broken, "red"), *good[1:], Annotation(absent, "blue")]
    result = measure(model, rows, batch_size=2)
    assert [(one.path, one.row) for one in result.skipped] == [(str(broken), 1), (str(absent), 16)]
    assert all(one.path in one.reason for one in result.skipped)
    without = measure(model, good, batch_size=2)
    assert (result.top1, result.top5, result.classes) == (without.top1, without.top5, without.classes)
    assert [video.path for video in result.videos] == [video.path for video in without.videos]
    assert result.loss == pytest.approx(without.loss)
    assert [one["path"] for one in result.to_json()["skipped"]] == [str(broken), str(absent)]
    assert result.to_json()["evaluated"] == 15


def test_an_evaluation_is_json(checkpoint: Path, colours: Path) -> None:
    reds = [row for row in read_annotations(colours) if row.label == "red"]
    parsed = json.loads(json.dumps(measure(load_model(checkpoint), reds).to_json(), allow_nan=False))
    assert parsed["classes"][0] == {
        **{"label": "blue", "videos": 0, "correct": 0, "predicted": 0},
        **{"precision": None, "recall": None, "f1": None},
    }
    assert parsed["top1"] == parsed["correct"] / parsed["evaluated"]


def test_what_cannot_be_evaluated_is_refused(checkpoint: Path, colours: Path, tmp_path: Path) -> None:
    model = load_model(checkpoint)
    with pytest.raises(AnnotationError, match="purple"):
        measure(model, [Annotation(colours / "red" / "red0.mp4", "purple")])
    with pytest.raises(VideoError, match=r"not one of 1 videos.*absent\.mp4"):
        measure(model, [Annotation(tmp_path / "absent.mp4", "red")])
    nameless = UniFormerV2(named_config("Ti/16", "scene", image_size=(32, 32), num_classes=3))
    with pytest.raises(CheckpointError, match="no labels"):
        measure(nameless, read_annotations(colours))
    model.labels = ("red", "green", "red")
    with pytest.raises(CheckpointError, match="several classes 'red'"):
        measure(model, read_annotations(colours))


def test_a_mapped_head_is_as_good_as_the_whole_one(checkpoint: Path, colours: Path) -> None:
    rows = [replace(row, label=KINETICS[row.label]) for row in read_annotations(colours)]
    model = as_kinetics(load_model(checkpoint), class_list("kinetics710", order="official"))
    part = map_head(model, "kinetics600")
    whole, mapped = measure(model, rows), measure(part, rows)
    assert (whole.top1, mapped.top1) == (1.0, 1.0)
    assert (len(whole.classes), len(mapped.classes)) == (710, 600)


def test_a_path_will_do_for_the_model_and_for_the_videos(checkpoint: Path, colours: Path, tmp_path: Path) -> None:
    rows = read_annotations(colours)
    splits = ["train" if row.label == "red" else "val" for row in rows]
    manifest = tmp_path / "videos.csv"
    lines = [f"{row.path.relative_to(colours)},{row.label},{split}" for row, split in zip(rows, splits, strict=True)]
    manifest.write_text("\n".join(["path,label,split", *lines]))
    live = measure(load_model(checkpoint), rows)
    assert measure(checkpoint, colours) == live
    held_out = measure(str(checkpoint), manifest, root=colours)
    assert {video.label for video in held_out.videos} == {"blue", "green"}
    assert held_out == measure(checkpoint, [row for row in rows if row.label != "red"])
    assert measure(checkpoint, manifest, root=colours, split="all") == live
    split_rows = [replace(row, split=split) for row, split in zip(rows, splits, strict=True)]
    assert measure(checkpoint, split_rows, split="train") == measure(checkpoint, rows[10:])


def test_bf16_is_computed_in_bf16_and_recorded(
    checkpoint: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uniformerv2.inference.precision.has_bf16", lambda device: True)
    model = load_model(checkpoint)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    exact, narrow = measure(model, colours), measure(model, colours, precision="bf16", journal=tmp_path / "journal")
    assert (exact.precision, narrow.precision) == ("fp32", "bf16")
    scores, narrow_scores = ([video.scores[0] for video in result.videos] for result in (exact, narrow))
    assert narrow_scores != scores
    assert narrow_scores == pytest.approx(scores, abs=0.02)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert measure(model, colours) == exact
    with pytest.raises(RecipeError, match=r"precision \(then bf16, now fp32\)"):
        measure(model, colours, journal=tmp_path / "journal", resume=True)
    with pytest.raises(RecipeError, match="int8"):
        measure(model, colours, precision="int8")


# --- journals, and several processes


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"views": Views(3, 1)}, "views (then 2 clips x 1 crops, now 3 clips x 1 crops)"),
        ({"views": Views(2, 1, "logits")}, "average (then probabilities, now logits)"),
        ({"batch_size": 3}, "batch size (then 2, now 3)"),
        ({"split": "train"}, "videos (then 15 rows "),
        ({"head": "other"}, "weights (then "),
    ],
)
def test_a_journal_of_other_work_is_refused(
    checkpoint: Path, colours: Path, tmp_path: Path, changes: dict[str, Any], part: str
) -> None:
    model = load_model(checkpoint)
    rows = [replace(row, split="val" if row.label == "red" else None) for row in read_annotations(colours)]
    options: dict[str, Any] = {"views": Views(2, 1), "batch_size": 2, "journal": tmp_path / "journal"}
    first = measure(model, rows, **options)
    assert measure(model, rows, **options, resume=True) == first
    if changes.pop("head", None):
        with torch.no_grad():
            model.head.linear.bias[0] += 1
    with pytest.raises(RecipeError, match="cannot be resumed") as caught:
        measure(model, rows, **{**options, **changes}, resume=True)
    assert part in str(caught.value)


def test_figures_do_not_depend_on_how_many_processes_share_the_videos(
    together: Callable[..., list[Any]], checkpoint: Path, colours: Path, tmp_path: Path
) -> None:
    rows = read_annotations(colours)
    content = rows[0].path.read_bytes()
    random_bytes = random.Random(0).randbytes(len(content))
    broken = {
        "empty": b"",
        "header": content[:200],
        "noise": random_bytes,
        "text": b"this is no video\n" * 500,
        "overwritten": content[:100] + random_bytes[100:],
        "zeros": bytes(len(content)),
    }
    for place, (name, data) in enumerate(broken.items()):
        (tmp_path / f"{name}.mp4").write_bytes(data)
        rows.insert(3 * place + 2, Annotation(tmp_path / f"{name}.mp4", "red"))

    def everything() -> str:
        return json.dumps(measure(checkpoint, rows, views=Views(2, 3), batch_size=12).to_json())

    alone = everything()
    for world in (2, 3):
        assert together(world, everything) == [alone] * world
    result = json.loads(alone)
    assert {Path(video["path"]).stem for video in result["skipped"]} == set(broken)
    assert (result["evaluated"], sum(one["videos"] for one in result["classes"])) == (15, 15)


def test_a_table_of_predictions_is_a_manifest_too(checkpoint: Path, colours: Path, tmp_path: Path) -> None:
    rows = [replace(row, start=0.2, end=1.0) for row in read_annotations(colours)]
    rows[3] = Annotation(tmp_path / "absent.mp4", "green")
    result = evaluate(checkpoint, rows, workers=0)
    write_predictions(tmp_path / "table.csv", result)
    again = read_annotations(tmp_path / "table.csv", must_exist=False)
    assert again == rows


def test_the_default_name_says_what_was_measured(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    shutil.copyfile(checkpoint, "run/last.safetensors")
    last, data = Path("run/last.safetensors"), Path("videos/held_out.csv")
    assert default_output(last, data, views=Views(4, 3)) == Path("run/last.held_out.4x3.json")
    assert default_output(last, data, views=Views(), head="k400") == Path("run/last.k400.held_out.1x1.json")
    assert default_output(Path("run"), data, views=Views()) == Path("run/last.held_out.1x1.json")
    shutil.copyfile(checkpoint, "run/best.safetensors")
    assert default_output(Path("run"), data, views=Views()) == Path("run/best.held_out.1x1.json")
    (tmp_path / "videos.v2").mkdir()
    published, hub = Path("b16-k400-8x224"), Path("someone/model.v1")
    assert default_output(published, Path("videos.v2"), views=Views()) == Path("b16-k400-8x224.videos.v2.1x1.json")
    assert default_output(hub, data, views=Views()) == Path("someone-model.v1.held_out.1x1.json")
    here = default_output(published, Path("."), views=Views())
    assert here == Path(f"b16-k400-8x224.{tmp_path.name}.1x1.json")
