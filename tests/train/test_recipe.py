from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from uniformerv2.errors import RecipeError
from uniformerv2.train.recipe import ClipRecipe, ModelRecipe, Optimization, Recipe, differences


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        (Optimization, "epochs", 0),
        (Optimization, "batch_size", 0),
        (Optimization, "lr", 0.0),
        (Optimization, "lr", float("nan")),
        (Optimization, "warmup_epochs", -1.0),
        (Optimization, "warmup_epochs", 1e9),
        (Optimization, "start_lr", 1.0),
        (Optimization, "end_lr", -1.0),
        (Optimization, "weight_decay", -0.1),
        (Optimization, "betas", (0.9, 1.0)),
        (Optimization, "clip_norm", 0.0),
        (Optimization, "label_smoothing", 1.0),
        (Optimization, "evaluate_every", 0),
        (Optimization, "seed", -1),
        (ClipRecipe, "num_frames", 0),
        (ClipRecipe, "size", 0),
        (ClipRecipe, "size", (32, -16)),
    ],
)
def test_values_out_of_range_are_refused_and_quoted(part: Any, field: str, value: Any) -> None:
    with pytest.raises(RecipeError) as raised:
        part(**{field: value})
    assert field in str(raised.value)
    assert str(value) in str(raised.value)


def test_a_run_starts_from_exactly_one_model() -> None:
    for chosen in ({}, {"arm": "vit.safetensors", "model": "B/16"}):
        with pytest.raises(RecipeError, match=r"--arm.*--model"):
            ModelRecipe(**chosen)


def test_options_replace_the_layout_only_where_chosen() -> None:
    assert ModelRecipe(model="S/16").options() == {"drop_path": 0.0, "head_dropout": 0.0}
    chosen = ModelRecipe(model="S/16", local_blocks="none", temporal_downsample=False, global_after=())
    assert chosen.options() == {
        "drop_path": 0.0,
        "head_dropout": 0.0,
        "local_blocks": "none",
        "temporal_downsample": False,
        "global_after": (),
    }


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


def test_differences_name_the_fields_with_both_values() -> None:
    before = Recipe(ModelRecipe(model="B/16"))
    after = replace(before, model=ModelRecipe(model="S/16"), optimization=Optimization(epochs=3))
    texts = [json.loads(recipe.to_json()) for recipe in (before, after)]
    assert differences(*texts) == ["epochs 20 is now 3", "model B/16 is now S/16"]
    assert differences(texts[0], texts[0]) == []
