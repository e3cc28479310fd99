"""Tensors out of a file of any format, recognised by its content and never by its name. Runs no code of a file.

safetensors files and the archives of torch.save stay on disk as memory maps: nothing is copied before it is used.
Files of ours are laid out so that their maps are aligned as memory is: see `write_safetensors`.
"""

from __future__ import annotations

import argparse
import json
import os
import pickletools
import re
import sys
import zipfile
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from uniformerv2.atomic import whole_file
from uniformerv2.errors import CheckpointError
from uniformerv2.weights.unwrapping import Unwrapped, Weights, unwrap

HUB_FILE = "model.safetensors"  # of a hub repository, or of a folder that save_pretrained wrote
SUFFIXES = (".safetensors", ".pth", ".pyth", ".pt", ".bin")  # of weight files
ALIGNMENT = 64  # bytes; of the memory that torch allocates, and of the tensors in its archives
SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

SAFETENSORS, ZIP, TORCH_LEGACY = "safetensors", "zip", "torch legacy"
NO_WEIGHTS = {  # first bytes of files that are taken for weights by mistake
    b"version https://git-lfs": "a pointer that git-lfs left in place of the file; fetch the file with `git lfs pull`",
    b"<": "a web page or XML, probably an error that a server answered; download the file again",
    b"\x1f\x8b": "gzip; unpack it first",
    b"\x89HDF": "HDF5 (Keras)",
    b"GGUF": "GGUF",
    b"\x93NUMPY": "a NumPy array",
    b"{": "JSON, which holds no weights; name the file beside it",
    b"\x80": "a plain pickle, not one that torch.save wrote",
}
TORCH_LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before PyTorch 1.6


