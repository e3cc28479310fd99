"""What a recipe starts from: its model, and the batches that it is trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from uniformerv2.data.annotations import Annotation
from uniformerv2.data.dataset import VideoDataset, make_loader
from uniformerv2.data.loader import VideoLoader
from uniformerv2.data.order import inverse_frequencies
from uniformerv2.distributed import current_ranks
from uniformerv2.errors import CheckpointError, RecipeError
from uniformerv2.model.config import Preprocessing, named_config
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.train.optim import freeze_backbone, freeze_unused
from uniformerv2.train.recipe import ClipRecipe, ModelRecipe, Recipe, Sampling
from uniformerv2.weights.labels import matching
from uniformerv2.weights.loading import arm, load_model


def build_model(recipe: Recipe, labels: Sequence[str]) -> UniFormerV2:
    """The model that a recipe starts from, with a head for these labels, its backbone frozen if the recipe asks for it.

    The head is new, unless it is mapped: then it has those rows of the checkpoint's head that are the data's classes,
    whose names may be spelled differently there, as between the lists of Kinetics.

    Raises:
        RecipeError: an unknown size, or options that contradict each other.
        CheckpointError: the checkpoint cannot be read, or its head lacks a class.
    """
    start, clip = recipe.model, recipe.clip
    try:
        if start.checkpoint is not None:
            model = _from_checkpoint(start, clip, labels)
        elif start.arm is not None:
            model = arm(
                start.arm,
                num_classes=len(labels),
                layout=start.layout,
                labels=labels,
                num_frames=clip.num_frames,
                size=clip.height_width,
                **start.options(),
            )
        else:
            config = named_config(
                str(start.model), start.layout, image_size=clip.height_width, num_classes=len(labels), **start.options()
            )
            model = UniFormerV2(config, Preprocessing(num_frames=clip.num_frames, size=clip.height_width), labels)
        model = _normalising_as(model, clip)
    except ValueError as error:
        raise RecipeError(f"no such model: {error}") from error
    if start.frozen_backbone:
        freeze_backbone(model)
    freeze_unused(model)
    return model


def _from_checkpoint(start: ModelRecipe, clip: ClipRecipe, labels: Sequence[str]) -> UniFormerV2:
    given = None if start.map_head else ()  # a head that goes needs no labels
    model = load_model(
        str(start.checkpoint), num_frames=clip.num_frames, size=clip.height_width, labels=given, **start.options()
    )
    state = model.state_dict()
    weight, bias = (f"head.linear.{name}" for name in ("weight", "bias"))
    config = replace(model.config, num_classes=len(labels))
    ours = UniFormerV2(config, model.preprocessing, labels)
    if start.map_head:
        rows = _rows(model.labels, labels, str(start.checkpoint))
        state |= {weight: state[weight][rows], bias: state[bias][rows]}
    else:
        state |= {name: ours.state_dict()[name] for name in (weight, bias)}
    ours.load_state_dict(state)
    return ours


def _rows(head: Sequence[str], labels: Sequence[str], name: str) -> list[int]:
    rows = matching(labels, head)
    if rows is None:
        lacking = [label for label in labels if matching([label], head) is None] or labels
        raise CheckpointError(
            f"{name}: its head of {len(head)} classes cannot be mapped: {lacking[0]!r} and {len(lacking) - 1} more "
            "classes of the data have no row of their own in it; train a new head, without map_head"
        )
    return rows


def _normalising_as(model: UniFormerV2, clip: ClipRecipe) -> UniFormerV2:
    """The model with the constants of the clip, where it names some."""
    chosen = {name: getattr(clip, name) for name in ("mean", "std", "channel_order")}
    preprocessing = replace(model.preprocessing, **{name: value for name, value in chosen.items() if value is not None})
    if preprocessing == model.preprocessing:
        return model
    other = UniFormerV2(model.config, preprocessing, model.labels, model.label_note)
    other.load_state_dict(model.state_dict())
    other.loading_report = model.loading_report
    return other


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
        training, model.labels, model.preprocessing, augmentation=recipe.augmentation, repeats=repeats
    )
    whole = make_loader(
        dataset,
        batch_size=optimization.batch_size // (repeats * ranks.world),
        workers=workers,
        seed=optimization.seed,
        rank=ranks.rank,
        world=ranks.world,
        fixed_views=recipe.augmentation.fixed_views,
        weights=_sampling_weights(dataset.labels, optimization.sampling),
    )
    # fewer videos than a step needs are divided as well as they can be
    return replace(whole, batch_size=math.ceil(whole.batch_size / min(optimization.accumulate, whole.batch_size)))


def _sampling_weights(labels: Sequence[int], sampling: Sampling) -> list[float]:
    """Of each row; none where every row comes once."""
    if sampling == "none":
        return []
    weights = inverse_frequencies(labels, power=1.0 if sampling == "balanced" else 0.5)
    return [weights[label] for label in labels]
