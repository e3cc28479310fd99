"""Architectures as data."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from models import ARCHITECTURES, BASE, architecture
from uniformerv2 import ModelConfig, named_config
from uniformerv2.model.config import RotaryEmbedding


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_the_same_after_json(name: str) -> None:
    config = architecture(name)
    assert ModelConfig.from_fields(json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "heads 5"),
        ({"image_size": (30, 32)}, "image_size"),
        ({"local_kernel": 2}, "local_kernel"),
        ({"local_mixing": "tada"}, "convolution, calibrated, differences or shift, got 'tada'"),
        ({"local_mixing": "calibrated"}, "local_mixing calibrated needs local UniBlocks"),
        ({"local_blocks": "attention", "local_mixing": "shift", "local_kernel": 1}, "3 frames or more, got 1"),
        ({"global_after": (2, 1)}, "global_after"),
        ({"global_after": (0, 3)}, "global_after"),
        ({"num_queries": 0}, "num_queries"),
        ({"num_classes": 0}, "num_classes"),
        ({"global_after": (), "mix_class_token": False}, "global_after"),
        ({"class_token": False}, "needs a class token"),
        ({"pool": "max"}, "class_token, mean or attention, got 'max'"),
        ({"rotary": RotaryEmbedding(), "heads": 16}, "multiple of 4 channels, got 2"),
        ({"pool_heads": 5}, "pool_heads 5"),
        ({"relative_bias": True, "register_tokens": 4}, "relative_bias"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BASE, **options)


def test_layouts_of_the_paper() -> None:
    assert named_config("B/16").global_after == (8, 9, 10, 11)
    assert named_config("L/14@336").image_size == (336, 336)
    temporal = named_config("L/14", "temporal", num_classes=174)
    assert temporal.global_after == tuple(range(8, 24))
    assert temporal.local_blocks == "attention+mlp"
    assert temporal.temporal_downsample
    with pytest.raises(ValueError, match="B/32"):
        named_config("B/32")
