"""Checkpoints of video models, of any origin: read, recognised and compared; and written in our format.

Ours is one safetensors file whose metadata knows the architecture, labels, preprocessing, origin and licence. Files of
other implementations that this package wrote carry the same metadata beside their state dict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from uniformerv2.errors import CheckpointError
from uniformerv2.model.config import ModelConfig, Preprocessing
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.model.wrappers import plain_model
from uniformerv2.text import parse_json
from uniformerv2.weights.download import hub_file, is_repository
from uniformerv2.weights.files import HUB_FILE, read_tensors, write_safetensors
from uniformerv2.weights.image_recognise import read_image_model
from uniformerv2.weights.key_names import (
    IGNORED_PREFIXES,
    VIDEO_FORMATS,
    StateDict,
    add_backbone_prefix,
    first_of,
    formats_of,
    to_ours,
)
from uniformerv2.weights.other_models import AnotherModel
from uniformerv2.weights.recognise import CheckpointInfo, Known, fit_labels, recognise
from uniformerv2.weights.unwrapping import Weights, unwrap, video_tensors
from uniformerv2.weights.zoo import fetch_entry, zoo_entry

FORMAT = "uniformerv2"
VERSION = 1
SPAN_HEAD = "span_head."  # begins the names of the tensors that a localiser has beside its video model

CheckpointSource = str | Path | Mapping[str, Tensor]


class Checkpoint(NamedTuple):
    """A video checkpoint, read and recognised; its tensors are under our names."""

    name: str
    metadata: dict[str, str]
    state: StateDict
    info: CheckpointInfo


class NotAVideoModel(CheckpointError):
    """Keys of no video format; perhaps an image transformer."""


def save_model(model: nn.Module, path: str | Path, *, origin: str | None = None, licence: str | None = None) -> None:
    """Write a model to one safetensors file, whole or not at all.

    Args:
        model: its config, preprocessing, labels, label note and thresholds go into the file. It may be wrapped as for
            `Predictor`.
        path: the file to write; an existing one is replaced only when the new one is complete.
        origin: where the weights come from, for people; None: that of the checkpoint that the model was loaded from.
        licence: terms of use; None: as for `origin`.

    Raises:
        CheckpointError: the model has not the tensors of its config, so that no one could load the file.
    """
    write_safetensors(path, *video_contents(model, path, origin=origin, licence=licence))


def video_contents(
    model: nn.Module, path: str | Path, *, origin: str | None = None, licence: str | None = None
) -> tuple[StateDict, dict[str, str]]:
    """The tensors and the metadata that `save_model` writes to a path. Raises CheckpointError as it does."""
    plain = plain_model(model)
    info = CheckpointInfo(
        plain.config,
        plain.preprocessing,
        plain.labels,
        getattr(plain, "origin", "") if origin is None else origin,
        getattr(plain, "licence", "") if licence is None else licence,
        plain.label_note,
        plain.thresholds,
    )
    state = plain.state_dict()
    try:
        check_fit(state, expected_tensors(info.config), source="the model's state dict")
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: not written, since no one could load it: {error}; save the model as it was before its modules "
            "were rewritten or replaced, or change model.config with them"
        ) from None
    return state, metadata_of(info)


@lru_cache(maxsize=1)  # most of the time of converting many files of one architecture
def expected_tensors(config: ModelConfig) -> StateDict:
    """Names and shapes of a model's tensors, on the meta device."""
    with torch.device("meta"):
        return UniFormerV2(config).state_dict()


def checkpoint_info(
    source: CheckpointSource, *, labels: Sequence[str] | None = None, weights: Weights = "model", **options: Any
) -> CheckpointInfo:
    """Recognise a checkpoint without loading its weights; arguments as for `load_model`.

    Raises:
        CheckpointError: as `load_model`; a head without labels is no error here.
    """
    checkpoint = open_checkpoint(source, Known(), options, weights)
    return checkpoint.info if labels is None else fit_labels(checkpoint.info, labels, checkpoint.name)


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
        listed = "; ".join(f"{len(keys)} {problem}: {first_of(keys)}" for problem, keys in problems.items() if keys)
        raise CheckpointError(f"{source} does not fit the model: {listed}")


