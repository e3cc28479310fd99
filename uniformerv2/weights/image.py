"""Image transformers from anywhere -> armed video models."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uniformerv2.errors import CheckpointError
from uniformerv2.model.arming import fit_weights, load_image_weights
from uniformerv2.model.config import Layout, ModelConfig, Preprocessing, layout_options
from uniformerv2.weights.checkpoint import check_fit
from uniformerv2.weights.download import hub_file
from uniformerv2.weights.files import read_tensors
from uniformerv2.weights.formats import State
from uniformerv2.weights.hub import UniFormerV2
from uniformerv2.weights.image_formats import Constants, read_image_model
from uniformerv2.weights.image_hints import (
    Hints,
    hints_from_config,
    hints_from_metadata,
    hints_from_module,
    hints_from_preprocessor,
)

INDEX = "model.safetensors.index.json"  # names the files of weights that are in several
WEIGHTS = (
    "model.safetensors",
    INDEX,
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(?<!\.safetensors)(?<!\.pth)(?<!\.pyth)(?<!\.pt)(?<!\.bin)")

_NAMES = [field.name for field in fields(ModelConfig)]
# fields that say how the image transformer is; the size of its patches is the tensors' to say
IMAGE_FIELDS = set(_NAMES[: _NAMES.index("local_blocks")]) - {"patch_size"}

Source = str | Path | Mapping[str, Tensor] | nn.Module
Find = Callable[[str], Path | None]


def arm(
    source: Source,
    *,
    num_classes: int,
    layout: Layout = "scene",
    labels: Sequence[str] = (),
    num_frames: int = 8,
    size: int | tuple[int, int] | None = None,
    mean: Constants | None = None,
    std: Constants | None = None,
    **options: Any,
) -> UniFormerV2:
    """Turn an image transformer into a video model.

    Until it is trained, what stands for a frame (its class token, or its patches pooled) is exactly what the image
    model gives for it (section 3 of the paper). docs/image_transformers.md has the families that are known, and what
    is assumed of each.

    Args:
        source: a file of weights; a folder or a repository of the hub ("owner/name") with its configuration; a state
            dict; or a live module of `timm` or `transformers`. Heads, text towers and decoders are left behind.
        num_classes: classes of the new head.
        layout: "scene" or "temporal", see `layout_options`.
        labels: class names in the order of the new head.
        num_frames: frames of a clip.
        size: (height, width) of a clip in pixels, or the side of a square; default: the image model's own.
            Positions are interpolated.
        mean, std: of the channels in [0, 1] that the image model was trained with; default: what its configuration
            says, else what is usual in its family.
        options: fields of `ModelConfig`. Those of the image transformer say how it is where nothing tells
            (`heads=16`, `image_size=(224, 320)` that its positions are for) or change it (`pool="mean"`,
            `post_norm=False`, `patch_size=32` by resampling); the others replace what the layout says.

    Returns:
        The model in train mode, float32; its `loading_report` says what was recognised, assumed, changed, left out.

    Raises:
        CheckpointError: unreadable, no image transformer of a known family, or not exactly its tensors.
        ValueError: options that contradict each other.
    """
    state, hints, name = _read(source)
    given = {key: value for key, value in options.items() if key in IMAGE_FIELDS}
    image = read_image_model(state, hints, source=name, **given)
    clip_size = (size, size) if isinstance(size, int) else size or image.config.image_size
    config = replace(
        image.config,
        **{
            "num_classes": num_classes,
            **layout_options(layout, image.config.depth),
            **{key: value for key, value in options.items() if key not in IMAGE_FIELDS},
            "image_size": clip_size,
        },
    )
    preprocessing = Preprocessing(num_frames=num_frames, size=clip_size, mean=mean or image.mean, std=std or image.std)
    model = UniFormerV2(config, preprocessing, labels)
    fitted, changes = fit_weights(image.state, image.config, config)
    check_fit(fitted, _of_the_image(model), source=name)
    load_image_weights(model, fitted)
    model.loading_report = (*image.report, *changes, *_converted(fitted))
    return model


def _of_the_image(model: nn.Module) -> State:
    """The tensors of an armed model that an image transformer has too."""
    return {key: value for key, value in model.state_dict().items() if re.match(r"backbone\.(?!.*\.local\d\.)", key)}


def _converted(state: State) -> list[str]:
    others = {tensor.dtype for tensor in state.values()} - {torch.float32}
    return [f"{str(dtype).removeprefix('torch.')} weights turned into float32" for dtype in sorted(others, key=str)]


def _read(source: Source) -> tuple[Mapping[str, Tensor], Hints, str]:
    """Tensors, what is known besides, and what errors call the source."""
    if isinstance(source, nn.Module):
        return source.state_dict(), hints_from_module(source), f"the given {type(source).__name__}"
    if isinstance(source, Mapping):
        tensors = {key: value for key, value in source.items() if isinstance(value, Tensor)}
        return tensors, Hints(), "the given state dict"
    path, name = Path(source), str(source)
    if path.is_dir():
        return _read_files(lambda file: _existing(path / file), name)
    if not path.exists() and REPOSITORY.fullmatch(name) and not path.parent.exists():
        return _read_files(lambda file: _on_the_hub(name, file), name)
    metadata, tensors = read_tensors(path)
    beside = _configuration(lambda file: _existing(path.parent / file), path.name)
    return tensors, hints_from_metadata(metadata).or_else(beside), name


def _read_files(find: Find, name: str) -> tuple[Mapping[str, Tensor], Hints, str]:
    """A folder or a repository: the first weights that it has, and its configuration."""
    for file in WEIGHTS:
        if (path := find(file)) is not None:
            break
    else:
        raise CheckpointError(f"{name}: none of {', '.join(WEIGHTS)} in it, or it cannot be reached")
    metadata: dict[str, str] = {}
    tensors: State = {}
    for part in _parts(path, find, name):
        told, some_tensors = read_tensors(part)
        metadata.update(told)
        tensors.update(some_tensors)
    return tensors, hints_from_metadata(metadata).or_else(_configuration(find, file)), name


def _parts(path: Path, find: Find, name: str) -> list[Path]:
    """The files that weights are in."""
    if path.name != INDEX:
        return [path]
    files = sorted(set(_json(path).get("weight_map", {}).values()))
    found = {file: find(file) for file in files}
    if not files or None in found.values():
        missing = [file for file, part in found.items() if part is None]
        raise CheckpointError(f"{name}: {INDEX} names files that are not there: {', '.join(missing) or 'none at all'}")
    return [part for part in found.values() if part is not None]


def _configuration(find: Find, weights: str) -> Hints:
    """What the configuration files beside weights say; open_clip keeps its own beside those of others."""
    config = "open_clip_config.json" if weights.startswith("open_clip") else "config.json"
    hints = Hints()
    for file, read in ((config, hints_from_config), ("preprocessor_config.json", hints_from_preprocessor)):
        if (path := find(file)) is not None:
            hints = hints.or_else(read(_json(path)))
    return hints


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _on_the_hub(repository: str, file: str) -> Path | None:
    try:
        return hub_file(repository, file)
    except CheckpointError:
        return None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    return content if isinstance(content, dict) else {}
