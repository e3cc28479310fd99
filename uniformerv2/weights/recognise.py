"""The architecture of official and mmaction2 checkpoints: from keys and shapes, else assumed and reported. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from torch import Tensor

from uniformerv2.errors import CheckpointError
from uniformerv2.model.config import ModelConfig, Preprocessing
from uniformerv2.weights.key_names import VideoFormat
from uniformerv2.weights.labels import (
    ALIASES,
    DATASETS,
    NOT_RELEASED,
    ClassOrder,
    dataset_name,
    datasets_with,
    released_labels,
)

HEAD_DIM = 64  # channels of each attention head in every released model
REDUCTION = 1.5  # of the local blocks in every released model
RELEASED_STAGES = (4, 8, 16)  # always after the last blocks: scene; temporal B; temporal L
FRAMES = {"scene": 8, "temporal": 16}  # the fewest that models of each layout were released with


@dataclass(frozen=True)
class CheckpointInfo:
    """The metadata of a checkpoint, or what was recognised of it."""

    config: ModelConfig
    preprocessing: Preprocessing
    labels: tuple[str, ...] = ()
    origin: str = ""
    licence: str = ""
    label_note: str = ""  # why the labels are uncertain; empty where they are certain
    thresholds: tuple[float, ...] = ()  # of each class, where a clip may have several labels
    format: VideoFormat = "ours"
    report: tuple[str, ...] = ()  # what was recognised, assumed and ignored


class Known(NamedTuple):
    """Facts about a checkpoint that its file may not contain; None where unknown."""

    dataset: str | None = None  # whose classes its head has; default: from the file name or the number of classes
    num_frames: int | None = None  # that it was trained on; default: from the file name, else the layout's
    channel_order: Literal["rgb", "bgr"] | None = None  # default: BGR for official Something-Something, else RGB


def recognise(
    state: Mapping[str, Tensor],
    project: ClassOrder,
    known: Known,
    *,
    source: str,
    file_name: str = "",
    options: Mapping[str, Any] | None = None,
) -> CheckpointInfo:
    """Recognise the checkpoint of another implementation.

    Args:
        state: its tensors under our names; only shapes are used.
        project: whose key names it had.
        known: replaces what would be recognised or assumed.
        source: its name in errors.
        file_name: may contain the frames and the dataset, see `hints_from_name`.
        options: fields of `ModelConfig` that replace what is recognised.

    Raises:
        CheckpointError: necessary tensors are missing, shapes contradict each other, or the known dataset has
            another number of classes.
    """
    dataset, num_frames, channel_order = known
    config, report = _architecture(state, options or {}, source)
    named_dataset, named_frames = hints_from_name(file_name, config.num_classes, config.image_size)
    datasets, reason = _datasets(dataset, named_dataset, config.num_classes, source)
    labels, note = released_labels(datasets[0], project) if len(datasets) == 1 else ((), _no_labels(datasets, config))
    report += [f"labels: {datasets[0]} in the order of {project}, {reason}" if labels else note]
    if labels and note:
        report += [note]
    if num_frames is None:
        num_frames = named_frames or FRAMES["temporal" if config.temporal_downsample else "scene"]
        report += [f"{'from the file name' if named_frames else 'assumed'}: {num_frames} frames"]
    if channel_order is None:
        blue_first = project == "official" and bool(datasets) and all(name.startswith("something") for name in datasets)
        channel_order = "bgr" if blue_first else "rgb"
        report += [f"assumed: {channel_order.upper()} frames, as in the {project} code for models of this kind"]
    preprocessing = Preprocessing(num_frames=num_frames, size=config.image_size, channel_order=channel_order)
    report = [f"{project} checkpoint", *report]
    return CheckpointInfo(config, preprocessing, labels, label_note=note, format=project, report=tuple(report))


def hints_from_name(file_name: str, num_classes: int, image_size: tuple[int, int]) -> tuple[str | None, int | None]:
    """Dataset and frames from a file name, such as `k400_k710_uniformerv2_b16_8x224.pyth` or
    `uniformerv2-base-p16-res224_clip-kinetics710-pre_u8_kinetics400-rgb.pth`.

    Of several datasets in a name, the one with `num_classes` classes is taken; the model was pretrained on the others.
    """
    name = file_name.lower()
    words = set(re.split(r"[^a-z0-9]+", name))
    named = {ALIASES.get(word, word) for word in words} | {dataset for dataset in DATASETS if dataset in name}
    fitting = [dataset for dataset in datasets_with(num_classes) if dataset in named]
    clip = re.search(rf"(?<![a-z0-9])f?(\d{{1,3}})x{image_size[0]}(?!\d)", name)
    frames = clip or re.search(r"(?<![a-z0-9])u(\d{1,3})(?![a-z0-9])", name)
    return fitting[0] if len(fitting) == 1 else None, int(frames[1]) if frames and int(frames[1]) else None


def fit_labels(info: CheckpointInfo, labels: Sequence[str], source: str) -> CheckpointInfo:
    """Replace the labels; () for none. Raises CheckpointError unless there are as many as classes."""
    if labels and len(labels) != info.config.num_classes:
        raise CheckpointError(f"{source}: {len(labels)} labels given for a head of {info.config.num_classes} classes")
    report = tuple(line for line in info.report if line != info.label_note)
    return replace(info, labels=tuple(labels), label_note="", report=(*report, f"labels: the {len(labels)} given"))


def check_head(info: CheckpointInfo, source: str) -> None:
    """Refuse a head of another implementation that fits no class list, where no labels were given."""
    if not info.labels and not datasets_with(info.config.num_classes):
        known = ", ".join(f"{classes} ({name})" for name, classes in DATASETS.items())
        raise CheckpointError(
            f"{source}: its head has {info.config.num_classes} classes, which fits no list of labels; expected "
            f"{known}; or give labels=[...] (--labels FILE), or labels=() to go without"
        )


def _architecture(
    state: Mapping[str, Tensor], options: Mapping[str, Any], source: str
) -> tuple[ModelConfig, list[str]]:
    """The architecture, and lines for the report. Raises CheckpointError."""
    try:
        fields = _fields(state)
        assumed, report = _assumptions(fields, _count(state, "global_blocks"), options)
        size = options.get("image_size") or _image_size(state["backbone.position_embedding"], fields["patch_size"])
        return ModelConfig(**{**fields, "image_size": size, **assumed, **options}), [_summary(fields), *report]
    except KeyError as error:
        raise CheckpointError(
            f"{source}: a UniFormerV2 without {error.args[0]} (as this package calls it), which is needed to recognise "
            "it; the file is not whole"
        ) from error
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{source}: no UniFormerV2: {error}") from error


def _fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of `ModelConfig` that follow from keys and shapes."""
    width = state["backbone.class_token"].shape[-1]
    stem = state["backbone.patch_embedding.weight"].shape  # (width, 3, frames, patch, patch)
    if len(stem) != 5 or stem[2] not in (1, 3):
        raise ValueError(f"its patch embedding is {tuple(stem)}, expected (width, 3, 1 or 3 frames, patch, patch)")
    stages = _count(state, "global_blocks")
    fields: dict[str, Any] = {
        "width": width,
        "depth": _count(state, "backbone.blocks"),
        "patch_size": stem[-1],
        "temporal_downsample": stem[2] == 3,
        "mlp_ratio": state["backbone.blocks.0.mlp.fc1.weight"].shape[0] / width,
        "mix_class_token": "mix" in state or not stages,  # without stages there is nothing to mix with
        "num_classes": state["head.linear.weight"].shape[0],
    }
    if stages:
        fields["global_mlp_ratio"] = state["global_blocks.0.mlp.fc1.weight"].shape[0] / width
    if "backbone.blocks.0.local1.reduce.weight" in state:
        double = "backbone.blocks.0.local2.reduce.weight" in state
        fields["local_blocks"] = "attention+mlp" if double else "attention"
        fields["local_reduction"] = _reduction(width, state["backbone.blocks.0.local1.reduce.weight"].shape[0])
        fields["local_kernel"] = state["backbone.blocks.0.local1.temporal.weight"].shape[2]
    return fields


