"""What comes before a long run: a dry run, one batch that is overfitted, the largest batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers import Run, tiny_recipe
from uniformerv2.data.annotations import Annotation
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.tasks import rehearsal
from uniformerv2.tasks.rehearsal import dry_run, find_batch_size, overfit_batch
from uniformerv2.tasks.table import find_task
from uniformerv2.train.recipe import Recipe


@pytest.fixture
def recipe(image_model: Path) -> Recipe:
    return tiny_recipe(image_model, epochs=10, head_dropout=0.5, drop_path=0.1, accumulate=2, ema=0.99, clips=2)


@pytest.fixture
def rehearse(uniformerv2: Run, colours: Path, image_model: Path) -> Run:
    """`uniformerv2 rehearse` with a recipe as above."""
    tiny = ("--arm", image_model, "--size", 32, "--num-frames", 4, "--batch-size", 4, "--workers", 0)

    def run(kind: str, *options: object) -> tuple[int, str, str]:
        return uniformerv2("rehearse", kind, colours, *tiny, "--precision", "fp32", *options)

    return run


def test_a_dry_run_says_how_long_the_run_takes_and_leaves_nothing(
    colours: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rehearse: Run
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = dry_run(colours, recipe, workers=0, holdout=0.4)
    assert result.steps == 2  # of nine videos, four a step
    assert result.step_seconds > 0
    assert 0 < result.data_wait < 1
    assert result.memory_mib > 50
    assert result.epoch_seconds > 2 * result.step_seconds
    assert result.run_seconds > 10 * 2 * result.step_seconds
    status, output, _ = rehearse("dry-run")
    assert status == 0
    assert output.startswith("everything works: 3 steps an epoch, ")
    assert not list(tmp_path.glob("tmp*"))


def test_a_dry_run_fails_as_the_run_would(recipe: Recipe, tmp_path: Path) -> None:
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.mp4").write_text(f"no video {name} {number}")
    with pytest.raises(VideoError):
        dry_run(tmp_path, recipe, workers=0)


def test_a_batch_is_learned(colours: Path, recipe: Recipe) -> None:
    result = overfit_batch(colours, recipe, workers=0)
    assert result.learned
    assert result.losses[0] > 0.5
    assert result.losses[-1] < 0.05
    assert result.lines()[1].startswith("the batch is learned")


def test_why_a_batch_is_not_learned(colours: Path, recipe: Recipe, rehearse: Run) -> None:
    result = overfit_batch(colours, recipe.vary(lr=1e-7, start_lr=0.0, end_lr=0.0), workers=0, steps=5)
    assert not result.learned
    assert len(result.losses) == 5
    assert result.complaint.startswith("the loss hardly falls: take a higher lr than 1e-07")
    status, output, _ = rehearse("overfit-batch", "--lr", 30, "--steps", 3)
    assert status == 2
    assert output.splitlines()[1].startswith("the loss grows: take a lower lr than 30")
    films = sorted((colours / "red").iterdir())[:3]
    rows = [Annotation(film, *cells) for film in films for cells in (("one", 0.0, 1.0), ("other", 0.0, 1.1))]
    complaint = overfit_batch(rows, recipe.vary(accumulate=1), workers=0, steps=5, holdout=0.3).complaint
    assert complaint.endswith("are the same clip with different labels: nothing can tell them apart")


def test_batch_sizes_double_until_the_memory_is_expected_to_be_out(
    colours: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = [0]

    def attempt(task: object, size: int) -> float:
        tried.append(size)
        return 7.0

    monkeypatch.setattr(rehearsal, "_try_size", attempt)
    monkeypatch.setattr(rehearsal, "peak_memory_mib", lambda place: 100.0 + 10 * tried[-1])
    result = find_batch_size(colours, recipe, limit_mib=270.0)
    assert tried == [0, 1, 2, 4, 8, 16]  # 32 would take 420
    assert result.largest == 16
    assert result.memory_mib == {size: 100 + 10 * size for size in tried[1:]}
    assert result.accumulate == 1
    assert replace(result, largest=1).accumulate == 4
    assert replace(result, batch_size=48).accumulate == 3
    with pytest.raises(RecipeError, match="not even one clip fits into 50 MiB on cpu"):
        find_batch_size(colours, recipe, limit_mib=50.0)


def test_batch_sizes_are_really_tried(colours: Path, recipe: Recipe) -> None:
    result = find_batch_size(colours, recipe, largest=4)
    assert result.largest == 4
    assert set(result.clips_per_second) == {1, 2, 4}
    assert min(result.clips_per_second.values()) > 0
    assert result.lines()[-1] == "4 clips fit; the recipe's batch of 4 at once"


def test_a_gpu_whose_memory_is_out_says_so(colours: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(task: object, size: int) -> float:
        if size > 2:
            raise rehearsal.torch.OutOfMemoryError
        return 1.0

    monkeypatch.setattr(rehearsal, "_try_size", attempt)
    assert find_batch_size(colours, recipe).largest == 2


def test_rehearsals_take_a_recipe_and_an_unknown_task_has_its_nearest(uniformerv2: Run, colours: Path) -> None:
    help_text = uniformerv2("rehearse", "batch-size", colours, "--recipe", "l14-ssv1-32x224", "--help")[1]
    assert "openai/clip-vit-large-patch14" in "".join(help_text.replace("│", "").split())
    with pytest.raises(RecipeError, match="no task is called 'classify'; did you mean classification"):
        find_task("classify")
