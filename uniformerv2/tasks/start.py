"""The model that a recipe starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from uniformerv2.errors import CheckpointError, RecipeError
from uniformerv2.model.config import Preprocessing, named_config
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.train.frozen import freeze_backbone, freeze_unused
from uniformerv2.train.recipe import ClipRecipe, ModelRecipe, Recipe
from uniformerv2.weights import arm, load_model
from uniformerv2.weights.labels import matching


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
