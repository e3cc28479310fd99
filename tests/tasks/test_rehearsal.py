from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.tasks import batch_size
from uniformerv2.tasks.batch_size import find_batch_size
from uniformerv2.tasks.rehearsal import dry_run, overfit_batch
from uniformerv2.train.recipe import ClipRecipe, EvaluationRecipe, ModelRecipe, Optimization, Recipe


@pytest.fixture
def recipe(image_model: Path) -> Recipe:
    return Recipe(
        ModelRecipe(arm=str(image_model), head_dropout=0.5, drop_path=0.1),
        ClipRecipe(num_frames=4, size=32),
        Optimization(epochs=10, batch_size=4, lr=2e-3, precision="fp32", accumulate=2, ema=0.99),
        evaluation=EvaluationRecipe(clips=2, crops=1),
    )


def test_a_dry_run_says_how_long_the_run_takes_and_leaves_nothing(
    colours: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    text = io.StringIO()
    result = dry_run(colours, recipe, console=Console(file=text, width=200), holdout=0.4)
    assert result.steps == 2  # of nine videos, four a step
    assert 0 < result.step_seconds < 5
    assert 0 < result.data_wait < 1
    assert result.memory_mib > 50
    assert result.epoch_seconds > 2 * result.step_seconds
    assert result.run_seconds > 10 * 2 * result.step_seconds
    assert text.getvalue().startswith("everything works: 2 steps an epoch, ")
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("tmp")] == []


def test_a_dry_run_fails_as_the_run_would(recipe: Recipe, tmp_path: Path) -> None:
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.mp4").write_text("no video")
    with pytest.raises(VideoError):
        dry_run(tmp_path, recipe)


def test_a_batch_is_learned(colours: Path, recipe: Recipe) -> None:
    text = io.StringIO()
    result = overfit_batch(colours, recipe, console=Console(file=text))
    assert result.learned
    assert result.losses[0] > 0.5
    assert result.losses[-1] < 0.05
    assert text.getvalue().splitlines()[1].startswith("the batch is learned")


def test_why_a_batch_is_not_learned(colours: Path, recipe: Recipe, tmp_path: Path) -> None:
    slow = replace(recipe, optimization=replace(recipe.optimization, lr=1e-7, start_lr=0.0, end_lr=0.0))
    result = overfit_batch(colours, slow, steps=5)
    assert not result.learned
    assert result.complaint.startswith("the loss hardly falls: take a higher lr than 1e-07")
    wild = replace(recipe, optimization=replace(recipe.optimization, lr=30.0, accumulate=1))
    assert overfit_batch(colours, wild, steps=3).complaint.startswith("the loss grows: take a lower lr than 30")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.mp4").symlink_to(next((colours / "red").iterdir()))
    whole = replace(recipe, optimization=replace(recipe.optimization, accumulate=1))
    complaint = overfit_batch(tmp_path, whole, steps=5, holdout=0.3).complaint
    assert complaint.endswith("are the same clip with different labels: nothing can tell them apart")


def test_batch_sizes_double_until_the_memory_is_expected_to_be_out(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = {"clips": 0, "tried": []}

    def attempt(model: object, recipe: object, size: int) -> float:
        used["clips"] = size
        used["tried"].append(size)
        return 7.0

    monkeypatch.setattr(batch_size, "_try", attempt)
    monkeypatch.setattr(batch_size, "peak_memory_mib", lambda place: 100.0 + 10 * used["clips"])
    result = find_batch_size(recipe, 3, limit_mib=270.0)
    assert used["tried"] == [1, 2, 4, 8, 16]  # 32 would take 420
    assert result.largest == 16
    assert result.memory_mib == {size: 100 + 10 * size for size in used["tried"]}
    assert result.accumulate == 1
    assert replace(result, largest=1).accumulate == 4
    assert replace(result, batch_size=48).accumulate == 3
    with pytest.raises(RecipeError, match="not even one clip fits into 50 MiB on cpu"):
        find_batch_size(recipe, 3, limit_mib=50.0)


def test_batch_sizes_are_really_tried(recipe: Recipe) -> None:
    text = io.StringIO()
    result = find_batch_size(recipe, 3, largest=4, console=Console(file=text))
    assert result.largest == 4
    assert set(result.clips_per_second) == {1, 2, 4}
    assert min(result.clips_per_second.values()) > 0
    assert text.getvalue().splitlines()[-1] == "4 clips fit; the recipe's batch of 4 at once"


def test_a_gpu_whose_memory_is_out_says_so(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(model: object, recipe: object, size: int) -> float:
        if size > 2:
            raise batch_size.torch.OutOfMemoryError
        return 1.0

    monkeypatch.setattr(batch_size, "_try", attempt)
    assert find_batch_size(recipe, 3).largest == 2
