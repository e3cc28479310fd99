"""Memory that is out and devices that are gone, as torch tells of them, end a training with a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import before_call
from uniformerv2.errors import ProcessError, RecipeError, UniFormerV2Error
from uniformerv2.tasks.classification.task import Classification
from uniformerv2.tasks.classification.training import train_classifier
from uniformerv2.tasks.rehearsal import dry_run
from uniformerv2.train.failures import reporting_device_failures
from uniformerv2.train.log import read_metrics
from uniformerv2.train.recipe import ClipRecipe, ModelRecipe, Optimization, Recipe

CUDA_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.2 GiB is free. "
    "If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
)
LOST = "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported later."


@pytest.fixture
def recipe(image_model: Path) -> Recipe:
    return Recipe(
        ModelRecipe(arm=str(image_model), layout="scene"),  # without BatchNorm, which sees the parts
        ClipRecipe(num_frames=4, size=32),
        Optimization(epochs=2, batch_size=4, lr=2e-3, warmup_epochs=1, precision="fp32"),
    )


def out_of_gpu_memory() -> None:
    raise torch.OutOfMemoryError(CUDA_MEMORY)


def out_of_cpu_memory() -> None:
    torch.empty(2**50, dtype=torch.uint8)


def lost_gpu() -> None:
    raise getattr(torch, "AcceleratorError", RuntimeError)(LOST)


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "step"]


def test_a_run_that_is_out_of_memory_goes_on_in_smaller_parts(
    colours: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    train_classifier(colours, recipe, unbroken, workers=0)
    with monkeypatch.context() as patch:
        before_call(patch, Classification, "loss", 5, out_of_gpu_memory)  # of 6
        with pytest.raises(RecipeError) as caught:
            train_classifier(colours, recipe, run, workers=0)
    assert str(caught.value) == (
        f"{run}: CUDA out of memory. Tried to allocate 2.00 GiB; what was saved before is intact: 4 clips at once are "
        "too many; continue with --resume --accumulate 2, which takes the same steps in smaller parts, or start "
        "another run with a smaller --batch-size than 4; uniformerv2 rehearse batch-size finds what fits"
    )
    assert [state.name for state in (run / "state").iterdir()] == ["000001-00000000"]
    train_classifier(colours, recipe.vary(accumulate=2), run, workers=0, resume=True)
    losses, expected = ([step["loss"] for step in steps_of(folder)] for folder in (run, unbroken))
    assert losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("failure", [out_of_gpu_memory, out_of_cpu_memory, lost_gpu])
def test_a_failure_is_one_line_and_the_run_goes_on(
    colours: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Callable[[], None]
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        before_call(patch, Classification, "evaluate", 1, failure)
        with pytest.raises(UniFormerV2Error, match=r"run: .*intact: .*--resume") as caught:
            train_classifier(colours, recipe, run, workers=0)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ProcessError if failure is lost_gpu else RecipeError)
    assert not (run / ".lock").exists()
    train_classifier(colours, recipe, run, workers=0, resume=True)
    assert len(steps_of(run)) == 6


def test_a_dry_run_says_it_too(colours: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    before_call(monkeypatch, Classification, "loss", 1, out_of_gpu_memory)
    with pytest.raises(RecipeError, match="dry run: CUDA out of memory"):
        dry_run(colours, recipe, workers=0)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "repeats", "way_out"),
    [
        (6, 2, 1, "3 clips at once are too many; continue with --resume --accumulate 6,"),
        (12, 1, 2, "12 clips at once are too many; continue with --resume --accumulate 2,"),
        (4, 4, 1, "1 clips at once are the fewest; start another run with a smaller model"),
        (4, 2, 2, "2 clips at once are the fewest; start another run with a smaller model"),
    ],
)
def test_the_next_number_of_parts_divides_the_batch(
    recipe: Recipe, batch_size: int, accumulate: int, repeats: int, way_out: str
) -> None:
    wanted = recipe.vary(batch_size=batch_size, accumulate=accumulate, repeats=repeats)
    with pytest.raises(RecipeError, match=way_out), reporting_device_failures("run", wanted):
        out_of_gpu_memory()


def test_other_errors_keep_their_traceback(recipe: Recipe) -> None:
    with pytest.raises(RuntimeError, match="a shape") as caught, reporting_device_failures("run", recipe):
        raise RuntimeError("a shape that does not fit")
    assert caught.type is RuntimeError
