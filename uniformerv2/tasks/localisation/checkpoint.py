"""A localiser as one file: the video model as in any checkpoint, and the head beside it.

`load_model` reads the video model out of such a file, and says in its report that it leaves the head out.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from uniformerv2.errors import CheckpointError, RecipeError
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.tasks.localisation.classifier import WindowClassifier
from uniformerv2.tasks.localisation.pyramid import SpanHead
from uniformerv2.tasks.localisation.recipe import LocaliserRecipe
from uniformerv2.text import parse_json
from uniformerv2.weights.checkpoint import SPAN_HEAD, check_fit, read_span_head, video_contents
from uniformerv2.weights.files import write_safetensors
from uniformerv2.weights.loading import load_model


@dataclass(frozen=True)
class LocaliserModel:
    """Everything that finds spans."""

    video: UniFormerV2  # embeds windows
    head: SpanHead
    labels: tuple[str, ...]  # of the spans; the video model has its own
    recipe: LocaliserRecipe


def build_head(video: UniFormerV2, recipe: LocaliserRecipe, labels: tuple[str, ...]) -> SpanHead:
    """A new head for the embeddings of a video model, whose own classifier has a say where it knows all labels.

    One that is trained with the head changes its embeddings, and its classifier does not follow.
    """
    known = recipe.head.classifier_share > 0 and not recipe.video_lr and set(labels) <= set(video.labels)
    classifier = WindowClassifier(video, labels) if known else None
    return SpanHead(recipe.head, embedding_width=video.config.width, num_classes=len(labels), classifier=classifier)


def save_localiser(model: LocaliserModel, path: str | Path, *, origin: str | None = None) -> None:
    """Write a localiser to one safetensors file, whole or not at all. Raises CheckpointError as `save_model`."""
    tensors, metadata = video_contents(model.video, path, origin=origin)
    tensors |= {SPAN_HEAD + name: tensor for name, tensor in model.head.state_dict().items()}
    facts = {"recipe": asdict(model.recipe), "labels": model.labels}
    write_safetensors(path, tensors, metadata | {"span_head": json.dumps(facts)})


def load_localiser(path: str | Path) -> LocaliserModel:
    """Load what `save_localiser` wrote, strictly, on the CPU and in eval mode.

    Args:
        path: the file, or the folder of a training run, whose best checkpoint is taken, else its last.

    Raises:
        CheckpointError: unreadable, not a localiser, or not exactly the tensors of its head and of its video model.
    """
    tensors, facts = read_span_head(path)
    try:
        values = parse_json(facts)
        recipe, labels = LocaliserRecipe.from_fields(values["recipe"]), tuple(values["labels"])
    except (KeyError, TypeError, ValueError, RecipeError) as error:
        raise CheckpointError(f"{path}: its metadata on the span head cannot be understood ({error})") from error
    video = load_model(path)
    with torch.device("meta"):
        head = build_head(video, recipe, labels)
    check_fit(tensors, head.state_dict(), source=str(path))
    head.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    return LocaliserModel(video, head.eval(), labels, recipe)
