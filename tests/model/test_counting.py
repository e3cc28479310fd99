"""Parameters and multiply-adds, by hand for a tiny model and against the official counts for the released ones."""

from __future__ import annotations

import json
from pathlib import Path

from uniformerv2 import ModelConfig, named_config
from uniformerv2.model.counting import count_multiply_adds, count_parameters

SIZE_OF_BACKBONE = {"uniformerv2_b16": "B/16", "uniformerv2_l14": "L/14", "uniformerv2_l14_336": "L/14@336"}


def released_config(structure: str, num_classes: int) -> ModelConfig:
    """The configuration of a released experiment, from the name of its structure."""
    backbone, layout, _, variant = structure.split("|")
    frozen = variant == "frozen"
    return named_config(
        SIZE_OF_BACKBONE[backbone],
        layout,  # type: ignore[arg-type]
        num_classes=num_classes,
        mix_class_token=not frozen,
    )


def test_multiply_adds_of_a_model_counted_by_hand() -> None:
    config = ModelConfig(
        width=8,
        depth=1,
        heads=2,
        patch_size=4,
        image_size=(8, 8),
        local_blocks="attention",
        local_reduction=2,
        temporal_downsample=True,
        global_after=(0,),
        num_classes=3,
    )
    frames, patches, width, heads, reduced = 2, 4, 8, 2, 4  # 4 frames, halved by the stem
    tokens = frames * (1 + patches)
    # three taps, but the one before the first frame falls outside of the clip
    stem = (3 * frames - 1) * patches * width * 3 * 4 * 4
    local = frames * patches * (width * reduced + reduced * 3 + reduced * width)
    block = tokens * width * width * (3 + 1 + 4 + 4) + frames * 2 * (1 + patches) ** 2 * width
    position_encoding = frames * patches * width * 27
    # query projected, absorbed into the keys, two products with the tokens, values, output, MLP
    stage = width * width * 2 + 2 * heads * tokens * width + width * width * 2 + 2 * 4 * width * width
    assert count_multiply_adds(config, 4) == stem + local + block + position_encoding + stage + width * 3


def test_released_models_have_the_official_parameters_for_no_more_multiply_adds(shared: Path) -> None:
    experiments = json.loads((shared / "facts" / "official_structures.json").read_text())["experiments"]
    assert len(experiments) == 49
    for name, told in experiments.items():
        config = released_config(told["structure"], told["num_classes"])
        assert count_parameters(config) == told["params"], name
        size = (told["crop"], told["crop"])
        assert count_multiply_adds(config, told["frames"], size) / 1e9 <= told["gmacs_per_view"], name
