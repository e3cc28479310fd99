"""Our own checkpoint: one safetensors file that knows its architecture, labels, preprocessing, origin and licence."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from uniformerv2.errors import CheckpointError
from uniformerv2.model.config import ModelConfig, Preprocessing
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.weights.formats import VIDEO_FORMATS, to_ours, video_format

FORMAT = "uniformerv2"
VERSION = 1


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself."""

    config: ModelConfig
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    origin: str
    licence: str


def save_model(model: UniFormerV2, path: str | Path, *, origin: str = "", licence: str = "") -> None:
    """Write a model to one safetensors file, whole or not at all.

    Args:
        model: the model; its config, preprocessing and labels go into the file.
        path: where to; an existing file is replaced only when the new one is complete.
        origin: where the weights come from, for people.
        licence: under which terms they may be used.
    """
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": json.dumps(asdict(model.config)),
        "preprocessing": json.dumps(asdict(model.preprocessing)),
        "labels": json.dumps(model.labels),
        "origin": origin,
        "licence": licence,
    }
    path = Path(path)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(state, temporary, metadata)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_model(path: str | Path) -> UniFormerV2:
    """Read a checkpoint of ours, strictly.

    Returns:
        The model in eval mode, with its labels and preprocessing.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or does not hold exactly the tensors that
            its own architecture needs.
    """
    metadata, state = read_safetensors(path)
    info = _parse_info(path, metadata)
    with torch.device("meta"):  # no time spent on random numbers that are replaced at once
        model = UniFormerV2(info.config, info.preprocessing, info.labels)
    check_fit(state, model.state_dict(), source=str(path))
    model.load_state_dict(state, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def checkpoint_info(path: str | Path) -> CheckpointInfo:
    """What a checkpoint says of itself, without reading its weights. Raises CheckpointError."""
    return _parse_info(path, _open(path)[0])


def load_weights(model: UniFormerV2, state: Mapping[str, Tensor], *, source: str = "the given weights") -> None:
    """Copy weights in our own, the official or mmaction2's names into a model, strictly.

    Args:
        model: receives the weights.
        state: the state dict; which of the three it is, its keys tell.
        source: what errors call it.

    Raises:
        CheckpointError: unknown names, or tensors missing, unexpected or of another shape.
    """
    kind = video_format(state)
    if kind is None:
        raise CheckpointError(f"{source}: the keys are neither ours nor official nor mmaction2's")
    ours, unknown = (dict(state), []) if kind == "ours" else to_ours(state, VIDEO_FORMATS[kind])
    check_fit({**ours, **{key: state[key] for key in unknown}}, model.state_dict(), source=source)
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


def read_safetensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file. Raises CheckpointError."""
    metadata, keys = _open(path)
    with safe_open(path, framework="pt") as file:
        return metadata, {key: file.get_tensor(key) for key in keys}


def _open(path: str | Path) -> tuple[dict[str, str], list[str]]:
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, list(file.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error


def _parse_info(path: str | Path, metadata: Mapping[str, str]) -> CheckpointInfo:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: safetensors, but not a checkpoint of this package (its metadata does not say format={FORMAT})"
        )
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(f"{path}: checkpoint version {metadata.get('version')}, this package reads {VERSION}")
    try:
        info = CheckpointInfo(
            ModelConfig(**_tuples(json.loads(metadata["config"]))),
            Preprocessing(**_tuples(json.loads(metadata["preprocessing"]))),
            tuple(json.loads(metadata["labels"])),
            metadata.get("origin", ""),
            metadata.get("licence", ""),
        )
        if info.labels and len(info.labels) != info.config.num_classes:
            raise ValueError(f"{len(info.labels)} labels for {info.config.num_classes} classes")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata cannot be understood ({error})") from error
    return info


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where our dataclasses have tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _some(keys: list[str], most: int = 5) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
