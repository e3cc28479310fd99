"""Multiply-adds, by hand for a tiny model and as torch counts them; tests/weights/test_zoo.py has the released ones."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models import ARCHITECTURES, architecture
from uniformerv2 import UniFormerV2
from uniformerv2.model.counting import count_multiply_adds


def test_multiply_adds_of_a_model_counted_by_hand() -> None:
    sizes = {"width": 8, "depth": 1, "patch_size": 4, "image_size": (8, 8), "global_after": (0,), "num_classes": 3}
    config = architecture("downsampling", local_blocks="attention", local_reduction=2, **sizes)
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


@pytest.mark.parametrize("frames", [1, 4, 5])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_formula_counts_what_the_model_does(name: str, frames: int) -> None:
    config = architecture(name)
    with torch.device("meta"):
        model, clip = UniFormerV2(config).eval().requires_grad_(False), torch.empty(1, 3, frames, 24, 32)
    with FlopCounterMode(display=False) as counter:
        model(clip)
    assert count_multiply_adds(config, frames, (24, 32)) == counter.get_total_flops() // 2