def open_checkpoint(
    source: CheckpointSource, known: Known, options: Mapping[str, Any], weights: Weights = "model"
) -> Checkpoint:
    """Read a checkpoint and recognise it; see `load_model`. Raises NotAVideoModel and CheckpointError."""
    if isinstance(source, nn.Module):
        raise CheckpointError(
            f"the given {type(source).__name__} is a live module, expected a file, a name or a state dict; Predictor "
            "and evaluate take a live UniFormerV2 as it is, arm() an image transformer"
        )
    if isinstance(source, Mapping):
        name, file_name, origin = "the given state dict", "", ""
        found = unwrap(source, name, weights)
    else:
        name = str(source)
        path, origin, known = _find(Path(source), name, known)
        file_name = path.name
        found = read_tensors(path, weights=weights)
    metadata = found.metadata
    tensors, head = found.tensors, []
    if "span_head" in metadata:
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(SPAN_HEAD)}
        head = ["a localiser: this is its video model, without the head that finds spans"]
    key_format, state, renamed = rename_video_keys(tensors, name, found.weights)
    if unknown := [option for option in options if option not in ModelConfig.__dataclass_fields__]:
        raise TypeError(f"{', '.join(unknown)}: no field of ModelConfig, and {name} is a video model already")
    if metadata.get("format") == FORMAT:
        info = replace(_parse_info(name, metadata, options), format=key_format)
        if known.dataset and info.labels:
            unused = f"dataset {known.dataset} not used: the file has its own labels"
            info = replace(info, report=(*info.report, unused))
    elif key_format == "ours":
        raise CheckpointError(
            f"{name}: not a checkpoint of this package, only its tensors: it has no metadata with format={FORMAT} and "
            "the architecture; write it with save_model, or build the model and use load_weights"
        )
    else:
        info = recognise(state, key_format, known, source=name, file_name=file_name, options=options)
    report = (*info.report, *head, *found.report, *renamed)
    if file_name and Path(name).is_dir():
        report = (f"{file_name} of the folder {name}", *report)
    return Checkpoint(name, metadata, state, replace(info, origin=origin or info.origin, report=report))


def read_span_head(source: str | Path) -> tuple[StateDict, str]:
    """The tensors of a localiser's head, under their own names, and what its metadata say of it.

    Args:
        source: as of `load_model`.

    Raises:
        CheckpointError: not to be read, or no localiser.
    """
    path, _, _ = _find(Path(source), str(source), Known())
    found = read_tensors(path)
    if "span_head" not in found.metadata:
        raise CheckpointError(
            f"{source}: not a localiser; train one with train_localiser, for which a video model is the start"
        )
    tensors = {key[len(SPAN_HEAD) :]: tensor for key, tensor in found.tensors.items() if key.startswith(SPAN_HEAD)}
    return tensors, found.metadata["span_head"]


def is_localiser(source: str | Path) -> bool:
    """Whether a file or the folder of a run has a localiser. Names of published models and repositories are none."""
    file = run_checkpoint(source) or Path(source)
    with suppress(OSError, SafetensorError), safe_open(file, framework="pt") as saved:
        return "span_head" in (saved.metadata() or {})
    return False


def _find(path: Path, name: str, known: Known) -> tuple[Path, str, Known]:
    """The local file of a path, a published model or a hub repository; the published model's name and facts."""
    if path.is_dir() and (path / HUB_FILE).is_file():
        return path / HUB_FILE, "", known
    if (file := run_checkpoint(path)) is not None:
        return file, "", known
    if path.exists():
        return path, "", known
    if entry := zoo_entry(name):
        dataset, num_frames, channel_order = known
        published = Known(
            dataset or entry.dataset,
            num_frames or entry.num_frames,
            channel_order or entry.preprocessing().channel_order,
        )
        return fetch_entry(entry), entry.name, published
    if is_repository(name):
        return hub_file(name, HUB_FILE), "", known
    raise CheckpointError(
        f"{name}: no such file, and no published model of that name (`uniformerv2 models` lists them); "
        "a repository on the hub would be owner/name"
    )


