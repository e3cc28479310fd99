"""Checkpoints of one implementation -> checkpoints of another, and back bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from uniformerv2.atomic import whole_file
from uniformerv2.errors import CheckpointError
from uniformerv2.model.config import ModelConfig, Preprocessing
from uniformerv2.weights.checkpoint import (
    Checkpoint,
    CheckpointSource,
    check_fit,
    expected_tensors,
    metadata_of,
    open_checkpoint,
)
from uniformerv2.weights.files import write_safetensors
from uniformerv2.weights.key_names import VIDEO_FORMATS, StateDict, VideoFormat, from_ours
from uniformerv2.weights.labels import ClassOrder, class_list, known_order, reordering
from uniformerv2.weights.loading import IMAGE_FIELDS
from uniformerv2.weights.recognise import CheckpointInfo, Known, fit_labels
from uniformerv2.weights.unwrapping import METADATA_KEY, Weights

# fields of ModelConfig that the other formats cannot express: their image transformer is CLIP's, the default here
_EXPRESSIBLE = {"width", "depth", "heads", "image_size", "mlp_ratio", "pool_heads", "pool_mlp_ratio"}
CLIP_ONLY = (IMAGE_FIELDS - _EXPRESSIBLE) | {"num_queries", "fusion", "local_mixing"}
OWN_ORDER = "own_order"  # metadata of a converted file: the order of the labels in our file


def convert(
    source: CheckpointSource,
    path: str | Path,
    *,
    to: VideoFormat,
    dataset: str | None = None,
    labels: Sequence[str] | None = None,
    weights: Weights = "model",
    **options: Any,
) -> list[str]:
    """Write a video checkpoint in another format, whole or not at all.

    The rows of a head whose labels are a known list are put into the order that users of the format expect. What the
    foreign formats cannot express is kept beside their state dict, and converts back bit for bit. Dtypes stay.

    Args:
        source: as for `load_model`.
        path: the file to write; an existing one is replaced only when the new one is complete.
        to: "ours" (safetensors), "official" (`model_state`) or "mmaction2" (`state_dict`, `meta`).
        dataset, labels, weights: as for `load_model`.
        options: fields of `ModelConfig` that replace what was recognised or assumed, such as `heads` and
            `global_after`.

    Returns:
        Lines on what was recognised, assumed and changed.

    Raises:
        CheckpointError: as `load_model`; or the format cannot express a part of the model.
    """
    if to not in get_args(VideoFormat):
        raise CheckpointError(f"no format {to!r}; there are {', '.join(get_args(VideoFormat))}")
    checkpoint = open_checkpoint(source, Known(dataset), options, weights)
    if labels is not None:
        checkpoint = checkpoint._replace(info=fit_labels(checkpoint.info, labels, checkpoint.name))
    check_fit(checkpoint.state, expected_tensors(checkpoint.info.config), source=checkpoint.name)
    own_order = _own_order(checkpoint)
    order = own_order if to == "ours" else to
    info, state, reordered = _in_order(checkpoint.info, checkpoint.state, order)
    report = [*info.report, *reordered]
    metadata = metadata_of(info)
    if to == "ours":
        write_safetensors(path, state, metadata)
        return [*report, f"{path}: written in our format"]
    _check_expressible(info.config, to, checkpoint.name)
    metadata |= {OWN_ORDER: own_order} if own_order else {}
    content = _foreign(state, to, metadata)
    with whole_file(path) as partial:
        torch.save(content, partial)
    return [*report, *_differences(info, to), f"{path}: written in the {to} format"]


def _own_order(checkpoint: Checkpoint) -> ClassOrder | None:
    """The order of the labels in the file of ours that this is or was converted from; None where there is none."""
    if checkpoint.info.format == "ours":
        known = known_order(checkpoint.info.labels)
        return known[1] if known else None
    order: Any = checkpoint.metadata.get(OWN_ORDER)
    return order if order in get_args(ClassOrder) else None


def _in_order(
    info: CheckpointInfo, state: StateDict, order: ClassOrder | None
) -> tuple[CheckpointInfo, StateDict, list[str]]:
    """Put the rows of the head and its labels into another order, where the labels are a known list."""
    rows = reordering(info.labels, order) if order else None
    known = known_order(info.labels)
    if not order or rows is None or known is None or rows == list(range(len(rows))):
        return info, state, []
    head = {key: state[key][rows] for key in ("head.linear.weight", "head.linear.bias")}
    line = f"the rows of the head are put from the {known[1]} order of {known[0]} into the {order} order"
    thresholds = tuple(info.thresholds[row] for row in rows if info.thresholds)
    labels = class_list(known[0], order=order)
    return replace(info, labels=labels, thresholds=thresholds), {**state, **head}, [line]


def _foreign(state: StateDict, to: Literal["official", "mmaction2"], metadata: dict[str, str]) -> dict[str, Any]:
    renamed, unknown = from_ours(state, VIDEO_FORMATS[to])
    assert not unknown, unknown  # see _check_expressible
    # torch.save writes whole storages, and these may be views of a whole file
    tensors = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in renamed.items()}
    wrapped = {"model_state": tensors} if to == "official" else {"state_dict": tensors, "meta": {}}
    return {**wrapped, METADATA_KEY: metadata}


def _check_expressible(config: ModelConfig, to: str, source: str) -> None:
    plain = ModelConfig()
    changed = [name for name, value in vars(config).items() if name in CLIP_ONLY and value != getattr(plain, name)]
    missing = [f"{name}={getattr(config, name)!r}" for name in changed]
    if not config.global_after:
        missing.append("no global stages")
    if config.image_size[0] != config.image_size[1]:
        missing.append(f"image_size={config.image_size} (squares only)")
    if missing:
        raise CheckpointError(
            f"{source}: the {to} format cannot express {', '.join(missing)}; its image transformer is CLIP's; "
            "write it in our format"
        )


def _differences(info: CheckpointInfo, to: str) -> list[str]:
    """Notes where the code of the other project would treat the weights differently."""
    lines = []
    usual, own = Preprocessing(), info.preprocessing
    if (own.mean, own.std) != (usual.mean, usual.std):
        lines.append(f"note: these weights expect mean {own.mean} and std {own.std}; the {to} code uses 0.45 and 0.225")
    if own.channel_order == "bgr" and to == "mmaction2":
        lines.append(
            "note: these weights expect BGR frames; mmaction2 reads RGB unless its configuration says otherwise"
        )
    if not info.config.mix_class_token and to == "mmaction2":
        lines.append("note: mmaction2 has no frozen models: it would mix in half of the class token")
    return lines
