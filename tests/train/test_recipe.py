from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pytest

from uniformerv2.errors import RecipeError
from uniformerv2.train.recipe import (
    AugmentationOptions,
    ClipRecipe,
    ModelRecipe,
    Optimization,
    Recipe,
    differences,
    nearest,
)
from uniformerv2.video.augmentation import Augmentation
from uniformerv2.video.views import Views

B16 = Recipe(ModelRecipe(model="B/16"))


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        (Optimization, {"epochs": [0], "batch_size": [0], "accumulate": [0], "lr_base_batch": [0], "ema": [1.0]}),
        (Optimization, {"layer_decay": [0.0, 1.1], "lr": [0.0, float("nan")], "warmup_epochs": [-1.0, 1e9]}),
        (Optimization, {"start_lr": [1.0], "end_lr": [-1.0], "weight_decay": [-0.1], "betas": [(0.9, 1.0)]}),
        (Optimization, {"clip_norm": [0.0], "label_smoothing": [1.0], "evaluate_every": [0], "early_stop": [-1]}),
        (Optimization, {"seed": [-1]}),
        (ClipRecipe, {"num_frames": [0], "size": [0, (32, -16)], "std": [(0.2, 0.0, 0.2)]}),
        (Views, {"clips": [0], "crops": [2]}),
        (partial(ModelRecipe, model="B/16"), {"drop_path": [1.0], "global_drop_path": [-0.1], "global_dropout": [1.0]}),
        (partial(ModelRecipe, model="B/16"), {"head_dropout": [2.0], "checkpoint_blocks": [-1]}),
    ],
)
def test_values_out_of_range_are_refused_and_quoted(part: Any, wrong: dict[str, list[Any]]) -> None:
    for field, value in ((field, value) for field, values in wrong.items() for value in values):
        with pytest.raises(RecipeError, match=field) as raised:
            part(**{field: value})
        assert str(value) in str(raised.value)


@pytest.mark.parametrize("field", ["repeats", "erasing", "mixup", "cutmix", "magnitude", "num_ops", "fixed_views"])
def test_augmentation_is_checked_on_the_command_line_and_in_python(field: str) -> None:
    with pytest.raises(RecipeError, match=f"{field} must .*-1"):
        AugmentationOptions(**{field: -1}).build()
    with pytest.raises(RecipeError, match=f"{field} must .*-1"):
        B16.vary(**{field: -1})


def test_a_batch_is_divided_without_rest() -> None:
    with pytest.raises(RecipeError, match="divisible by accumulate 3, got 8"):
        Optimization(batch_size=8, accumulate=3)
    with pytest.raises(RecipeError, match="divisible by accumulate times repeats, 16, got 8"):
        B16.vary(batch_size=8, accumulate=4, repeats=4)
    assert B16.vary(batch_size=16, accumulate=4, repeats=4).optimization.batch_size == 16


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"frozen_backbone": False}, "cache_features needs frozen_backbone, got False"),
        ({"fixed_views": 0}, "cache_features needs fixed_views, got 0"),
        ({"mixup": 0.2}, r"needs clips that are not mixed, mixup 0 and cutmix 0, got \(0.2, 0.0\)"),
        ({"cutmix": 1.0}, r"got \(0.0, 1.0\)"),
    ],
)
def test_features_are_kept_only_where_they_come_again(changed: dict[str, float], said: str) -> None:
    options = {"cache_features": "fp32", "frozen_backbone": True, "fixed_views": 2}
    assert B16.vary(**options).model.cache_features == "fp32"
    with pytest.raises(RecipeError, match=said):
        B16.vary(**options | changed)


def test_a_run_starts_from_exactly_one_model() -> None:
    for chosen in ({}, {"arm": "vit.safetensors", "model": "B/16"}, {"model": "B/16", "checkpoint": "b16-k710-8x224"}):
        with pytest.raises(RecipeError, match=r"--arm.*--model.*--checkpoint"):
            ModelRecipe(**chosen)
    with pytest.raises(RecipeError, match="map_head needs a checkpoint"):
        ModelRecipe(model="B/16", map_head=True)


