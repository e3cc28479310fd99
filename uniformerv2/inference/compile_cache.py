"""Compiled code is kept in the user's cache, so that the next start finds it.

PyTorch keys it by code, shapes, versions and device, and compiles again what it cannot unpickle. It loads a damaged
library as it is, though, which may end the process: so what does not have the checksum that was noted is removed first.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from contextlib import suppress
from functools import cache
from pathlib import Path

from uniformerv2.atomic import write_text
from uniformerv2.attention_choice import cache_file

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
UNFINISHED_SECONDS = 3600  # a file without a checksum may be of a process that compiles now, or of one that was killed


@cache
def use_cache() -> Path | None:
    """Let torch.compile keep its code beside the downloads, in the hub's cache, unless the user has named a folder.

    Returns:
        The folder; None where it is the user's, or cannot be written.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # of a large package

    # torch sets the variable itself when it first compiles
    if os.environ.get(VARIABLE, default_cache_dir()) != default_cache_dir():
        return None
    folder = cache_file().with_name("compiled")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_damaged(folder)
    except OSError:
        return None
    os.environ[VARIABLE] = str(folder)
    return folder


def remove_damaged(folder: Path) -> None:
    """Remove the files that are not as `note_checksums` found them. Raises OSError."""
    noted, latest = _noted(folder), time.time() - UNFINISHED_SECONDS
    for file, name in _files(folder):
        if _checksum(file) != noted[name] if name in noted else file.stat().st_mtime < latest:
            file.unlink(missing_ok=True)


def note_checksums(folder: Path | None) -> None:
    """Note the checksums of files that are new; of none in a folder of the user's, or one that cannot be written."""
    if folder is None:
        return
    with suppress(OSError):
        noted = _noted(folder)
        new = {name: _checksum(file) for file, name in _files(folder) if name not in noted}
        if new:
            write_text(folder / "checksums.json", json.dumps(noted | new))


def _files(folder: Path) -> list[tuple[Path, str]]:
    own = folder / "checksums.json"
    return [(file, str(file.relative_to(folder))) for file in folder.rglob("*") if file.is_file() and file != own]


def _checksum(file: Path) -> int:
    return zlib.crc32(file.read_bytes())


def _noted(folder: Path) -> dict[str, int]:
    try:
        noted = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return noted if isinstance(noted, dict) else {}
