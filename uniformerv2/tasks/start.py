"""What a recipe starts from: its model, and the batches that it is trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from uniformerv2.attention_choice import measured_choices
from uniformerv2.data.annotations import Annotation
from uniformerv2.data.dataset import VideoDataset, make_loader
from uniformerv2.data.loader import VideoLoader
from uniformerv2.data.order import inverse_frequencies
from uniformerv2.device import model_device
from uniformerv2.distributed import current_ranks
from uniformerv2.errors import CheckpointError, RecipeError
from uniformerv2.machine import WORKERS
from uniformerv2.model.attention import attention_cases
from uniformerv2.model.config import Preprocessing, named_config
from uniformerv2.model.kernels import AttentionChoices
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.text import normalised
from uniformerv2.train.optim import freeze_backbone, freeze_unused
from uniformerv2.train.recipe import ClipRecipe, ModelRecipe, Recipe, Sampling
from uniformerv2.weights.checkpoint import checkpoint_info
from uniformerv2.weights.labels import matching
from uniformerv2.weights.loading import arm, load_model

SHOWN = 5  # classes in a line


def build_model(recipe: Recipe, labels: Sequence[str]) -> UniFormerV2:
    """The model that a recipe starts from, with a head for these labels, its backbone frozen if the recipe asks for it.

    The head is new, but for the rows of a checkpoint's head that `map_head` keeps, unless motions come first; the
    loading report says which.

    Raises:
        RecipeError: an unknown size, or options that contradict each other.
        CheckpointError: the checkpoint cannot be read, or its head lacks a class.
    """
    recipe = recipe.resolved()
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
                weights=start.weights,
                **start.options(),
            )
        else:
            config = named_config(
                str(start.model), start.layout, image_size=clip.height_width, num_classes=len(labels), **start.options()
            )
            assert clip.num_frames is not None
            model = UniFormerV2(config, Preprocessing(num_frames=clip.num_frames, size=config.image_size), labels)
        model = _normalising_as(model, clip)
    except ValueError as error:
        raise RecipeError(f"no such model: {error}") from error
    if start.frozen_backbone:
        freeze_backbone(model)
    freeze_unused(model)
    return model


def _from_checkpoint(start: ModelRecipe, clip: ClipRecipe, labels: Sequence[str]) -> UniFormerV2:
    name, options = str(start.checkpoint), {"weights": start.weights, **start.options()}
    map_head = False if start.motion_first else start.map_head
    known = map_head or (map_head is None and checkpoint_info(name, **options).labels)
    given = None if known else ()  # a head that goes needs no labels
    model = load_model(name, num_frames=clip.num_frames, size=clip.height_width, labels=given, **options)
    rows = _mapped_rows(model.labels, labels, name) if map_head else _kept_rows(model.labels, labels)
    ours = UniFormerV2(replace(model.config, num_classes=len(labels)), model.preprocessing, labels)
    state = model.state_dict()
    for tensor in ("head.linear.weight", "head.linear.bias"):
        before, state[tensor] = state[tensor], ours.state_dict()[tensor].clone()
        for row, kept in enumerate(rows):
            if kept is not None:
                state[tensor][row] = before[kept]
    ours.load_state_dict(state)
    ours.loading_report = (*model.loading_report, _describe_head(rows, model, labels))
    return ours


def _kept_rows(head: Sequence[str], labels: Sequence[str]) -> list[int | None]:
    """The row of each label in a head; None where it has none of that name."""
    rows = {normalised(label): row for row, label in reversed(list(enumerate(head)))}
    return [rows.get(normalised(label)) for label in labels]


def _mapped_rows(head: Sequence[str], labels: Sequence[str], name: str) -> Sequence[int | None]:
    rows = matching(labels, head)
    if rows is None:
        lacking = [label for label in labels if matching([label], head) is None] or labels
        raise CheckpointError(
            f"{name}: its head of {len(head)} classes cannot be mapped: {lacking[0]!r} and {len(lacking) - 1} more "
            "classes of the data have no row of their own in it; leave map_head out, and they get new rows"
        )
    return rows


def _describe_head(rows: Sequence[int | None], model: UniFormerV2, labels: Sequence[str]) -> str:
    new = [label for label, row in zip(labels, rows, strict=True) if row is None]
    gone = [label for row, label in enumerate(model.labels) if row not in rows]
    if len(new) == len(labels):
        return f"head: new, for {len(labels)} classes"
    if not new and not gone:
        return f"head: all {len(labels)} classes kept"
    kept = [f"head: {len(labels) - len(new)} of {len(model.labels)} classes kept"]
    return "; ".join([*kept, *(_some(what, names) for what, names in (("new", new), ("left out", gone)) if names)])


def _some(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)} {what} ({shown})"


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


def fastest_attention(recipe: Recipe, model: UniFormerV2) -> AttentionChoices:
    """The attention kernels that rank zero measures to be the fastest, for a training in bfloat16 on a CPU."""
    if recipe.optimization.precision != "bf16" or model_device(model).type != "cpu":
        return {}
    clip = model.preprocessing
    cases = attention_cases(model.config, clip.num_frames, clip.size, training=True)
    if recipe.model.frozen_backbone:
        cases |= attention_cases(model.config, clip.num_frames, clip.size, training=False)
    return current_ranks().on_rank_zero(lambda: measured_choices(cases))


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
    recipe: Recipe,
    model: UniFormerV2,
    training: Sequence[Annotation],
    *,
    workers: int = WORKERS,
    mirrored_classes: Sequence[int | None] = (),
    reversed_classes: Sequence[int | None] = (),
    several_labels: bool = False,
) -> VideoLoader:
    """Batches of `micro_batch` clips, in an order that does not depend on how many of them make a step.

    Args:
        recipe, model: what is trained.
        training: the videos.
        workers: processes that read them.
        mirrored_classes, reversed_classes, several_labels: see `VideoDataset`.

    Raises:
        AnnotationError: no annotations, or a label that is not among the model's.
    """
    optimization, repeats, ranks = recipe.optimization, recipe.augmentation.repeats, current_ranks()
    dataset = VideoDataset(
        training,
        model.labels,
        model.preprocessing,
        augmentation=recipe.augmentation,
        repeats=repeats,
        mirrored_classes=mirrored_classes,
        reversed_classes=reversed_classes,
        several_labels=several_labels,
    )
    whole = make_loader(
        dataset,
        batch_size=optimization.batch_size // (repeats * ranks.world),
        workers=workers,
        seed=optimization.seed,
        rank=ranks.rank,
        world=ranks.world,
        fixed_views=recipe.augmentation.fixed_views,
        weights=_sampling_weights(dataset.classes_shown, optimization.sampling),
        device=model_device(model),
    )
    # fewer videos than a step needs are divided as well as they can be
    return replace(whole, batch_size=math.ceil(whole.batch_size / min(optimization.accumulate, whole.batch_size)))


def _sampling_weights(shown: Sequence[tuple[int, ...]], sampling: Sampling) -> list[float]:
    """Of each row, by the classes that it shows; none where every row comes once.

    Of several classes, the rarest counts (Gupta et al., arXiv:1908.03195, section 3.1); no class is one of its own.
    """
    if sampling == "none":
        return []
    nothing = (-1,)
    every = [number for classes in shown for number in classes or nothing]
    weights = inverse_frequencies(every, power=1.0 if sampling == "balanced" else 0.5)
    return [max(weights[number] for number in classes or nothing) for classes in shown]
