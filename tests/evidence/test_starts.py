"""Pre-training on drawn stills: what each target looks at, and that it is done once."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evidence import running, starts
from evidence.cells import Cell, Result, cells_of
from evidence.claims import CLAIMS, Start
from evidence.data import DATA_SETS, Sources
from evidence.starts import merge, pretrained, start_model, trained_on_merged_sets
from models import randn
from tools.pretrain_stills import TARGETS, TEMPERATURE, Contrastive, Masked, draw_batch, pretrain, random_view
from uniformerv2 import Annotation
from uniformerv2.demo.motions import MOTIONS

BATCH = draw_batch(32, np.random.default_rng(0))
SHORT: dict[str, Any] = {"steps": 1, "batch_size": 64, "learning_rate": 1e-3, "seed": 0}


@pytest.mark.parametrize("target", TARGETS)
def test_gradients_reach_the_whole_transformer(target: str) -> None:
    torch.manual_seed(0)
    learner = TARGETS[target]()
    learner(BATCH).backward()
    without = [name for name, parameter in learner.backbone.named_parameters() if parameter.grad is None]
    assert not without


def test_hidden_patches_are_not_seen_and_alone_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same patches hidden: other pixels there change the target and not what the transformer sees."""
    torch.manual_seed(0)
    learner, seen = Masked(), []
    tokens = learner.tokens
    monkeypatch.setattr(learner, "tokens", lambda images: (seen.append(images), tokens(images))[1])

    def loss_of(images: torch.Tensor) -> float:
        torch.manual_seed(1)
        return learner(BATCH._replace(images=images)).item()

    first = loss_of(BATCH.images)
    (view,) = seen
    hidden = (view == 0).all(1, keepdim=True)
    assert hidden.float().mean().item() == pytest.approx(10 / 16, abs=0.01)  # of 16 patches
    inverted = BATCH.images.where(~hidden, 255 - BATCH.images)
    assert loss_of(inverted) != first
    assert torch.equal(seen[1], view)
    with torch.no_grad():
        told = learner.pixels(tokens(view)[:, 1:]).unflatten(2, (3, 16, 16)).unflatten(1, (4, 4))
        pixels = (BATCH.images / 255 - 0.5) / 0.25
        # (n, rows, columns, 3, 16, 16) -> (n, 3, height, width)
        errors = (told.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3) - pixels) ** 2
    assert first == pytest.approx(errors[hidden.expand_as(errors)].mean().item(), rel=1e-4)


def test_the_contrast_is_between_the_views_of_a_still_and_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    learner, tokens = Contrastive(), randn(64, 17, 96)
    monkeypatch.setattr(learner, "tokens", lambda images: tokens)
    embedded = torch.nn.functional.normalize(learner.projection(tokens[:, 0]), dim=-1).detach()
    losses = []
    for number in range(64):
        others = [other for other in range(64) if other != number]
        scores = [float(embedded[number] @ embedded[other]) / TEMPERATURE for other in others]
        right = scores[others.index((number + 32) % 64)]
        losses.append(math.log(sum(map(math.exp, scores))) - right)
    assert learner(BATCH).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_view_is_a_part_of_its_still() -> None:
    """Of a ramp from left to right: brightness still rises to the right, over half of its range to all of it."""
    ramp = torch.linspace(90, 160, 64).to(torch.uint8).expand(16, 3, 64, 64)
    torch.manual_seed(0)
    first, second = random_view(ramp), random_view(ramp)
    assert (first.diff(dim=3) >= -1e-4).all()
    assert first.diff(dim=2).abs().max() < 1e-4
    assert (first - second).abs().flatten(1).amax(1).min() > 0.01  # never the same twice


def cell_of(start: Start, *, quick: bool = False) -> Cell:
    variant = next(variant for variant in CLAIMS["image_start"].variants if variant.start == start)
    return cells_of(variant, DATA_SETS["motions"], "rows", seed=0, quick=quick)[0]


@pytest.mark.parametrize("target", ["supervised", "contrastive", "masked"])
def test_a_cell_starts_from_what_was_trained_once(
    target: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = pretrained(target, SHORT, tmp_path)
    expected = pretrain(target, **SHORT, workers=0).backbone.state_dict()
    started = start_model(cell_of(target), ["a", "b"], file).backbone.state_dict()
    for name in set(expected) - {"patch_embedding.weight"}:  # which temporal downsampling inflates
        assert torch.equal(started[name], expected[name])
    monkeypatch.setattr(starts, "pretrain", pytest.fail)
    assert pretrained(target, SHORT, tmp_path) == file
    assert {path.name for path in tmp_path.iterdir()} <= {file.name, f"{file.name}.lock"}


def test_a_start_is_made_before_its_cell_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = replace(cell_of("masked"), pretraining=SHORT)
    found: list[Path | None] = []

    def run_cell(cell: Cell, rows: object, work: Path, image: Path | None, device: str) -> Result:
        found.append(image)
        return Result(cell, ("a", "b"), (0,), (0,), (0,), 1, 1, 1.0, "a machine")

    monkeypatch.setattr(running, "run_cell", run_cell)
    monkeypatch.setattr(running, "split_into_folds", lambda data, rows: [[]])
    monkeypatch.setattr(Sources, "small_rows", lambda self, data, size: [])
    cells = [cell, replace(cell, start="stills", pretraining=None)]
    assert running.work_through(cells, dict(DATA_SETS), Sources({}, tmp_path / "cache"), tmp_path) == 0
    assert found == [pretrained("masked", SHORT, tmp_path / "cache"), None]


def test_how_long_is_part_of_a_cell() -> None:
    cells = [cell_of("masked"), cell_of("masked", quick=True), cell_of("stills")]
    assert [cell.pretraining and cell.pretraining["steps"] for cell in cells] == [300, 60, None]


def test_merged_sets_have_each_video_once_and_no_test_video() -> None:
    first = [Annotation(Path(name), "a", split=side) for name, side in (("1", "train"), ("2", "train"), ("3", "test"))]
    second = [
        Annotation(Path(name), "a", split=side) for name, side in (("2", "train"), ("3", "train"), ("4", "train"))
    ]
    assert [row.path.name for row in merge([first, second])] == ["1", "2", "4"]


def test_a_cell_goes_on_from_a_model_that_all_sets_have_trained(tmp_path: Path) -> None:
    variant = next(one for one in CLAIMS["merged"].variants if one.start == "merged")
    sources, name = Sources({}, tmp_path, drawn={"train_clips": 1, "held_out_clips": 2}), "motions_b"
    (cell,) = cells_of(variant, DATA_SETS[name], sources.digest(DATA_SETS[name]), seed=0)
    cell = replace(cell, recipe={**cell.recipe, "num_frames": 2}, pretraining={**(cell.pretraining or {}), "epochs": 1})
    trained = trained_on_merged_sets(cell, DATA_SETS, sources)
    start = start_model(cell, DATA_SETS[name].labels, trained)
    assert sorted(start.labels) == sorted(MOTIONS)
    before = start_model(replace(cell, start="stills"), sorted(MOTIONS)).state_dict()
    assert not torch.equal(start.state_dict()["head.linear.weight"], before["head.linear.weight"])
    again = trained.stat().st_mtime_ns
    assert trained_on_merged_sets(replace(cell, data="motions_c"), DATA_SETS, sources) == trained
    assert trained.stat().st_mtime_ns == again
    assert trained_on_merged_sets(replace(cell, recipe={**cell.recipe, "lr": 1e-4}), DATA_SETS, sources) != trained
