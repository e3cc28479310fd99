"""The demo end to end on a handful of videos. What it reaches is measured by running it, not here."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from uniformerv2.data.sources import read_annotations
from uniformerv2.demo.motions import MOTIONS, draw, draw_stills
from uniformerv2.demo.run import ASSET, DemoFolder, DemoResult, Effort, demo_recipe, order_blind, run_demo
from uniformerv2.errors import RecipeError
from uniformerv2.tasks.start import build_model
from uniformerv2.weights.loading import load_model

EFFORT = Effort(train_clips=2, held_out_clips=1, epochs=1, batch_size=8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoResult]:
    output = tmp_path_factory.mktemp("demo") / "out"
    return output, run_demo(output, seed=3, effort=EFFORT, workers=0)


def test_everything_is_written(finished: tuple[Path, DemoResult]) -> None:
    output, result = finished
    assert {path.name for path in output.iterdir()} == {
        "videos", "uniformerv2", "order_blind", "unseen.mp4", "report.html",
    }  # fmt: skip
    assert len(read_annotations(output / "videos" / "manifest.csv")) == 12 * 3
    assert result.report == output / "report.html"


def test_both_columns_are_measured_on_all_views_of_all_held_out_videos(finished: tuple[Path, DemoResult]) -> None:
    _, result = finished
    for evaluation in (result.with_order, result.without_order):
        assert (len(evaluation.views), len(evaluation.videos), evaluation.skipped) == (3, 12, ())


def test_checkpoints_load_and_differ_in_their_temporal_parts_only(finished: tuple[Path, DemoResult]) -> None:
    output, _ = finished
    model, blind = (load_model(output / run / "last.safetensors") for run in ("uniformerv2", "order_blind"))
    assert model.labels == blind.labels == tuple(sorted(MOTIONS))
    assert set(blind.state_dict()) < set(model.state_dict())
    assert {name.split(".")[0] for name in set(model.state_dict()) - set(blind.state_dict())} == {
        "backbone", "global_blocks", "query", "mix",
    }  # fmt: skip


def test_report_shows_the_measured_figures(finished: tuple[Path, DemoResult]) -> None:
    _, result = finished
    page = result.report.read_text(encoding="utf-8")
    for evaluation in (result.with_order, result.without_order):
        assert f"{100 * evaluation.top1:.1f}&nbsp;%" in page
    assert page.count("<article") == 1 + 6 + min(2, 12 - result.with_order.correct)


def test_prediction_ranks_classes(finished: tuple[Path, DemoResult]) -> None:
    _, result = finished
    assert set(result.prediction.labels) <= set(MOTIONS)
    assert list(result.prediction.scores) == sorted(result.prediction.scores, reverse=True)


def test_finished_demo_is_not_overwritten_unasked(finished: tuple[Path, DemoResult]) -> None:
    output, result = finished
    before = result.report.read_bytes()
    with pytest.raises(RecipeError, match="--overwrite"):
        run_demo(output, effort=EFFORT)
    assert result.report.read_bytes() == before


def test_overwrite_empties_a_former_demo_and_nothing_else(tmp_path: Path) -> None:
    folder = DemoFolder(tmp_path)
    (folder.videos / "cover").mkdir(parents=True)
    (folder.videos / "cover" / "old.mp4").touch()
    folder.report.touch()
    folder.prepare(overwrite=True)
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "thesis.tex").touch()
    folder.report.touch()
    for overwrite in (False, True):
        with pytest.raises(RecipeError):
            folder.prepare(overwrite=overwrite)
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex", "report.html"}


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match="not a folder"):
        run_demo(tmp_path / "file", overwrite=True, effort=EFFORT)


def test_order_blind_model_gives_a_clip_and_its_reversal_the_same_answer() -> None:
    recipe = demo_recipe(str(files("uniformerv2") / "assets" / ASSET), Effort(), seed=0)
    clip = torch.from_numpy(draw("cover", np.random.default_rng(0))[2::4]).transpose(0, 1)[None]
    backwards = clip.flip(2)
    blind = build_model(order_blind(recipe), MOTIONS).eval()
    with torch.inference_mode():
        torch.testing.assert_close(blind(clip), blind(backwards), rtol=1e-4, atol=1e-5)
    assert order_blind(recipe).optimization == recipe.optimization


def test_asset_knows_where_things_are() -> None:
    """A linear reader on its class token, fitted to 400 stills, finds the sprite in 150 others."""
    recipe = demo_recipe(str(files("uniformerv2") / "assets" / ASSET), Effort(), seed=0)
    image_model = build_model(order_blind(recipe), MOTIONS).eval()
    rng = np.random.default_rng(77)
    features, places = [], []
    for stills in (draw_stills(32, rng) for _ in range(24)):
        clear = stills.visible > 0.5
        with torch.inference_mode():
            features.append(image_model.forward_features(torch.from_numpy(stills.images[clear])[:, :, None]).pooled)
        places.append(torch.from_numpy(stills.place[clear]))
    inputs, targets = torch.cat(features).double()[:550], torch.cat(places).double()[:550]
    inputs = torch.cat([inputs, torch.ones(550, 1)], dim=1)
    fitted = torch.linalg.lstsq(inputs[:400], targets[:400]).solution
    left = (inputs[400:] @ fitted - targets[400:]).var(0) / targets[400:].var(0)
    assert left.max() < 0.1  # of the variance; an untrained transformer leaves more than half


def test_asset_is_small() -> None:
    asset = files("uniformerv2") / "assets" / ASSET
    assert len(asset.read_bytes()) <= 4_000_000
