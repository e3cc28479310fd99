"""Training from features on disk is training from clips, only faster."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import logged, tiny_recipe, train
from models import randn, small_model
from uniformerv2 import load_model
from uniformerv2.errors import CheckpointError, RecipeError
from uniformerv2.model.config import Preprocessing
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.tasks.feature_cache import FeatureLayout
from uniformerv2.tasks.run import TrainingResult
from uniformerv2.train.recipe import Recipe


@pytest.fixture(scope="module")
def recipe(image_model: Path) -> Recipe:
    """Four epochs of two fixed views, with all that is random in what is trained."""
    return tiny_recipe(
        image_model,
        **{"layout": "scene", "global_after": (1, 2), "temporal_downsample": True, "num_frames": 5, "epochs": 4},
        **{"frozen_backbone": True, "head_dropout": 0.1, "global_dropout": 0.1, "drop_path": 0.1},
        **{"fixed_views": 2, "num_ops": 2, "erasing": 0.5},
    )


@pytest.fixture(scope="module")
def plain(colours: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """The run that encodes every clip in every epoch."""
    return train(colours, recipe, tmp_path_factory.mktemp("runs") / "plain")


def losses(run: TrainingResult) -> list[float]:
    return [record["loss"] for record in logged(run.last.parent, "step")]


def test_losses_and_weights_are_those_of_the_run_that_encodes_in_every_epoch(
    plain: TrainingResult, colours: Path, recipe: Recipe, tmp_path: Path, encoded: list[int]
) -> None:
    cached = train(colours, recipe.vary(cache_features="fp32"), tmp_path / "run")
    assert sum(encoded) == 2 * 12  # two views of twelve videos, in four epochs
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-5)
    assert cached.evaluation.correct == plain.evaluation.correct
    weights = load_model(plain.last).state_dict()
    for name, tensor in load_model(cached.last).state_dict().items():
        # Adam divides by the size of the gradient, so rounding shows where a gradient is almost zero
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-4, msg=name)


def test_half_precision_halves_the_files_and_hardly_moves_the_losses(
    plain: TrainingResult, colours: Path, recipe: Recipe, tmp_path: Path
) -> None:
    sizes = {}
    for name in ("fp32", "fp16"):
        run = train(colours, recipe.vary(cache_features=name), tmp_path / name)
        files = list((tmp_path / name / "features").rglob("*.safetensors"))
        assert len(files) == 24
        sizes[name] = sum(file.stat().st_size - 8 - _header(file) for file in files)
        assert losses(run) == pytest.approx(losses(plain), rel=2**-10)  # fp16 rounds to 11 bits
    frames, tokens, width = 3, 5, 32
    assert sizes["fp32"] == 24 * 4 * (2 * frames * tokens * width + frames * width)
    assert sizes["fp16"] == sizes["fp32"] / 2


def _header(file: Path) -> int:
    return int.from_bytes(file.read_bytes()[:8], "little")


def test_another_run_shares_the_features_unless_something_that_decides_them_differs(
    colours: Path, recipe: Recipe, tmp_path: Path, encoded: list[int]
) -> None:
    one = recipe.vary(cache_features="fp32", epochs=1)
    folder = tmp_path / "features"

    def computed(recipe: Recipe) -> int:
        """Clips that a run has to encode."""
        encoded.clear()
        train(colours, recipe, tmp_path / "run", feature_cache=folder, overwrite=True)
        return sum(encoded)

    assert computed(one) == 12
    assert computed(one.vary(lr=1e-3, head_dropout=0.3, mix_class_token=False)) == 0
    assert computed(one.vary(fixed_views=1, epochs=2)) == 12  # another view comes first
    assert computed(one.vary(epochs=2)) == 0  # both were seen
    for changed in ({"erasing": 0.0}, {"cache_features": "fp16"}, {"num_frames": 4}, {"seed": 1}):
        assert computed(one.vary(**changed)) == 12, changed


def test_a_killed_run_goes_on_with_the_features_that_it_had(
    plain: TrainingResult, colours: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = recipe.vary(cache_features="fp32")
    encode, calls = UniFormerV2.encode, 0

    def killed(self: UniFormerV2, clip: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return encode(self, clip)

    with monkeypatch.context() as patch:
        patch.setattr(UniFormerV2, "encode", killed)
        with pytest.raises(KeyboardInterrupt):
            train(colours, cached, tmp_path / "run")
    folder = next((tmp_path / "run" / "features").iterdir())
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 8
    files[0].write_bytes(files[0].read_bytes()[:100])  # cut off, as by a loss of power
    (folder / f".{files[1].name}.abc.partial").write_text("what a killed process left")
    result = train(colours, cached, tmp_path / "run", resume=True, workers=2)
    assert losses(result) == pytest.approx(losses(plain), rel=1e-5)
    assert not list(folder.glob(".*"))


def test_an_unreadable_video_is_named_and_left_out(colours: Path, recipe: Recipe, tmp_path: Path) -> None:
    data = tmp_path / "videos"
    for folder in colours.iterdir():
        (data / folder.name).mkdir(parents=True)
        for file in folder.iterdir():
            (data / folder.name / file.name).symlink_to(file)
    (data / "red" / "broken.mp4").write_text("no video")
    (tmp_path / "list.txt").write_text("*4.mp4\n")
    options: dict[str, Any] = {"holdout_list": tmp_path / "list.txt"}
    whole = recipe.vary(epochs=1, batch_size=13)
    plain = train(data, whole, tmp_path / "plain", **options)
    cached = train(data, whole.vary(cache_features="fp32"), tmp_path / "cached", **options)
    assert cached.skipped == plain.skipped
    assert [video.path for video in cached.skipped] == [str(data / "red" / "broken.mp4")]
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-5)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_processes_share_the_encoding(
    colours: Path, recipe: Recipe, tmp_path: Path, together: Callable[..., Any], way: Any
) -> None:
    def work() -> int:
        clips, encode = [], UniFormerV2.encode

        def counting(self: UniFormerV2, clip: torch.Tensor) -> Any:
            clips.append(len(clip))
            return encode(self, clip)

        UniFormerV2.encode = counting  # type: ignore[method-assign]  # in this process alone
        train(colours, recipe.vary(cache_features="fp32"), tmp_path / "run", parallel=way)
        return sum(clips)

    recipe = recipe.vary(head_dropout=0.0, global_dropout=0.0)  # which each process draws for itself
    alone = train(colours, recipe, tmp_path / "alone")
    assert together(2, work) == [12, 12]
    assert [one["loss"] for one in logged(tmp_path / "run", "step")] == pytest.approx(losses(alone), rel=1e-4)


def test_repeated_views_lie_in_one_file(colours: Path, recipe: Recipe, tmp_path: Path) -> None:
    repeated = recipe.vary(repeats=2, epochs=2)
    plain = train(colours, repeated, tmp_path / "plain")
    cached = train(colours, repeated.vary(cache_features="fp32", accumulate=1), tmp_path / "cached")
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-5)
    assert len(list((tmp_path / "cached").rglob("features/*/*.safetensors"))) == 24


@pytest.mark.parametrize("option", ["flip_labels", "reverse_labels"])
def test_changed_views_have_their_labels(
    option: str, colours: Path, recipe: Recipe, tmp_path: Path, encoded: list[int]
) -> None:
    swapped = recipe.vary(**{"repeats": 2, "epochs": 2, option: "blue,green"})
    plain = train(colours, swapped, tmp_path / "plain")
    folder = {"feature_cache": tmp_path / "features"}
    kept = train(colours, swapped.vary(**{"cache_features": "fp32", option: "none"}), tmp_path / "kept", **folder)
    for run in ("first", "again"):
        encoded.clear()
        cached = train(colours, swapped.vary(cache_features="fp32"), tmp_path / run, **folder)
        assert sum(encoded) == (48 if run == "first" else 0)
        assert losses(cached) == pytest.approx(losses(plain), rel=1e-5)
        assert losses(cached) != pytest.approx(losses(kept), rel=1e-2)


def test_the_size_is_told_before_it_begins_and_too_much_is_refused(
    colours: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cached = recipe.vary(cache_features="fp16", epochs=1)
    train(colours, cached, tmp_path / "told", progress=True)
    # 2 stages x 3 frames x 5 tokens x 32 channels and 3 frames x 32 channels, of 2 bytes
    said = "features of 12 of 12 views, 0.00211 MB each in fp16, need 2.53e-05 GB in"
    assert said in capsys.readouterr().err
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 12 * 2112 - 1))
    with pytest.raises(RecipeError, match=r"need 2.53e-05 GB in .*, but 2.53e-05 GB are free there: make room"):
        train(colours, cached, tmp_path / "refused")


def test_a_trained_local_block_cannot_be_kept(colours: Path, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"needs a model without local UniBlocks.*local_blocks none"):
        train(colours, recipe.vary(cache_features="fp16", local_blocks="attention"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_the_format_cannot_hold_ends_the_run(
    colours: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack: Callable[..., torch.Tensor] = FeatureLayout.pack
    monkeypatch.setattr(FeatureLayout, "pack", lambda self, encoded: pack(self, encoded) * 1e9)
    with pytest.raises(RecipeError, match="not finite in fp16; take cache_features fp32"):
        train(colours, recipe.vary(cache_features="fp16"), tmp_path / "run")


def test_a_full_disk_is_a_clear_error(
    colours: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("uniformerv2.tasks.feature_cache.save_file", full)
    with pytest.raises(CheckpointError, match=r"could not be written .*No space left.*continue with --resume"):
        train(colours, recipe.vary(cache_features="fp32"), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.partial"))


@pytest.mark.parametrize("registers", [0, 3])
def test_features_are_unpacked_as_they_were_packed(registers: int) -> None:
    preprocessing = Preprocessing(num_frames=3, size=(16, 32))
    model, clip = (
        small_model("scene", preprocessing, image_size=(16, 32), register_tokens=registers),
        randn(2, 3, 3, 16, 32),
    )
    layout = FeatureLayout(model)
    packed = layout.pack(model.encode(clip))
    assert packed.shape == (2, layout.numbers)
    assert layout.numbers == 2 * math.prod((3, 1 + 2 * 4, 32)) + 3 * 32
    assert torch.equal(model(layout.unpack(packed)), model(clip))
