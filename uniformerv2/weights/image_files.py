"""Image transformers out of files, folders, hub repositories and live modules: tensors, and hints beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from uniformerv2.errors import CheckpointError
from uniformerv2.model.wrappers import unwrapped
from uniformerv2.text import parse_json
from uniformerv2.weights.download import FileNotOnServerError, UnreachableError, hub_file, is_repository
from uniformerv2.weights.files import HUB_FILE, read_tensors
from uniformerv2.weights.image_hints import (
    Hints,
    hints_from_config,
    hints_from_metadata,
    hints_from_module,
    hints_from_preprocessor,
)
from uniformerv2.weights.unwrapping import Unwrapped, Weights, unwrap

INDEX = f"{HUB_FILE}.index.json"  # lists the files of weights that are split
WEIGHTS = (HUB_FILE, INDEX, "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")

ImageSource = str | Path | Mapping[str, Tensor] | nn.Module
Find = Callable[[str], Path | None]  # the local file of that name; None where there is none


class ImageTensors(NamedTuple):
    """Tensors of an image transformer, hints beside them, and the name of their source for errors."""

    found: Unwrapped
    hints: Hints
    name: str


def read_image_source(source: ImageSource, weights: Weights = "model") -> ImageTensors:
    """Read the source of an image transformer. See `arm`."""
    if isinstance(source, nn.Module):
        module = unwrapped(source)
        found, name = Unwrapped({}, module.state_dict(), weights=weights), f"the given {type(module).__name__}"
        return ImageTensors(found, hints_from_module(module), name)
    if isinstance(source, Mapping):
        name = "the given state dict"
        return ImageTensors(unwrap(source, name, weights), Hints(), name)
    path, name = Path(source), str(source)
    if path.is_dir():
        return _read_files(_in_folder(path), name, weights)
    if not path.exists() and is_repository(name):
        unreachable: list[UnreachableError] = []
        return _read_files(_in_repository(name, unreachable), name, weights, unreachable)
    found = read_tensors(path, weights=weights)
    beside = _configuration(_in_folder(path.parent), path.name)
    return ImageTensors(found, hints_from_metadata(found.metadata).or_else(beside), name)


def _read_files(find: Find, name: str, weights: Weights, unreachable: Sequence[UnreachableError] = ()) -> ImageTensors:
    """The first weights of a folder or a repository, and its configuration."""
    for file in WEIGHTS:
        if (path := find(file)) is not None:
            break
    else:
        if unreachable:
            raise UnreachableError(
                f"{name}: not on this machine, and the hub cannot be reached or is switched off; check the network, or "
                "name a file or folder with an image transformer (on the command line --arm FILE)"
            )
        raise CheckpointError(f"{name}: none of {', '.join(WEIGHTS)} in it")
    parts = [read_tensors(part, weights=weights) for part in _parts(path, find, name)]
    metadata = {key: value for part in parts for key, value in part.metadata.items()}
    tensors = {key: value for part in parts for key, value in part.tensors.items()}
    found = parts[0]._replace(metadata=metadata, tensors=tensors)
    return ImageTensors(found, hints_from_metadata(metadata).or_else(_configuration(find, file)), name)


def _parts(path: Path, find: Find, name: str) -> list[Path]:
    """The files of the weights."""
    if path.name != INDEX:
        return [path]
    files = sorted(set(_json(path).get("weight_map", {}).values()))
    found = {file: find(file) for file in files}
    if not files or None in found.values():
        missing = [file for file, part in found.items() if part is None]
        raise CheckpointError(f"{name}: {INDEX} lists files that are missing: {', '.join(missing) or 'none at all'}")
    return [part for part in found.values() if part is not None]


def _configuration(find: Find, weights: str) -> Hints:
    """Hints from the configuration files beside weights; open_clip has a file of its own."""
    config = "open_clip_config.json" if weights.startswith("open_clip") else "config.json"
    hints = Hints()
    for file, read in ((config, hints_from_config), ("preprocessor_config.json", hints_from_preprocessor)):
        if (path := find(file)) is not None:
            hints = hints.or_else(read(_json(path)))
    return hints


def _in_folder(folder: Path) -> Find:
    return lambda file: folder / file if (folder / file).is_file() else None


def _in_repository(repository: str, unreachable: list[UnreachableError]) -> Find:
    """Finds files of a repository; `unreachable` receives why the hub could not be asked."""
    options: dict[str, Any] = {}

    def find(file: str) -> Path | None:
        try:
            return hub_file(repository, file, **options)
        except FileNotOnServerError:
            return None
        except UnreachableError as error:  # the other files may be in the cache
            unreachable.append(error)
            options["local_files_only"] = True
            return None

    return find


def _json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    return content if isinstance(content, dict) else {}
