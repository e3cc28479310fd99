"""From films with labelled spans to a file that finds them in others."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from drawn_films import COLOURS, RATE, Trained, drawn_stretches, frames_of, spans_of, write_film
from helpers import before_call, interrupt, logged, write_video
from uniformerv2 import load_model
from uniformerv2.data.annotations import Annotation
from uniformerv2.errors import AnnotationError, CheckpointError, RecipeError, VideoError
from uniformerv2.localise import Localiser
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.spans.span import Span
from uniformerv2.tasks.localisation.checkpoint import load_localiser
from uniformerv2.tasks.localisation.training import train_localiser
from uniformerv2.train.engine import Trainer
from uniformerv2.train.step import TrainingStep
from uniformerv2.weights.files import read_tensors, write_safetensors


def overlap(first: Span | Annotation, second: Span | Annotation) -> float:
    """Temporal intersection over union."""
    assert first.start is not None
    assert first.end is not None
    assert second.start is not None
    assert second.end is not None
    common = min(first.end, second.end) - max(first.start, second.start)
    return max(0.0, common) / (first.end - first.start + second.end - second.start - max(0.0, common))


def test_a_localiser_finds_the_drawn_spans_of_films_that_it_has_not_seen(trained: Trained, tmp_path: Path) -> None:
    """Colours cannot be mistaken, and borders are known to a frame; a head that had learned nothing would find none.

    Windows of a second stand every quarter of a second, so that half of a span of 1.5 s and more is found by any head
    that has learned at all; random spans reach an average precision of some percent.
    """
    found = trained.result.evaluation
    assert found is not None
    assert found.scores.mean_ap[0] > 0.7
    assert trained.result.history[-1]["average_map"] == pytest.approx(found.scores.average_mean_ap)
    localiser = Localiser(trained.result.last)
    assert localiser.labels == tuple(sorted(COLOURS))
    rows = write_film(tmp_path / "unseen.mp4", drawn_stretches(1000))
    spans = localiser.localise(tmp_path / "unseen.mp4", workers=0)
    surest = [span for span in spans if span.score >= 0.3]
    right = [row for row in rows if any(span.label == row.label and overlap(row, span) > 0.5 for span in surest)]
    assert len(right) >= len(rows) - 1
    assert [span.score for span in spans] == sorted((span.score for span in spans), reverse=True)
    assert all(0 <= span.start < span.end for span in spans)
    assert localiser.localise(tmp_path / "unseen.mp4", threshold=0.3, workers=0) == surest


def test_where_nothing_happens_nothing_is_sure(trained: Trained, tmp_path: Path) -> None:
    write_film(tmp_path / "nothing.mp4", [(None, 80)])
    assert Localiser(trained.result.last).localise(tmp_path / "nothing.mp4", threshold=0.5, workers=0) == []


def test_the_frame_rate_changes_no_span_by_more_than_a_frame(trained: Trained, tmp_path: Path) -> None:
    """The same film with three quarters of its frames left out, irregularly: what is shown at each time stays."""
    stretches = drawn_stretches(7)
    frames = frames_of(stretches, still=True)
    write_video(tmp_path / "constant.mp4", frames, rate=RATE)
    borders = {round(RATE * row.start) for row in spans_of(tmp_path, stretches) if row.start is not None}
    borders |= {round(RATE * row.end) for row in spans_of(tmp_path, stretches) if row.end is not None}
    dice = random.Random(1)
    shares = (0.05 if number < len(frames) / 2 else 0.4 for number in range(len(frames)))  # which are left
    kept = [number for number, share in enumerate(shares) if dice.random() < share or number in borders]
    kept = sorted({0, *kept, len(frames) - 1})
    left = [frames[number] for number in kept]
    write_video(tmp_path / "variable.mkv", left, times=[1000 * number // RATE for number in kept])
    # what would be seen by who counts frames
    write_video(
        tmp_path / "even.mkv", left, times=[100 * len(frames) * place // len(kept) for place in range(len(kept))]
    )
    localiser = Localiser(trained.result.last)
    constant, variable, even = (
        localiser.localise(tmp_path / name, threshold=0.3, workers=0)
        for name in ("constant.mp4", "variable.mkv", "even.mkv")
    )
    assert len(kept) < len(frames) / 3
    assert len(constant) == len(variable) > 2
    assert all(map(partial(_near_one_of, variable), constant))
    assert not any(map(partial(_near_one_of, even), constant))


def _near_one_of(others: Sequence[Span], span: Span) -> bool:
    """Within a frame at both ends."""
    same = [one for one in others if one.label == span.label]
    return any(max(abs(span.start - one.start), abs(span.end - one.end)) < 1 / RATE for one in same)


def test_one_file_holds_all_of_it_and_is_a_video_model_too(trained: Trained) -> None:
    loaded, video = load_localiser(trained.result.last), load_model(trained.model)
    assert (loaded.recipe, loaded.labels) == (trained.recipe, ("blue", "green", "red"))
    assert all(torch.equal(tensor, loaded.video.state_dict()[name]) for name, tensor in video.state_dict().items())
    found = load_model(trained.result.last)
    assert found.labels == video.labels
    assert any("without the head that finds spans" in line for line in found.loading_report)
    assert load_localiser(trained.result.last.parent).labels == loaded.labels  # the folder of the run


def test_a_file_that_is_no_localiser_or_not_a_whole_one_is_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a localiser; train one with train_localiser"):
        Localiser(trained.model)
    whole = read_tensors(trained.result.last)
    for change, said in (
        ({"span_head.norm.weight": None}, "1 missing: norm.weight"),
        ({"span_head.more": torch.zeros(1)}, "1 unexpected: more"),
    ):
        tensors = {name: tensor for name, tensor in {**whole.tensors, **change}.items() if tensor is not None}
        write_safetensors(tmp_path / "changed.safetensors", tensors, whole.metadata)
        with pytest.raises(CheckpointError, match=said):
            Localiser(tmp_path / "changed.safetensors")
    write_safetensors(tmp_path / "changed.safetensors", whole.tensors, {**whole.metadata, "span_head": "{}"})
    with pytest.raises(CheckpointError, match="metadata on the span head cannot be understood"):
        Localiser(tmp_path / "changed.safetensors")


def test_a_run_that_was_broken_off_goes_on_to_the_same_curve(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = trained.recipe.vary(epochs=3, evaluate_every=2)
    options: Any = {"workers": 0, "feature_cache": trained.cache}
    whole = train_localiser(trained.model, trained.rows, recipe, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        before_call(patch, TrainingStep, "__call__", 4, interrupt)
        with pytest.raises(KeyboardInterrupt, match="go on with resume=True"):
            train_localiser(trained.model, trained.rows, recipe, tmp_path / "broken", save_every_seconds=0, **options)
    resumed = train_localiser(trained.model, trained.rows, recipe, tmp_path / "broken", resume=True, **options)
    assert logged(tmp_path / "broken") == logged(tmp_path / "whole")
    assert resumed.last.read_bytes() == whole.last.read_bytes()
    assert json.loads((tmp_path / "broken" / "evaluation.json").read_text())["spans"]
    with pytest.raises(RecipeError, match=r"lr 0.003 is now 0.1"):
        train_localiser(trained.model, trained.rows, recipe.vary(lr=0.1), tmp_path / "broken", resume=True, **options)


def test_films_are_embedded_once(trained: Trained, embedded: list[int], tmp_path: Path) -> None:
    rows = [row for row in trained.rows if row.path.stem in ("train0", "train1", "val0")]
    recipe = trained.recipe.vary(epochs=1, warmup_epochs=0.0)
    options: Any = {"workers": 0, "feature_cache": trained.cache}
    train_localiser(trained.model, rows, recipe, tmp_path / "a", **options)
    assert not embedded
    more = write_film(tmp_path / "more.mp4", [(None, 10), (0, 20), (None, 10)], "train")
    train_localiser(trained.model, [*rows, *more], recipe, tmp_path / "b", **options)
    assert sum(embedded) == 13  # of four seconds: a window every quarter of a second, up to the first that ends there
    other = recipe.vary(stride_seconds=2.0)
    train_localiser(trained.model, [*rows, *more], other, tmp_path / "c", **options)
    assert sum(embedded) > 13 + 2 * len(rows)


def test_embedding_goes_on_after_a_kill(
    trained: Trained, embedded: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = trained.recipe.vary(epochs=1, warmup_epochs=0.0)
    rows = [row for row in trained.rows if row.path.stem in ("train0", "train1", "val0")]
    options: Any = {"workers": 0}
    with monkeypatch.context() as patch:
        before_call(patch, UniFormerV2, "forward_features", 12, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_localiser(trained.model, rows, recipe, tmp_path / "run", **options)
    before = sum(embedded)
    assert before > 50
    train_localiser(trained.model, rows, recipe, tmp_path / "run", resume=True, **options)
    at_once = sum(embedded)
    train_localiser(trained.model, rows, recipe, tmp_path / "other", **options)
    assert at_once - (sum(embedded) - at_once) <= 16  # but for batches that were under way
    assert not list((tmp_path / "run" / "features").glob("*.journal"))


def test_what_cannot_be_read_is_named_and_left_out(trained: Trained, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no film")
    recipe = trained.recipe.vary(epochs=1, warmup_epochs=0.0)
    rows = [*trained.rows, Annotation(broken, "red", 1.0, 2.0, "train")]
    result = train_localiser(trained.model, rows, recipe, tmp_path / "run", workers=0, feature_cache=trained.cache)
    assert [video.path for video in result.skipped] == [str(broken)]
    with pytest.raises(VideoError, match="not one of 1 films could be read"):
        train_localiser(trained.model, rows[-1:], recipe, tmp_path / "none", workers=0, holdout=0)
    with pytest.raises(VideoError):
        Localiser(trained.result.last).localise(broken, workers=0)


def test_data_without_spans_or_labels_to_learn_are_refused(trained: Trained, tmp_path: Path) -> None:
    def train(*rows: Annotation) -> None:
        train_localiser(trained.model, rows, trained.recipe, tmp_path / "run", workers=0)

    first, *_ = (row for row in trained.rows if row.split == "val")
    training = next(row for row in trained.rows if row.split == "train")
    with pytest.raises(AnnotationError, match="none of 1 training films has a labelled span"):
        train(replace(training, label=""), first)
    with pytest.raises(AnnotationError, match="held out, and no training film shows 'jump'"):
        train(training, replace(first, label="jump"))
    assert not (tmp_path / "run").exists()


def test_spans_past_the_end_are_cut_or_left_out_and_named(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = trained.rows[0].path
    rows = [
        Annotation(film, "red", 2.0, 4.0),
        Annotation(film, "red", 2.0, 4.0),  # the same again
        Annotation(film, "green", 5.0, 1000.0),
        Annotation(film, "blue", 900.0, 1000.0),
        Annotation(film, "blue", 1.0, 3.0),  # overlaps
    ]
    recipe = trained.recipe.vary(epochs=1, warmup_epochs=0.0)
    train_localiser(
        trained.model, rows, recipe, tmp_path / "run", workers=0, holdout=0, feature_cache=trained.cache, progress=True
    )
    said = capsys.readouterr().err
    assert "1 span(s) reach past its end and are cut, such as 'green' from 5 s to 1000 s" in said
    assert "1 span(s) begin after its end and are left out, such as 'blue' from 900 s to 1000 s" in said
    assert "1 films with 3 spans of 3 labels to train on, 0 films with 0 spans held out" in said
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_a_manifest_with_overlapping_spans_and_a_film_without_any(trained: Trained, tmp_path: Path) -> None:
    film, empty = trained.rows[0].path, trained.rows[-1].path
    manifest = tmp_path / "films.csv"
    manifest.write_text(
        "path,label,start,end,split\n"
        f"{film},red,1,3,train\n{film},blue,1,3,train\n{empty},,,,train\n{trained.rows[-2].path},red,1,2,val\n"
    )
    recipe = trained.recipe.vary(epochs=1, warmup_epochs=0.0)
    result = train_localiser(trained.model, manifest, recipe, tmp_path / "run", workers=0, feature_cache=trained.cache)
    assert load_localiser(result.last).labels == ("blue", "red")
    assert (tmp_path / "run" / "train.csv").read_text().count("\n") == 4


def test_the_engine_is_the_one_of_all_tasks(trained: Trained) -> None:
    assert Trainer.__module__ == "uniformerv2.train.engine"
    files = {file.name for file in trained.result.last.parent.iterdir()}
    assert {"recipe.json", "train.csv", "held_out.csv", "metrics.jsonl", "evaluation.json"} <= files
    assert {"last.safetensors", "best.safetensors", "state"} <= files
