"""Checkpoints of any origin -> models, and models -> checkpoints of ours.

Ours is one safetensors file whose metadata knows the architecture, labels, preprocessing, origin and licence. Files of
other implementations that this package wrote carry the same metadata beside their state dict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from uniformerv2.errors import CheckpointError
from uniformerv2.model.arming import fit_weights
from uniformerv2.model.config import ModelConfig, Preprocessing
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.weights.files import ALIGNMENT, read_tensors, write_safetensors
from uniformerv2.weights.formats import IGNORED, VIDEO_FORMATS, State, marks, to_ours, with_backbone
from uniformerv2.weights.hub import UniFormerV2 as HubUniFormerV2
from uniformerv2.weights.recognise import CheckpointInfo, check_head, fit_labels, recognise

FORMAT = "uniformerv2"
VERSION = 1
HUB_FILE = "model.safetensors"  # the one file of a hub repository or a folder of save_pretrained
SUFFIXES = (".safetensors", ".pth", ".pyth", ".pt", ".bin")  # what names a file, and no repository of the hub

Source = str | Path | Mapping[str, Tensor]


class Checkpoint(NamedTuple):
    """A video checkpoint that was read and understood; its tensors are under our names and fit its configuration."""

    name: str
    metadata: dict[str, str]
    state: State
    info: CheckpointInfo


class NotAVideoModel(CheckpointError):
    """Keys of no video format; perhaps an image transformer."""


def load_model(
    source: Source,
    *,
    num_frames: int | None = None,
    size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    temporal_downsample: bool | None = None,
    dataset: str | None = None,
    labels: Sequence[str] | None = None,
    channel_order: Literal["rgb", "bgr"] | None = None,
    **options: Any,
) -> HubUniFormerV2:
    """Load a model from a checkpoint of ours, of the official code or of mmaction2, strictly.

    Args:
        source: a file, or a folder that `save_pretrained` wrote; the name of a published model (`list_models`); a hub
            repository "owner/name" with a file of ours; or a state dict. The content tells what it is.
        num_frames: frames of a clip; default: the checkpoint's, see `loading_report`.
        size: (height, width) of a clip in pixels, or the side of a square; positions are interpolated.
        patch_size: pixels; the patch embedding is resampled.
        temporal_downsample: True inflates a 2-D patch embedding to three frames.
        dataset: whose classes the head has, where the checkpoint does not tell.
        labels: class names in the order of the head's rows, instead of the checkpoint's; () for none.
        channel_order: what the weights expect, where the checkpoint does not tell.
        options: fields of `ModelConfig` that replace what was recognised or assumed, such as `heads` and
            `global_after`. For an image transformer: what `arm` takes, `num_classes` at least.

    Returns:
        The model in eval mode, float32, on the CPU, with its labels and preprocessing. Its `loading_report` says what
        was recognised, assumed and changed. Its weights are memory maps of the file where the format allows it and
        they are aligned in it; replace such a file by renaming another, as `save_model` does, not by writing into it.

    Raises:
        CheckpointError: nothing of that name; unreadable, of another kind, or not exactly the tensors that its
            architecture needs; or arguments that contradict it.
    """
    given = Given(dataset, num_frames, channel_order)
    try:
        checkpoint = open_checkpoint(source, given, options)
    except NotAVideoModel:
        if "num_classes" not in options:
            raise
        asked: dict[str, Any] = {"num_frames": num_frames, "size": size, "labels": labels, "patch_size": patch_size}
        asked["temporal_downsample"] = temporal_downsample
        return _arm(source, {**options, **{key: value for key, value in asked.items() if value is not None}})
    name, metadata, state, info = checkpoint
    if isinstance(source, Mapping):  # the model must not share the memory of what it was given
        state = {key: tensor.clone() for key, tensor in state.items()}
    if labels is not None:
        info = fit_labels(info, labels, name)
    elif metadata.get("format") != FORMAT:
        check_head(info, name)
    config, preprocessing = _target(info, name, num_frames, size, patch_size, temporal_downsample, channel_order)
    try:
        fitted, changes = fit_weights(state, info.config, config)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from error
    model = _build(replace(info, config=config, preprocessing=preprocessing), fitted, name)
    if preprocessing.num_frames != info.preprocessing.num_frames:
        changes.append(
            f"{preprocessing.num_frames} frames instead of {info.preprocessing.num_frames}: no weight changes"
        )
    model.loading_report = (*model.loading_report, *changes)
    if name_of_published := _published(source):
        model.origin = name_of_published
    return model


def _published(source: Source) -> str:
    """The name in `list_models` of what `_read` would fetch; empty for files and state dicts."""
    from uniformerv2.weights.zoo import zoo_entry

    entry = None if isinstance(source, Mapping) or Path(source).exists() else zoo_entry(str(source))
    return entry.name if entry else ""


def save_model(model: UniFormerV2, path: str | Path, *, origin: str | None = None, licence: str | None = None) -> None:
    """Write a model to one safetensors file, whole or not at all.

    Args:
        model: the model; its config, preprocessing, labels and what is not certain about them go into the file.
        path: where to; an existing file is replaced only when the new one is complete.
        origin: where the weights come from, for people; None: what the checkpoint said that the model was loaded from.
        licence: under which terms they may be used; None: as for `origin`.
    """
    info = CheckpointInfo(
        model.config,
        model.preprocessing,
        model.labels,
        getattr(model, "origin", "") if origin is None else origin,
        getattr(model, "licence", "") if licence is None else licence,
        model.label_note,
    )
    write_safetensors(path, model.state_dict(), metadata_of(info))


def checkpoint_info(source: Source, **options: Any) -> CheckpointInfo:
    """What a checkpoint of any kind is, without reading its weights; `source` and `options` as for `load_model`.

    Raises:
        CheckpointError: as `load_model`; a head without labels is no error here.
    """
    return open_checkpoint(source, Given(), options).info


def load_weights(model: UniFormerV2, state: Mapping[str, Tensor], *, source: str = "the given weights") -> None:
    """Copy weights in our own, the official or mmaction2's names into a model, strictly.

    Args:
        model: receives the weights.
        state: the state dict; which of the three it is, its keys tell.
        source: what errors call it.

    Raises:
        CheckpointError: unknown names, or tensors missing, unexpected or of another shape.
    """
    _, ours, _ = _renamed(state, source)
    check_fit(ours, model.state_dict(), source=source)
    model.load_state_dict(ours)


def check_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str) -> None:
    """Compare names and shapes. Raises CheckpointError that lists what is missing, unexpected or of another shape."""
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    reshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    if any(problems.values()):
        listed = "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in problems.items() if keys)
        raise CheckpointError(f"{source} does not fit the model: {listed}")


class Given(NamedTuple):
    """What the caller knows of a checkpoint that does not tell it."""

    dataset: str | None = None
    num_frames: int | None = None
    channel_order: Literal["rgb", "bgr"] | None = None


def open_checkpoint(source: Source, given: Given, options: Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint and find out what it is; see `load_model`. Raises NotAVideoModel and CheckpointError."""
    name, file_name, metadata, tensors, given = _read(source, given)
    kind, state, ignored = _renamed(tensors, name)
    if unknown := [option for option in options if option not in ModelConfig.__dataclass_fields__]:
        raise TypeError(f"{', '.join(unknown)}: no field of ModelConfig, and {name} is a video model already")
    if metadata.get("format") == FORMAT:
        info = replace(_parse_info(name, metadata, options), format=kind)
        if given.dataset and info.labels:
            info = replace(
                info, report=(*info.report, f"dataset {given.dataset} not used: the file has its own labels")
            )
    elif kind == "ours":
        raise CheckpointError(
            f"{name}: not a checkpoint of this package, only its tensors: no metadata says format={FORMAT} and what "
            "the architecture is; write it with save_model, or build the model and use load_weights"
        )
    else:
        info = recognise(state, kind, source=name, file_name=file_name, options=options, **given._asdict())
    report = (*info.report, *(f"ignored: {_some(keys)}" for keys in [ignored] if keys))
    return Checkpoint(name, metadata, state, replace(info, report=report))


