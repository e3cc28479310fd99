from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers import train
from uniformerv2 import arm, load_model, save_model
from uniformerv2.errors import CheckpointError, RecipeError
from uniformerv2.model.config import Preprocessing, named_config
from uniformerv2.tasks.start import build_model
from uniformerv2.train.recipe import ClipRecipe, ModelRecipe, Optimization, Recipe
from uniformerv2.weights.labels import class_list


@pytest.fixture(scope="module")
def checkpoint(image_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video model of four colours, none of whose weights are zero."""
    torch.manual_seed(0)
    labels = ("green", "yellow", "blue", "red")
    model = arm(image_model, num_classes=4, layout="temporal", labels=labels, num_frames=4, size=32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    path = tmp_path_factory.mktemp("video") / "colours.safetensors"
    save_model(model, path)
    return path


def recipe(checkpoint: Path, **options: bool) -> Recipe:
    return Recipe(
        ModelRecipe(checkpoint=str(checkpoint), head_dropout=0.5, drop_path=0.1, **options), ClipRecipe(4, 32)
    )


def test_named_sizes_start_from_scratch() -> None:
    recipe = Recipe(ModelRecipe(model="Ti/16", layout="scene"), ClipRecipe(num_frames=4, size=(32, 64)))
    with torch.device("meta"):
        model = build_model(recipe, ["a", "b"])
    assert model.config == named_config("Ti/16", "scene", image_size=(32, 64), num_classes=2)
    assert model.preprocessing == Preprocessing(num_frames=4, size=(32, 64))
    assert model.labels == ("a", "b")


def test_a_checkpoint_goes_on_with_a_new_head(checkpoint: Path) -> None:
    before = load_model(checkpoint)
    model = build_model(recipe(checkpoint), ["a", "b", "c"])
    assert model.labels == ("a", "b", "c")
    assert model.config == replace(before.config, num_classes=3, head_dropout=0.5, drop_path=0.1)
    state = model.state_dict()
    assert state["head.linear.weight"].shape == (3, 32)
    for name, tensor in before.state_dict().items():
        if not name.startswith("head.linear"):
            assert torch.equal(state[name], tensor), name


def test_a_mapped_head_says_what_the_checkpoint_says_of_these_classes(checkpoint: Path) -> None:
    before, model = (
        load_model(checkpoint),
        build_model(recipe(checkpoint, map_head=True), ["blue", "green", "red"]).eval(),
    )
    clip = torch.rand(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(clip), before(clip)[:, [2, 0, 3]])
    assert model.labels == ("blue", "green", "red")


def test_names_of_kinetics_are_found_however_they_are_spelled(image_model: Path, tmp_path: Path) -> None:
    labels, wanted = class_list("kinetics710"), class_list("kinetics400", order="mmaction2")
    save_model(arm(image_model, num_classes=710, labels=labels, num_frames=4, size=32), tmp_path / "k710.safetensors")
    model = build_model(recipe(tmp_path / "k710.safetensors", map_head=True), wanted)
    assert model.labels == wanted
    before = load_model(tmp_path / "k710.safetensors")
    row = labels.index("abseiling")
    here = wanted.index("abseiling")
    assert torch.equal(model.head.linear.weight[here], before.head.linear.weight[row])
    assert len({tuple(weights) for weights in model.head.linear.weight.tolist()}) == 400


def test_a_class_without_a_row_is_named(checkpoint: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"colours\.safetensors: its head of 4 classes .*'pink' and 1 more.*new rows"
    ):
        build_model(recipe(checkpoint, map_head=True), ["red", "pink", "white"])
    with pytest.raises(CheckpointError, match=r"absent"):
        build_model(recipe(checkpoint.with_name("absent.safetensors")), ["a", "b"])


def test_a_run_starts_from_a_checkpoint(colours: Path, checkpoint: Path, tmp_path: Path) -> None:
    before = checkpoint.read_bytes()
    one = replace(recipe(checkpoint, map_head=True), optimization=Optimization(epochs=1, batch_size=4, warmup_epochs=0))
    result = train(colours, one, tmp_path / "run")
    assert load_model(result.last).labels == ("blue", "green", "red")
    assert checkpoint.read_bytes() == before
    with pytest.raises(RecipeError, match="not empty"):
        train(colours, one, tmp_path / "run")


@pytest.mark.parametrize("start", ["arm", "model", "checkpoint"])
def test_the_recipe_says_how_clips_are_normalised(start: str, image_model: Path, checkpoint: Path) -> None:
    source = {"arm": str(image_model), "model": "Ti/16", "checkpoint": str(checkpoint)}[start]
    clip = ClipRecipe(4, 32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), channel_order="bgr")
    model = build_model(Recipe(ModelRecipe(**{start: source}), clip), ["a", "b"])
    assert model.preprocessing == Preprocessing(4, size=(32, 32), mean=clip.mean, std=clip.std, channel_order="bgr")
    video = torch.randint(0, 256, (1, 3, 4, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (clip.mean, clip.std))
    normalised = (video.flip(1) / 255 - mean) / std
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(video), model(normalised), rtol=1e-3, atol=1e-4)


def test_a_frozen_backbone_learns_what_arming_added(image_model: Path) -> None:
    start = ModelRecipe(arm=str(image_model), frozen_backbone=True)
    model = build_model(Recipe(start, ClipRecipe(4, 32)), ["a", "b"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    added = {name for name, _ in model.named_parameters() if ".local" in name or not name.startswith("backbone.")}
    assert trained == added


@pytest.mark.parametrize("weights", ["model", "ema"])
def test_a_run_starts_from_the_weights_that_are_asked_for(image_model: Path, tmp_path: Path, weights: str) -> None:
    state = load_file(image_model)
    torch.save({"model": state, "model_ema": {key: tensor / 2 for key, tensor in state.items()}}, tmp_path / "both.pth")
    start = ModelRecipe(arm=str(tmp_path / "both.pth"), weights=weights)  # type: ignore[arg-type]
    recipe = Recipe(start, ClipRecipe(num_frames=4, size=32))
    found = build_model(recipe, ("a", "b")).backbone.blocks[0].mlp.fc1.weight
    expected = arm(image_model, num_classes=2, num_frames=4).backbone.blocks[0].mlp.fc1.weight
    assert torch.equal(found, expected if weights == "model" else expected / 2)