def read_tensors(path: str | Path, *, weights: Weights = "model", memory: int | None = None) -> Unwrapped:
    """Metadata and tensors of a file.

    Args:
        path: a safetensors file, or one that torch.save wrote in either of its formats, see `unwrap`.
        weights: which, where the file has several.
        memory: bytes that the tensors may need as float32; default: all of the machine's.

    Returns:
        The metadata (of torch files: only if this package wrote them), and the tensors by name on the CPU: private
        memory maps of the file, so that writing to them does not change it. Only files from before PyTorch 1.6 are
        read into memory.

    Raises:
        CheckpointError: no such file, a folder, an unknown format, a damaged or truncated file, a pickle that would
            run code, a TorchScript archive, or more than fits the memory.
    """
    path = Path(path)
    file_format = _file_format(path)
    memory = machine_memory() if memory is None else memory
    _check_memory(path, path.stat().st_size, memory)
    if file_format == SAFETENSORS:
        found = Unwrapped(*_read_safetensors(path), weights=weights)
    else:
        content = _read_torch(path, archive=file_format == ZIP)
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a state dict")
        found = unwrap(content, str(path), weights)
    _check_memory(path, sum(tensor.numel() * max(tensor.itemsize, 4) for tensor in found.tensors.values()), memory)
    return found


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose tensors lie at multiples of `ALIGNMENT`, whole or not at all.

    The library packs tensors in an order of its own behind a header of any length. Memory maps of them are not aligned,
    torch picks other kernels for such memory, and the last digits of a model's outputs would change with saving. Here
    the header is padded, and the few tensors whose sizes are no multiples come last.

    Raises:
        OSError: it cannot be written.
    """
    ordered = sorted(tensors, key=lambda key: (tensors[key].nbytes % ALIGNMENT != 0, -tensors[key].itemsize, key))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for key in ordered:
        start, end = end, end + tensors[key].nbytes
        shape, dtype = list(tensors[key].shape), SAFETENSORS_DTYPES[tensors[key].dtype]
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace")
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with whole_file(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in ordered:
            flat = tensors[key].detach().cpu().contiguous().view(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def machine_memory() -> int:
    """Bytes of memory that this machine or container has; without an answer, no limit."""
    try:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):  # Windows
        limits = [sys.maxsize]
    with suppress(OSError, ValueError):  # "max" where a container is not limited
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def _file_format(path: Path) -> str:
    if path.is_dir():
        weights = sorted(file.name for file in path.iterdir() if file.suffix in SUFFIXES)
        raise CheckpointError(f"{path}: a folder, not a file; in it: {', '.join(weights) or 'no weights'}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise CheckpointError(f"{path}: the file is empty; expected weights; download or copy it again")
    if start.startswith(b"PK\x03\x04"):
        return ZIP
    if start.startswith(TORCH_LEGACY_START):
        return TORCH_LEGACY
    if start[8:9] == b"{":  # eight bytes for the length of a header of JSON
        return SAFETENSORS
    found = next((name for magic, name in NO_WEIGHTS.items() if start.lstrip().startswith(magic)), None)
    raise CheckpointError(
        f"{path}: {found or f'an unknown format that begins with {start[:8]!r}'}; "
        "expected safetensors or a file of torch.save"
    )


def _check_memory(path: Path, needed: int, memory: int) -> None:
    if needed > memory:
        raise CheckpointError(
            f"{path}: its weights need {needed / 1e9:.1f} GB of memory, this machine has {memory / 1e9:.1f} GB; "
            "use a smaller model or a machine with more memory"
        )


def _read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: safetensors, but damaged or cut short: its header does not fit its content ({_line(error)}); "
            "download or copy it again"
        ) from error


def _read_torch(path: Path, *, archive: bool) -> Any:
    if archive:
        _check_archive(path)
    # newer versions of torch.load go by the suffix .safetensors, so such a file is passed open
    mapped = archive and path.suffix != ".safetensors"
    try:
        with path.open("rb") as file, torch.serialization.safe_globals(_plain_classes()):
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle can raise anything
        blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if blocked and (place := _pickled_module(path, blocked[1], archive=archive)) is not None:
            raise CheckpointError(
                f"{path}: a whole pickled module ({blocked[1]}), not a state dict, and loading that could run code; if "
                f"you trust the file: torch.save(torch.load(FILE, weights_only=False){place}.state_dict(), NEW)"
            ) from error
        if blocked:
            raise CheckpointError(
                f"{path}: holds {blocked[1]} beside its tensors, and loading that could run code; expected tensors; "
                "if you trust the file: torch.save(torch.load(FILE, weights_only=False)[...], NEW)"
            ) from error
        raise CheckpointError(
            f"{path}: written by torch.save, but damaged or cut short ({_line(error)}); download or copy it again"
        ) from error


def _pickled_module(path: Path, name: str, *, archive: bool) -> str | None:
    """Where in a pickle a module of this class is, as an index: "" for the whole, or ['entry']. Runs nothing of it."""
    with ExitStack() as stack:
        if archive:
            opened = stack.enter_context(zipfile.ZipFile(path))
            pickled = next(entry for entry in opened.namelist() if entry.endswith("data.pkl"))
            file: IO[bytes] = stack.enter_context(opened.open(pickled))
        else:
            file = stack.enter_context(path.open("rb"))
            for _ in range(3):  # the magic number, the version and the machine
                deque(pickletools.genops(file), maxlen=0)
        texts = [argument for _, argument, _ in pickletools.genops(file) if isinstance(argument, str)]
    names = [text.replace(" ", ".") for text in texts]  # of a class: its module, a space, and its name
    if "_modules" not in texts or name not in names:
        return None
    before = [text for text in texts[: names.index(name)] if archive or text != "module"]  # which old files put before
    return f"[{before[-1]!r}]" if before else ""


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as opened:
            entries = opened.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path}: a zip archive, but damaged or cut short ({_line(error)}); download or copy it again"
        ) from error
    # NAME/data.pkl; constants.pkl is TorchScript's alone
    names = {entry.filename.split("/", 1)[-1] for entry in entries}
    if "constants.pkl" in names:
        raise CheckpointError(
            f"{path}: a TorchScript archive, which is a program; expected a file of weights; if you trust it: "
            "arm(torch.jit.load(FILE).state_dict(), ...) or torch.save(torch.jit.load(FILE).state_dict(), NEW)"
        )
    if "data.pkl" not in names:
        found = ", ".join(sorted(entry.filename for entry in entries)[:3])
        raise CheckpointError(f"{path}: a zip archive of something else ({found}); expected one that torch.save wrote")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            f"{path}: an archive of torch.save that was packed again with compression; save it with torch.save"
        )


class _Ignored:
    """In place of what a file has beside its weights, and nobody reads."""


def _plain_classes() -> list[Any]:
    """Classes of plain values that training programs leave beside the weights."""
    import _codecs

    import numpy as np

    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.float16, np.int64, np.int32, np.bool_)]
    made_by: dict[str, Any] = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(0).__reduce__()[0]}
    named = [
        (maker, f"numpy.{core}.multiarray.{name}") for name, maker in made_by.items() for core in ("core", "_core")
    ]
    paths = {"PosixPath": PurePosixPath, "WindowsPath": PureWindowsPath}
    named += [(path, f"pathlib{home}.{name}") for name, path in paths.items() for home in ("", "._local")]
    logged = (_Ignored, "mmengine.logging.history_buffer.HistoryBuffer")
    return [np.dtype, np.ndarray, *dtypes, *named, logged, _codecs.encode, argparse.Namespace]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