def _read(source: Source, given: Given) -> tuple[str, str, dict[str, str], Mapping[str, Tensor], Given]:
    """What to call a source, its file's name, its metadata, its tensors, and what is known of it besides."""
    if isinstance(source, Mapping):
        tensors = {key: tensor for key, tensor in source.items() if isinstance(tensor, Tensor)}
        return "the given state dict", "", {}, tensors, given
    path = Path(source)
    if path.is_dir() and (path / HUB_FILE).is_file():
        path /= HUB_FILE
    elif not path.exists():
        path, given = _fetch(str(source), given)
    metadata, tensors = read_tensors(path)
    return str(source), path.name, metadata, tensors, given


def _fetch(name: str, given: Given) -> tuple[Path, Given]:
    """The file of a published model or of a hub repository, and what the zoo knows of it."""
    from uniformerv2.weights.download import hub_file
    from uniformerv2.weights.zoo import fetch_entry, zoo_entry

    entry = zoo_entry(name)
    if entry is not None:
        dataset, num_frames, channel_order = given
        known = Given(
            dataset or entry.dataset,
            num_frames or entry.num_frames,
            channel_order or entry.preprocessing().channel_order,
        )
        return fetch_entry(entry), known
    parts = name.split("/")
    if len(parts) == 2 and all(parts) and not Path(parts[0]).is_dir() and Path(name).suffix not in SUFFIXES:
        return hub_file(name, HUB_FILE), given
    raise CheckpointError(
        f"{name}: no such file, and no published model of that name (`uniformerv2 models` lists them); "
        "a repository on the hub would be owner/name"
    )


