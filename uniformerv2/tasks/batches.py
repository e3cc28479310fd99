"""The batches that a recipe trains on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from uniformerv2.data.annotations import Annotation
from uniformerv2.data.dataset import VideoDataset, make_loader
from uniformerv2.data.loader import VideoLoader
from uniformerv2.distributed import current_ranks
from uniformerv2.errors import RecipeError
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.train.recipe import Recipe


def micro_batch(recipe: Recipe) -> int:
    """Clips that a process trains on at once.

    Raises:
        RecipeError: the batch cannot be divided.
    """
    world, optimization = current_ranks().world, recipe.optimization
    parts = world * optimization.accumulate * recipe.augmentation.repeats
    if optimization.batch_size % parts:
        raise RecipeError(
            f"batch_size must be divisible by {world} processes times accumulate times repeats, {parts}, "
            f"got {optimization.batch_size}"
        )
    return optimization.batch_size // (world * optimization.accumulate)


def training_loader(
    recipe: Recipe, model: UniFormerV2, training: Sequence[Annotation], *, workers: int = 2
) -> VideoLoader:
    """Batches of `micro_batch` clips, in an order that does not depend on how many of them make a step.

    Raises:
        AnnotationError: no annotations, or a label that is not among the model's.
    """
    optimization, repeats, ranks = recipe.optimization, recipe.augmentation.repeats, current_ranks()
    dataset = VideoDataset(
        training, model.labels, model.preprocessing, augmentation=recipe.augmentation, repeats=repeats, threads=1
    )
    whole = make_loader(
        dataset,
        batch_size=optimization.batch_size // (repeats * ranks.world),
        workers=workers,
        seed=optimization.seed,
        rank=ranks.rank,
        world=ranks.world,
        fixed_views=recipe.augmentation.fixed_views,
    )
    # fewer videos than a step needs are divided as well as they can be
    return replace(whole, batch_size=math.ceil(whole.batch_size / min(optimization.accumulate, whole.batch_size)))