def _assumptions(
    fields: Mapping[str, Any], stages: int, options: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The fields that follow from no key and are not among `options`."""
    depth = fields["depth"]
    assumed: dict[str, Any] = {}
    report: list[str] = []
    if stages > depth:
        raise ValueError(f"{stages} global stages for {depth} blocks")
    if "global_after" not in options:
        assumed["global_after"] = tuple(range(depth - stages, depth))
        released = "" if stages in RELEASED_STAGES else f" (no model with {stages} stages was released)"
        report += [f"assumed: global stages after the last {stages} of {depth} blocks{released}"]
    if "heads" not in options:
        assumed["heads"] = _heads(fields["width"])
        report += [f"assumed: {assumed['heads']} heads of {HEAD_DIM} channels"]
    if options:
        report += ["given: " + ", ".join(f"{name} {value}" for name, value in options.items())]
    return assumed, report


def _count(state: Mapping[str, Tensor], modules: str) -> int:
    """The number of numbered modules."""
    matches = (re.match(rf"{re.escape(modules)}\.(\d+)\.", key) for key in state)
    numbers = {int(match[1]) for match in matches if match}
    if missing := set(range(len(numbers))) - numbers:
        raise KeyError(f"{modules}.{min(missing)}")
    return len(numbers)


def _reduction(width: int, channels: int) -> float:
    """A ratio whose int(width / ratio) is `channels`: the released one, else a whole number, else a fraction."""
    candidates = (REDUCTION, float(round(width / channels)), width / channels, width / (channels + 0.5))
    return next(ratio for ratio in candidates if ratio and int(width / ratio) == channels)


def _image_size(position_embedding: Tensor, patch_size: int) -> tuple[int, int]:
    patches = position_embedding.shape[0] - 1  # the class token has a position too
    side = math.isqrt(max(patches, 0))
    if side < 1 or side * side != patches:
        raise ValueError(f"{patches} positions are no square grid of patches; give image_size=(height, width)")
    return side * patch_size, side * patch_size


def _heads(width: int) -> int:
    if width % HEAD_DIM:
        raise ValueError(
            f"no key contains the number of heads, and width {width} is no multiple of the {HEAD_DIM} channels of the "
            "released models' heads; give heads=..."
        )
    return width // HEAD_DIM


def _summary(fields: Mapping[str, Any]) -> str:
    return (
        f"recognised: width {fields['width']}, {fields['depth']} blocks, patches of {fields['patch_size']}, "
        f"local blocks {fields.get('local_blocks', 'none')}, "
        f"{'' if fields['temporal_downsample'] else 'no '}temporal downsampling, "
        f"class token {'mixed in' if fields['mix_class_token'] else 'not mixed in (frozen)'}, "
        f"{fields['num_classes']} classes"
    )


def _datasets(given: str | None, named: str | None, num_classes: int, source: str) -> tuple[list[str], str]:
    """Datasets whose classes the head may have, and why."""
    if given is not None:
        try:
            name = dataset_name(given)
        except ValueError as error:
            raise CheckpointError(f"{source}: {error}") from error
        if DATASETS[name] != num_classes:
            raise CheckpointError(
                f"{source}: its head has {num_classes} classes, and dataset {name} has {DATASETS[name]}; "
                f"{_others(num_classes)}"
            )
        return [name], "as given"
    if named is not None:
        return [named], "from the file name"
    released = [name for name in datasets_with(num_classes) if name not in NOT_RELEASED]
    return released, f"the only known list of {num_classes} classes"


def _others(num_classes: int) -> str:
    fitting = datasets_with(num_classes)
    return (
        f"give {' or '.join(fitting)}" if fitting else "no known dataset has so many: give labels=[...] (--labels FILE)"
    )


def _no_labels(datasets: Sequence[str], config: ModelConfig) -> str:
    if not datasets:
        same = " and ".join(datasets_with(config.num_classes))
        known = f"{same} has {config.num_classes} classes too, but nothing says that these are its" if same else ""
        known = known or f"no known dataset has {config.num_classes} classes"
        return f"no labels: {known}; give labels=[...] (--labels FILE){f' or dataset={same!r}' if same else ''}"
    return (
        f"no labels: {' and '.join(datasets)} both have {config.num_classes} classes, and neither the keys nor the "
        "file name distinguish them; give dataset=... or labels=[...] (--labels FILE)"
    )
