"""`fine_tune`: which recipe it takes, what it says, and what comes out."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import before_call, interrupt, logged
from uniformerv2 import FineTuned, Predictor, RecipeError, fine_tune, save_model
from uniformerv2.fine_tuning import _fitting, _varied
from uniformerv2.tasks.classification.task import Classification
from uniformerv2.tasks.rehearsal import BatchSizes
from uniformerv2.train.recipes import find_recipe
from uniformerv2.train.recipes.own import suited_recipe

TINY: dict[str, Any] = {"num_frames": 4, "size": 32, "epochs": 5, "batch_size": 4, "lr": 2e-3, "workers": 0}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def tuned(colours: Path, image_model: Path, tmp_path_factory: pytest.TempPathFactory) -> FineTuned:
    return fine_tune(colours, arm=image_model, output=tmp_path_factory.mktemp("runs") / "run", **TINY)


def test_a_folder_of_videos_becomes_a_predictor(tuned: FineTuned, colours: Path) -> None:
    assert repr(tuned) == f"FineTuned(3 of 3 held-out videos right (100.0%), 3 classes, run {str(tuned.run)!r})"
    assert tuned.predict(colours / "red" / "red1.mp4").labels[0] == "red"
    assert tuned.predict(colours / "red" / "red1.mp4", top_k=2).labels[0] == "red"
    assert tuned.model.labels == ("blue", "green", "red")
    assert tuned.evaluation.correct == 3
    ran = tuned.recipe.vary(precision="fp32", compile=False, flip_labels="none", monitor="top1")
    assert (tuned.run / "recipe.json").read_text() == ran.to_json()


def test_what_comes_out_is_saved_copied_and_pickled(tuned: FineTuned, video: Path, tmp_path: Path) -> None:
    save_model(tuned.model, tmp_path / "saved.safetensors")
    expected = tuned.predict(video)
    assert Predictor(tmp_path / "saved.safetensors").predict(video).scores == expected.scores
    for other in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
        assert other.predict(video) == expected
        assert repr(other) == repr(tuned)


def test_it_says_what_it_takes_and_never_overwrites(
    colours: Path, image_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**TINY, "epochs": 1, "progress": True}
    runs = [fine_tune(colours, arm=image_model, **options).run for _ in range(2)]
    name = f"{colours.name}-run"
    assert runs == [Path(name), Path(f"{name}2")]
    output, errors = capsys.readouterr()
    assert f"15 videos of 3 classes: recipe own-small-vit, run folder {name}\n" in errors
    assert output.startswith("epoch 1/1  loss ")
    with pytest.raises(RecipeError, match=f"{name}: not empty"):
        fine_tune(colours, arm=image_model, output=runs[0], **options)


@pytest.mark.parametrize(
    ("videos", "size"), [(2, "small"), (999, "small"), (1_000, "medium"), (99_999, "medium"), (100_000, "large")]
)
def test_the_number_of_videos_decides_the_size(videos: int, size: str) -> None:
    assert suited_recipe(videos) == f"own-{size}-vit"


@pytest.mark.parametrize(
    ("arm", "kind"),
    [
        (None, "vit"),
        ("openai/clip-vit-base-patch16", "clip"),
        (Path("weights/CLIP-ViT-B-32.safetensors"), "clip"),
        ("facebook/dinov2-small", "dinov2"),
        ("vit_tiny_patch16_224.safetensors", "vit"),
    ],
)
def test_the_name_of_the_start_decides_the_kind(arm: str | Path | None, kind: str) -> None:
    assert suited_recipe(2, arm=arm) == f"own-small-{kind}"
    assert suited_recipe(2, checkpoint="k400_b16.pth") == "own-small-clip"


def test_rates_follow_the_batch_and_the_warm_up_the_epochs() -> None:
    small, medium = (find_recipe(f"own-{size}-vit").recipe for size in ("small", "medium"))
    varied = _varied(small, {}, {"batch_size": 16, "epochs": 5}).optimization
    assert (varied.lr, varied.warmup_epochs) == (6e-4, 0.5)  # 3e-4 for 8 clips, two of twenty epochs
    assert _varied(medium, {}, {"batch_size": 32}).optimization.lr == 1.25e-5
    assert _varied(small, {}, {"batch_size": 16, "lr": 1e-3}).optimization.lr == 1e-3
    assert _varied(medium, {}, {"batch_size": 32, "lr": 1e-3}).optimization.lr == 1e-3
    assert _varied(small, {}, {"flip": True}).augmentation.flip == 0.5
    assert _varied(small, {}, {"flip": False}).augmentation.flip == 0.0


def test_a_video_model_keeps_its_own_norm() -> None:
    varied = _varied(find_recipe("own-small-clip").recipe, {"checkpoint": "mine.safetensors"}, {})
    assert (varied.model.arm, varied.model.checkpoint, varied.model.post_norm) == (None, "mine.safetensors", None)


def test_a_field_that_is_none_has_its_nearest(colours: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe has a field 'epoch'; did you mean epochs"):
        fine_tune(colours, epoch=3)
    with pytest.raises(RecipeError, match="no recipe is called 'own-smal-vit'; did you mean own-small-vit"):
        fine_tune(colours, recipe="own-smal-vit")
    assert not list(Path().iterdir())


def test_an_interrupted_run_goes_on_to_the_same_end(
    tuned: FineTuned,
    colours: Path,
    image_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        before_call(patch, Classification, "loss", 8, interrupt)  # in the third epoch of three steps each
        with pytest.raises(KeyboardInterrupt, match="interrupted; go on with resume=True") as interrupted:
            fine_tune(colours, arm=image_model, **TINY)
    name = f"{colours.name}-run"
    assert f"uniformerv2 train --resume --output {name}" in str(interrupted.value)
    assert [frame.name for frame in interrupted.traceback][1:] == ["fine_tune"]  # none of the loop's
    assert interrupted.value.__suppress_context__
    again = fine_tune(colours, arm=image_model, output=name, resume=True, **TINY)
    assert logged(again.run, "step") == logged(tuned.run, "step")
    with pytest.raises(RecipeError, match="resume needs the folder of the run: give output"):
        fine_tune(colours, arm=image_model, resume=True, **TINY)


def test_a_batch_that_a_gpu_cannot_hold_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uniformerv2.fine_tuning.pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(
        "uniformerv2.fine_tuning.find_batch_size",
        lambda data, recipe, **options: BatchSizes(2, {}, {}, recipe.optimization.batch_size),
    )
    fitted = _fitting((), find_recipe("own-small-vit").recipe, "auto", False)
    assert (fitted.optimization.batch_size, fitted.optimization.accumulate) == (8, 4)