def run_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint that the folder of a training run stands for: of its best epoch, else of its last.

    None where it is not the folder of a run.

    Raises:
        CheckpointError: the run has no checkpoint yet.
    """
    folder = Path(folder)
    files = [folder / name for name in ("best.safetensors", "last.safetensors")]
    found = next((file for file in files if file.is_file()), None)
    if found is None and (folder / "recipe.json").is_file():
        raise CheckpointError(f"{folder}: a run without a checkpoint; it has one after its first epoch")
    return found


def rename_video_keys(
    tensors: Mapping[str, Tensor], source: str, weights: Weights = "model"
) -> tuple[Any, StateDict, list[str]]:
    """The format, the tensors under our names (unknown ones unchanged, for the strict check), and a report."""
    tensors, report = video_tensors(tensors, source, weights)
    found = formats_of(tensors)
    if len(found) > 1:
        mixed = " and ".join(f"{key_format} ({key})" for key_format, key in found.items())
        raise CheckpointError(f"{source}: keys of two formats mixed: {mixed}; expected one; save only the model meant")
    if not found:
        raise NotAVideoModel(_describe_others(tensors, source))
    key_format = next(iter(found))
    if key_format == "ours":
        return key_format, dict(tensors), report
    if key_format == "official" and not any(key.startswith("backbone.") for key in tensors):
        tensors = add_backbone_prefix(tensors)
    prefix = IGNORED_PREFIXES.get(key_format)
    ignored = [key for key in tensors if prefix and key.startswith(prefix)]
    state, unknown = to_ours({key: tensors[key] for key in tensors if key not in ignored}, VIDEO_FORMATS[key_format])
    report += [f"ignored: {first_of(ignored)}"] if ignored else []
    return key_format, {**state, **{key: tensors[key] for key in unknown}}, report


def _describe_others(tensors: Mapping[str, Tensor], source: str) -> str:
    """Describe tensors that are no video model, and what to do with them."""
    try:
        family = read_image_model(tensors, source=source).family
    except AnotherModel as error:
        return str(error)
    except CheckpointError as error:
        return f"{source}: the keys are neither ours nor official nor mmaction2's; nor are they an image model: {error}"
    return (
        f"{source}: an image transformer ({family}), expected a video model; "
        "give num_classes=... to make it one, or use arm()"
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
        **({"thresholds": json.dumps(info.thresholds)} if info.thresholds else {}),
        "origin": info.origin,
        "licence": info.licence,
    }


def _parse_info(source: str, metadata: Mapping[str, str], options: Mapping[str, Any]) -> CheckpointInfo:
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(f"{source}: checkpoint version {metadata.get('version')}, this package reads {VERSION}")
    try:
        info = CheckpointInfo(
            ModelConfig.from_fields({**parse_json(metadata["config"]), **options}),
            Preprocessing.from_fields(parse_json(metadata["preprocessing"])),
            tuple(parse_json(metadata["labels"])),
            metadata.get("origin", ""),
            metadata.get("licence", ""),
            metadata.get("label_note", ""),
            tuple(map(float, parse_json(metadata.get("thresholds", "[]")))),
            report=("checkpoint of this package: everything is from its metadata",),
        )
        if info.labels and len(info.labels) != info.config.num_classes:
            raise ValueError(f"{len(info.labels)} labels for {info.config.num_classes} classes")
        if info.thresholds and len(info.thresholds) != info.config.num_classes:
            raise ValueError(f"{len(info.thresholds)} thresholds for {info.config.num_classes} classes")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: its metadata cannot be understood ({error})") from error
    return info
