"""The published experiments in the temporal layout: Something-Something V1 and V2, from CLIP.

    uniformerv2 train SOMETHING_V2 --recipe b16-ssv2-16x224 --output RUN

8 GPUs, 128 videos of 2 clips a step, 22 epochs: 69.5 % top-1. The others are in docs/recipes.md.
"""

from __future__ import annotations

from uniformerv2.train.recipes.base import CLIP, RELEASED, NamedRecipe

BLUE_FIRST = "the released frames were read by OpenCV and never turned: bgr here, though CLIP has seen rgb"

B16 = RELEASED.vary(
    **{"layout": "temporal", "drop_path": 0.2, "global_drop_path": 0.4},
    **{"num_frames": 16, "channel_order": "bgr", "flip": 0.0, "repeats": 2, "clips": 1},
    **{"epochs": 22, "lr": 4e-5},
)
L14 = B16.vary(arm=CLIP["L/14"], checkpoint_blocks=15, lr=2e-5)

TEMPORAL = tuple(
    NamedRecipe(pattern.format(dataset), recipe, gpus, (BLUE_FIRST,))
    for dataset in ("ssv1", "ssv2")
    for pattern, recipe, gpus in (
        ("b16-{}-16x224", B16, 8),
        ("b16-{}-32x224", B16.vary(num_frames=32), 16),
        ("l14-{}-16x224", L14, 16),
        ("l14-{}-32x224", L14.vary(num_frames=32), 32),
    )
)