def test_options_replace_the_layout_only_where_chosen() -> None:
    plain = ModelRecipe(model="S/16").options()
    rates = ("drop_path", "global_drop_path", "global_dropout", "head_dropout")
    assert plain == {**dict.fromkeys(rates, 0.0), "checkpoint_blocks": 0}
    chosen: dict[str, Any] = {"local_blocks": "none", "temporal_downsample": False, "global_after": ()}
    chosen |= {"local_mixing": "calibrated", "post_norm": False, "mix_class_token": False, "global_drop_path": 0.4}
    assert ModelRecipe(model="S/16", **chosen).options() == plain | chosen


def test_one_number_means_a_square() -> None:
    assert ClipRecipe(size=96).height_width == (96, 96)
    assert ClipRecipe(size=(64, 96)).height_width == (64, 96)


def test_json_and_printed_lines_leave_nothing_out() -> None:
    recipe = Recipe(ModelRecipe(model="B/16"), optimization=Optimization(lr=1e-5))
    parsed = json.loads(recipe.to_json())
    assert parsed == json.loads(json.dumps(asdict(recipe)))
    assert parsed["optimization"]["lr"] == 1e-5
    printed = dict(recipe.lines())
    for part, values in asdict(recipe).items():
        for name, value in values.items():
            assert value is None or f"{name} {value}" in printed[part]
    assert set(printed) == {"model", "clip", "optimization", "augmentation", "evaluation"}


def test_differences_name_the_fields_with_both_values() -> None:
    texts = [json.loads(recipe.to_json()) for recipe in (B16, B16.vary(model="S/16", epochs=3))]
    assert differences(*texts) == ["epochs 20 is now 3", "model B/16 is now S/16"]
    assert differences(texts[0], texts[0]) == []


def test_vary_finds_the_part_of_a_field() -> None:
    varied = B16.vary(lr=1e-5, num_frames=16, flip=0.0, drop_path=0.1, crops=3)
    assert varied == Recipe(
        ModelRecipe(model="B/16", drop_path=0.1),
        ClipRecipe(num_frames=16),
        Optimization(lr=1e-5),
        replace(B16.augmentation, flip=0.0),
        Views(crops=3),
    )
    with pytest.raises(RecipeError, match=r"no recipe has a field 'batchsize'; did you mean batch_size"):
        B16.vary(batchsize=3)


def test_another_start_takes_the_place_of_the_former() -> None:
    tuned = B16.vary(checkpoint="b16-k710-8x224", map_head=True)
    assert (tuned.model.model, tuned.model.checkpoint, tuned.model.map_head) == (None, "b16-k710-8x224", True)
    other = tuned.vary(checkpoint="mine.safetensors")
    assert (other.model.checkpoint, other.model.map_head) == ("mine.safetensors", True)
    armed = tuned.vary(arm="vit.safetensors")
    assert armed.model == ModelRecipe(arm="vit.safetensors")


def test_no_two_parts_have_a_field_of_one_name() -> None:
    names = [name for values in asdict(B16).values() for name in values]
    assert len(names) == len(set(names))


def test_learning_rates_are_scaled_with_the_batch_on_request_only() -> None:
    asked = B16.vary(lr=1e-5, start_lr=2e-6, end_lr=1e-6, lr_base_batch=256, batch_size=64)
    resolved = asked.resolved()
    rates = resolved.optimization
    assert (rates.lr, rates.start_lr, rates.end_lr) == pytest.approx((2.5e-6, 5e-7, 2.5e-7))
    assert resolved.resolved() == resolved  # so that what was saved can be run again
    said = differences(asdict(asked.optimization), asdict(resolved.optimization))
    assert [line.split()[0] for line in said] == ["end_lr", "lr", "lr_base_batch", "start_lr"]
    assert "lr_base_batch 256 is now 64" in said
    assert B16.vary(batch_size=64).resolved().optimization == B16.vary(batch_size=64).optimization


def test_the_command_line_shows_an_augmentation_as_it_is() -> None:
    for augmentation in (Augmentation(), Augmentation(num_ops=2, flip=0.0, repeats=2, mixup=0.8, erasing=0.25)):
        assert AugmentationOptions.of(augmentation).build() == augmentation


def test_names_that_are_none_are_told_the_nearest() -> None:
    assert nearest("epoch", ["epochs", "lr", "seed"]) == "did you mean epochs?"
    assert nearest("zzz", ["lr", "epochs"]) == "there are epochs, lr"
