"""Where to start with data of one's own: `own-SIZE-START`.

SIZE is small (hundreds of videos), medium (thousands to tens of thousands) or large (100,000 and more); START is vit
(supervised on ImageNet), clip or dinov2. All are in the temporal layout, which sees motion as well as scenes, and each
says whether it was tried.

    uniformerv2 train VIDEOS --recipe own-small-vit --output RUN
"""

from __future__ import annotations

from pathlib import Path

from uniformerv2.train.recipes.base import CLIP, DEFAULTS, NamedRecipe
from uniformerv2.video.augmentation import Augmentation

DINOV2 = "facebook/dinov2-base"
VIT_B = "timm/vit_base_patch16_224.augreg_in21k"

TRIED = (
    "tried: 60 Weizmann clips, 144 pixels, batch size 10, three seeds: 28 or 29 of 30 clips of unseen people "
    "(docs/training.md)"
)
UNTRIED = "not tried: {}"

SMALL = DEFAULTS  # hundreds of videos
# large image models would overfit so few videos: they are frozen
SMALL_FROZEN = SMALL.vary(arm=CLIP["B/16"], frozen_backbone=True, head_dropout=0.5, lr=1e-4)

MEDIUM = SMALL.vary(
    **{"arm": VIT_B, "drop_path": 0.1, "global_drop_path": 0.2, "head_dropout": 0.5},
    **{"num_ops": 2, "crop_area": (0.25, 1.0)},
    **{"batch_size": 64, "lr": 2.5e-5, "lr_base_batch": 64, "layer_decay": 0.75},
)
LARGE = MEDIUM.vary(
    **{"drop_path": 0.2, "global_drop_path": 0.4, "global_dropout": 0.5},
    **{"num_ops": Augmentation.num_ops, "crop_area": Augmentation.crop_area},
    **{"batch_size": 256, "lr": 1e-4, "lr_base_batch": 256, "epochs": 22, "warmup_epochs": 5.0},
)

# CLIP's weights bear the learning rate of the published Something-Something runs, the same in all blocks
FROM_CLIP = {"arm": CLIP["B/16"], "post_norm": False, "layer_decay": 1.0}

_FROZEN = UNTRIED.format("a frozen backbone is the published way for Kinetics, its rate there 8e-4 for 512 clips")
_DECAYED = UNTRIED.format("rates and layer decay are what is usual for images")
_AS_SSV2 = UNTRIED.format("rate{} of the published Something-Something runs, with flips and 8 frames")

OWN = (
    NamedRecipe("own-small-vit", SMALL, notes=(TRIED,)),
    NamedRecipe("own-small-clip", SMALL_FROZEN.vary(post_norm=False), notes=(_FROZEN,)),
    NamedRecipe("own-small-dinov2", SMALL_FROZEN.vary(arm=DINOV2), notes=(_FROZEN,)),
    NamedRecipe("own-medium-vit", MEDIUM, notes=(_DECAYED,)),
    NamedRecipe("own-medium-clip", MEDIUM.vary(**FROM_CLIP, lr=1e-5), notes=(_AS_SSV2.format(""),)),
    NamedRecipe("own-medium-dinov2", MEDIUM.vary(arm=DINOV2), notes=(_DECAYED,)),
    NamedRecipe("own-large-vit", LARGE, notes=(_DECAYED,)),
    NamedRecipe(
        "own-large-clip", LARGE.vary(**FROM_CLIP, lr=4e-5), notes=(_AS_SSV2.format(", dropout and augmentation"),)
    ),
    NamedRecipe("own-large-dinov2", LARGE.vary(arm=DINOV2), notes=(_DECAYED,)),
)

SIZES = (("small", 1_000), ("medium", 100_000))  # each for fewer videos than that


def suited_recipe(videos: int, *, arm: str | Path | None = None, checkpoint: str | Path | None = None) -> str:
    """Name of the recipe for so many videos and this start; None: that of the recipe.

    Image transformers of a family bear the same learning rates. Published video models began as CLIP.
    """
    size = next((size for size, limit in SIZES if videos < limit), "large")
    families = ("clip", "dinov2") if checkpoint is None else ()
    family = next((family for family in families if family in str(arm).lower()), "vit" if families else "clip")
    return f"own-{size}-{family}"