def _renamed(tensors: Mapping[str, Tensor], source: str) -> tuple[Any, State, list[str]]:
    """The format, the tensors under our names (unknown ones as they are, for the strict check), and what is ignored."""
    found = marks(tensors)
    if len(found) > 1:
        mixed = " and ".join(f"{kind} ({key})" for kind, key in found.items())
        raise CheckpointError(f"{source}: keys of two formats mixed: {mixed}; expected one; save only the model meant")
    if not found:
        raise NotAVideoModel(_what_else(tensors, source))
    kind = next(iter(found))
    if kind == "ours":
        return kind, dict(tensors), []
    if kind == "official" and not any(key.startswith("backbone.") for key in tensors):
        tensors = with_backbone(tensors)
    prefix = IGNORED.get(kind)
    ignored = [key for key in tensors if prefix and key.startswith(prefix)]
    state, unknown = to_ours({key: tensors[key] for key in tensors if key not in ignored}, VIDEO_FORMATS[kind])
    return kind, {**state, **{key: tensors[key] for key in unknown}}, ignored


def _what_else(tensors: Mapping[str, Tensor], source: str) -> str:
    """What tensors are that are no video model, and what to do with them."""
    from uniformerv2.weights.image_formats import read_image_model

    try:
        family = read_image_model(tensors, source=source).family
    except CheckpointError as error:
        return f"{source}: the keys are neither ours nor official nor mmaction2's; nor are they an image model: {error}"
    return (
        f"{source}: an image transformer ({family}), expected a video model; "
        "give num_classes=... to make it one, or use arm()"
    )


def _arm(source: Source, options: Mapping[str, Any]) -> HubUniFormerV2:
    from uniformerv2.weights.image import arm  # it stands on this module

    model: Any = arm(source, **options)
    return model.eval()


def _target(
    info: CheckpointInfo,
    source: str,
    num_frames: int | None,
    size: int | tuple[int, int] | None,
    patch_size: int | None,
    temporal_downsample: bool | None,
    channel_order: Literal["rgb", "bgr"] | None,
) -> tuple[ModelConfig, Preprocessing]:
    """Architecture and preprocessing that were asked for; what was not is as in the checkpoint."""
    config, preprocessing = info.config, info.preprocessing
    patch_size = patch_size or config.patch_size
    if isinstance(size, int):
        size = (size, size)
    downsample = config.temporal_downsample if temporal_downsample is None else temporal_downsample
    try:
        config = replace(
            config, image_size=size or config.image_size, patch_size=patch_size, temporal_downsample=downsample
        )
        return config, replace(
            preprocessing,
            size=size or preprocessing.size,
            num_frames=preprocessing.num_frames if num_frames is None else num_frames,
            channel_order=channel_order or preprocessing.channel_order,
        )
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error


def _build(info: CheckpointInfo, state: State, source: str) -> HubUniFormerV2:
    if info.config.depth > len(state):  # before a model of any depth is built because a file says so
        raise CheckpointError(f"{source}: {len(state)} tensors, too few for the {info.config.depth} blocks it tells of")
    with torch.device("meta"):  # no time spent on random numbers that are replaced at once
        model = HubUniFormerV2(info.config, info.preprocessing, info.labels, info.label_note)
    check_fit(state, model.state_dict(), source=source)
    state, converted = _to_float32(state)
    model.load_state_dict({key: _aligned(tensor) for key, tensor in state.items()}, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.origin, model.licence = info.origin, info.licence
    model.loading_report = (*info.report, *converted)
    return model.eval()


def _aligned(tensor: Tensor) -> Tensor:
    """In memory as torch allocates it: other kernels, and other last digits, come with other alignments."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def _to_float32(state: State) -> tuple[State, list[str]]:
    others = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} - {torch.float32}
    names = sorted(str(dtype).removeprefix("torch.") for dtype in others)
    return (
        {key: tensor.float() if tensor.dtype in others else tensor for key, tensor in state.items()},
        [f"{' and '.join(names)} weights turned into float32"] if others else [],
    )


def metadata_of(info: CheckpointInfo) -> dict[str, str]:
    """The metadata of a checkpoint of ours."""
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "config": json.dumps(asdict(info.config)),
        "preprocessing": json.dumps(asdict(info.preprocessing)),
        "labels": json.dumps(info.labels),
        "label_note": info.label_note,
        "origin": info.origin,
        "licence": info.licence,
    }


def _parse_info(source: str, metadata: Mapping[str, str], options: Mapping[str, Any]) -> CheckpointInfo:
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(f"{source}: checkpoint version {metadata.get('version')}, this package reads {VERSION}")
    try:
        info = CheckpointInfo(
            ModelConfig.from_fields({**json.loads(metadata["config"]), **options}),
            Preprocessing.from_fields(json.loads(metadata["preprocessing"])),
            tuple(json.loads(metadata["labels"])),
            metadata.get("origin", ""),
            metadata.get("licence", ""),
            metadata.get("label_note", ""),
            report=("checkpoint of this package: everything is as its metadata says",),
        )
        if info.labels and len(info.labels) != info.config.num_classes:
            raise ValueError(f"{len(info.labels)} labels for {info.config.num_classes} classes")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: its metadata cannot be understood ({error})") from error
    return info


def _some(keys: Sequence[str], most: int = 5) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
