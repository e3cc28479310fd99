"""A video model that is trained with the head: the same gradients in bounded memory, the same windows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from drawn_films import Trained
from helpers import before_call, interrupt, logged
from uniformerv2 import Localiser, load_model
from uniformerv2.data.annotations import Annotation
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.measuring import window_reading
from uniformerv2.tasks.localisation import end_to_end
from uniformerv2.tasks.localisation.batches import FilmBatch
from uniformerv2.tasks.localisation.checkpoint import build_head, load_localiser
from uniformerv2.tasks.localisation.end_to_end import TOGETHER, ClipLoader, EndToEnd, opened
from uniformerv2.tasks.localisation.films import EmbeddingCache, Film, films_of
from uniformerv2.tasks.localisation.rehearsal import dry_run_localiser
from uniformerv2.tasks.localisation.training import train_localiser
from uniformerv2.train.optim import parameter_groups
from uniformerv2.train.step import TrainingStep

CROP = 20  # windows


@pytest.fixture
def few(trained: Trained) -> list[Annotation]:
    """Of two films to train on and one that is held out."""
    return [row for row in trained.rows if row.path.stem in ("train0", "train1", "val0")]


@pytest.fixture
def films(few: list[Annotation]) -> list[Film]:
    return films_of(few)


def loader(trained: Trained, films: list[Film]) -> ClipLoader:
    return ClipLoader(
        [opened(film, trained.recipe) for film in films],
        {"blue": 0, "green": 1, "red": 2},
        crop_windows=CROP,
        batch_size=2,
        seed=0,
        recipe=trained.recipe,
        preprocessing=load_model(trained.model).preprocessing,
        skipped={},
        progress=False,
    )


def whole_clips(batch: FilmBatch) -> Iterator[Tensor]:
    assert not isinstance(batch.films, Tensor)
    return (clips.whole() for clips in batch.films)


def test_the_windows_are_those_that_a_frozen_model_embeds(trained: Trained, films: list[Film], tmp_path: Path) -> None:
    model = load_model(trained.model)
    cached = EmbeddingCache(model, trained.recipe, trained.cache).fill(films, workers=0, progress=False)
    reading = loader(trained, films)
    assert [(film.windows, film.spans) for film in reading.films] == [(film.windows, film.spans) for film in cached]
    last = cached[0].windows - CROP
    for number, first in ((0, 0), (1, 7), (0, last), (0, last + 5)):
        [clips] = whole_clips(reading.batch([(reading.films[number], first)]))
        with torch.no_grad():
            found = model.forward_features(clips).pooled
        torch.testing.assert_close(found, cached[number].embeddings(first, CROP), rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_all_windows_at_once(trained: Trained, films: list[Film], embedded: list[int]) -> None:
    batch = next(iter(loader(trained, films)))
    gradients = []
    for part in (TOGETHER, 1000):
        torch.manual_seed(0)
        video = load_model(trained.model)
        model = EndToEnd(video, build_head(video, trained.recipe, ("blue", "green", "red")).eval(), lr_scale=0.1)
        if part == TOGETHER:
            found = model(batch.films, batch.valid)
            assert max(embedded) == TOGETHER
        else:
            embeddings = [video.forward_features(clips).pooled for clips in whole_clips(batch)]
            found = model.head(torch.nn.utils.rnn.pad_sequence(embeddings, batch_first=True), batch.valid)
        (found.logits.sum() + found.distances.square().sum()).backward()
        named = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert any(name.startswith("video.backbone.blocks.0") and gradient.any() for name, gradient in named.items())
        gradients.append(named)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_the_video_model_keeps_its_statistics_and_has_its_own_rate(trained: Trained) -> None:
    recipe = trained.recipe.vary(video_lr=trained.recipe.lr / 50)
    video = load_model(trained.model)
    model = EndToEnd(video, build_head(video, recipe, ("red",)), lr_scale=recipe.video_lr / recipe.lr).train()
    assert model.head.training
    assert not any(part.training for part in video.modules())
    of_video = {id(parameter) for parameter in video.parameters()}
    groups = parameter_groups(model, recipe.optimization())
    assert {group["lr_scale"] for group in groups} == {1.0, 0.02}
    for group in groups:
        assert all((id(parameter) in of_video) == (group["lr_scale"] < 1) for parameter in group["params"])
    trained_ones = {id(parameter) for group in groups for parameter in group["params"]}
    assert not trained_ones & {id(parameter) for parameter in video.head.parameters()}
    with pytest.raises(RecipeError, match="video_lr must not be negative"):
        recipe.vary(video_lr=-1.0)


def test_one_file_has_the_trained_video_model_and_a_run_goes_on(
    trained: Trained, few: list[Annotation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = load_model(trained.model)
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    recipe = trained.recipe.vary(video_lr=1e-3, epochs=3, evaluate_every=3, crop_windows=CROP)
    whole = train_localiser(start, few, recipe, tmp_path / "whole", workers=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in start.state_dict().items())  # the one given
    saved = load_localiser(whole.last).video.state_dict()
    changed = {name for name, tensor in saved.items() if not torch.equal(tensor, before[name])}
    assert any("blocks.0." in name for name in changed)
    assert not any(name.startswith("head.") or "running" in name for name in changed)
    assert not (tmp_path / "whole" / "features").exists()
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]
    assert whole.evaluation is not None
    [(path, spans)] = whole.evaluation.predictions.items()
    found = Localiser(whole.last).localise(path, workers=0)
    assert [(span.label, span.score) for span in found] == [(span.label, pytest.approx(span.score)) for span in spans]

    with monkeypatch.context() as patch:
        before_call(patch, TrainingStep, "__call__", 4, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_localiser(start, few, recipe, tmp_path / "broken", workers=0, save_every_seconds=0)
    train_localiser(start, few, recipe, tmp_path / "broken", workers=0, resume=True)
    assert logged(tmp_path / "broken") == logged(tmp_path / "whole")


def test_films_that_break_during_the_training_are_named_and_left_out(
    trained: Trained, few: list[Annotation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = window_reading.read_windows

    def reading(row: Annotation, *arguments: Any) -> Any:
        if row.path.stem == "train1":
            raise VideoError(f"{row.path}: frame 7 cannot be decoded")
        return read(row, *arguments)

    monkeypatch.setattr(end_to_end, "read_windows", reading)
    more = [row for row in trained.rows if row.path.stem == "val1"]
    embed = end_to_end.extract_features

    def embedding(video: Any, rows: list[Annotation], **options: Any) -> Any:
        if rows[0].path.stem == "val1":
            raise VideoError(f"{rows[0].path}: frame 8 cannot be decoded")
        return embed(video, rows, **options)

    monkeypatch.setattr(end_to_end, "extract_features", embedding)
    recipe = trained.recipe.vary(video_lr=1e-3, epochs=1, warmup_epochs=0.0, crop_windows=CROP)
    result = train_localiser(trained.model, [*few, *more], recipe, tmp_path / "run", workers=0)
    assert {Path(video.path).stem: video.reason[-25:] for video in result.skipped} == {
        "train1": "frame 7 cannot be decoded",
        "val1": "frame 8 cannot be decoded",
    }
    assert result.evaluation is not None
    assert [Path(path).stem for path in result.evaluation.predictions] == ["val0"]
    assert [Path(video.path).stem for video in result.evaluation.skipped] == ["val1"]


def test_a_dry_run_tries_it(trained: Trained, few: list[Annotation]) -> None:
    recipe = trained.recipe.vary(video_lr=1e-3, crop_windows=CROP)
    found = dry_run_localiser(trained.model, few, recipe, workers=0)
    assert (found.films, found.windows, found.steps) == (3, 0, 2)
    assert found.training_seconds > 20 * found.step_seconds
