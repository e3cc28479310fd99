"""Which videos have the same content: one file under several names, or copies of it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Hashable, Iterable
from contextlib import suppress
from pathlib import Path

from uniformerv2.data.shards import member_size, video_source
from uniformerv2.errors import VideoError

_HASHED = 1 << 20  # bytes that are hashed at once
_BLOCK = 1 << 12  # bytes from the middle, which tell most files of one size apart


def content_sha256(video: Path | bytes) -> str:
    """Of a file, of the contents of a folder in the order of their names, or of bytes. Raises OSError."""
    if isinstance(video, bytes):
        return hashlib.sha256(video).hexdigest()
    digest = hashlib.sha256()
    for part in sorted(video.iterdir()) if video.is_dir() else [video]:
        if part.is_file():
            with part.open("rb") as file:
                while content := file.read(_HASHED):
                    digest.update(content)
    return digest.hexdigest()


def file_stamp(path: Path) -> tuple[int, int]:
    """Bytes and the time of the last change in nanoseconds, of a file, a folder with its files or a member of a shard.

    Raises:
        OSError: it is not there.
    """
    try:
        status = path.stat()
    except OSError:
        if not (size := member_size(path)):
            raise
        return size, next(shard for shard in path.parents if shard.exists()).stat().st_mtime_ns
    if stat.S_ISREG(status.st_mode):
        return status.st_size, status.st_mtime_ns
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(0, "neither a file nor a folder")
    parts = [entry.stat() for entry in os.scandir(path)]
    return sum(part.st_size for part in parts), max(part.st_mtime_ns for part in (status, *parts))


def same_files(paths: Iterable[Path]) -> dict[Path, Path]:
    """For each path the first path of the same file, which links give several names."""
    first: dict[Hashable, Path] = {}
    return {path: first.setdefault(_file_key(path), path) for path in paths}


def same_content(paths: Iterable[Path]) -> dict[Path, Path]:
    """For each path of a video the first path of the same content. Only files of equal size are read.

    Missing and empty files have a content of their own.
    """
    keys: dict[Path, Hashable] = {path: _file_key(path) for path in paths}
    videos = {key: path for path, key in keys.items()}  # one name for each file
    for read in (_size, _middle, lambda path: content_sha256(video_source(path))):
        alike: dict[Hashable, list[Hashable]] = defaultdict(list)
        for key, path in videos.items():
            with suppress(OSError, VideoError):  # or over a limit
                if found := read(path):
                    alike[found].append(key)
        same = {key: found for found, members in alike.items() if len(members) > 1 for key in members}
        videos = {key: videos[key] for key in same}
    first: dict[Hashable, Path] = {}
    return {path: first.setdefault(same.get(key, key), path) for path, key in keys.items()}


def _file_key(path: Path) -> Hashable:
    with suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return path


def _size(path: Path) -> Hashable:
    """Bytes of a file or of a member of a shard; of a folder, how many files it has."""
    if path.is_dir():
        return "files", len(os.listdir(path))
    return path.stat().st_size if path.exists() else member_size(path)


def _middle(path: Path) -> Hashable:
    size = _size(path)
    if path.is_dir():
        images = sorted(path.iterdir())
        return size, content_sha256(images[len(images) // 2])
    source = video_source(path)
    if isinstance(source, bytes):
        return size, source[len(source) // 2 :][:_BLOCK]
    with source.open("rb") as file:
        file.seek(path.stat().st_size // 2)
        return size, file.read(_BLOCK)
