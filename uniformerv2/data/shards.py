"""Videos in tar files, in the WebDataset convention: read at random like files, and written.

A shard is an uncompressed tar file. Members whose names agree up to the first dot of the last part are one sample:

    clips/anna.mp4      the video, known by its suffix
    clips/anna.json     {"label": "wave", "start": 1.5, "end": 4.0, "split": "train"}, or a list of such rows
    clips/anna.cls      or only the class: a name, or its line, from 0, in the file classes.txt beside the shards

Streaming would tie the order of a training to the order of writing. Here a shard is indexed instead, and a video in it
has a path like a file, `train-000000.tar/clips/anna.mp4`. So order, resuming and the share of each process are those of
files; the price is that shards must lie on a disk with random access.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from uniformerv2.atomic import whole_folder
from uniformerv2.data.annotations import SPLITS, Annotation, parse_interval
from uniformerv2.data.tables import check_names, check_target, relative_to, utf8_text
from uniformerv2.errors import AnnotationError
from uniformerv2.text import parse_json, short_json
from uniformerv2.video.limits import Limits
from uniformerv2.video.suffixes import VIDEO_SUFFIXES

CLASSES = "classes.txt"

_LABELS = ("json", "cls")
_LONGEST_LABEL = 1 << 24  # bytes; what is longer is no label
_ADDRESS = re.compile(r"^[a-z0-9+.-]{2,}:", re.IGNORECASE)  # s3://, https://, pipe:, but not C:\


# --- reading


@dataclass
class _Entry:
    """The members of a shard that have a key in common."""

    video: str = ""  # name of the member
    extent: tuple[int, int] = (0, 0)  # of its content in the shard: offset and size in bytes
    label: dict[str, bytes] = field(default_factory=dict)  # by extension


def is_shards(source: str | Path) -> bool:
    """Whether it is a .tar file, a pattern (`a-{000000..000009}.tar`), or a folder of .tar files without folders."""
    path = Path(source)
    if path.is_dir():
        names = [child for child in path.iterdir() if not child.name.startswith(".")]
        return any(child.suffix == ".tar" for child in names) and not any(child.is_dir() for child in names)
    return path.suffix == ".tar"


def read_shards(source: str | Path) -> list[Annotation]:
    """The annotations of shards; their paths are `SHARD.tar/MEMBER`.

    Args:
        source: a shard, a pattern in braces, or a folder of shards.

    Raises:
        AnnotationError: no shard there, one that cannot be read, a name that leads out of its shard, a video without
            a label or the other way round, or two members of one name; names the shard and the member.
    """
    annotations = [row for shard in _shards(str(source)) for row in _shard_rows(shard)]
    if not annotations:
        raise AnnotationError(f"{source}: no video in these shards")
    return annotations


def video_source(path: Path) -> Path | bytes:
    """What `VideoReader` takes for the path of an annotation: the path itself, or the content of a member of a shard.

    Raises:
        AnnotationError: the shard cannot be read.
        FileNotFoundError: it has no such member.
        VideoError: the member is larger than what may be held in memory (`Limits.chunk_bytes`).
    """
    shard = _shard_of(path)
    if shard is None:
        return path
    name = path.relative_to(shard).as_posix()
    if name not in _video_extents(shard):
        raise FileNotFoundError(f"no video {name} in {shard}")
    offset, size = _video_extents(shard)[name]
    _check_size(size, path)
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _check_size(size: int, path: Path) -> None:
    limits = Limits.from_environment()
    if size > limits.chunk_bytes:
        raise limits.exceeded("chunk_bytes", size, str(path))


def is_member(path: Path) -> bool:
    """Whether a path is that of a video in a shard. Raises AnnotationError where the shard cannot be read."""
    shard = _shard_of(path)
    return shard is not None and path.relative_to(shard).as_posix() in _video_extents(shard)


def member_size(path: Path) -> int:
    """Bytes of a video in a shard; 0 where it is in none."""
    shard = _shard_of(path)
    return 0 if shard is None else _video_extents(shard).get(path.relative_to(shard).as_posix(), (0, 0))[1]


def _shard_of(path: Path) -> Path | None:
    return next((parent for parent in path.parents if parent.suffix == ".tar" and parent.is_file()), None)


def _shards(source: str) -> list[Path]:
    if _ADDRESS.match(source):
        raise AnnotationError(f"{source}: shards are read from a local disk; download them first")
    if Path(source).is_dir():
        found = sorted(Path(source).glob("*.tar"))
    else:
        found = [Path(name) for name in webdataset_module().shardlists.expand_urls(source)]
    missing = [str(shard) for shard in found if not shard.is_file()]
    if missing or not found:
        raise AnnotationError(f"{missing[0] if missing else source}: no such shard; expected .tar files")
    return found


@cache
def _video_extents(shard: Path) -> dict[str, tuple[int, int]]:
    """Offset and size in bytes of every video of a shard; read once per process."""
    return {entry.video: entry.extent for entry in _entries(shard).values()}


def _shard_rows(shard: Path) -> Iterator[Annotation]:
    classes = shard.with_name(CLASSES)
    names = utf8_text(classes).splitlines() if classes.is_file() else []
    for key, entry in _entries(shard).items():
        if not entry.video:
            raise AnnotationError(f"{shard}, member {key}.{min(entry.label)}: a label without a video")
        if not entry.label:
            raise AnnotationError(f"{shard}, member {entry.video}: a video without a label ({key}.json or {key}.cls)")
        try:
            for row in _rows(entry.label, names):
                yield Annotation(shard / entry.video, *row)
        except AnnotationError as error:
            raise AnnotationError(f"{shard}, member {key}.{max(entry.label)}: {error}") from None


def _rows(
    label: dict[str, bytes], names: Sequence[str]
) -> Iterator[tuple[str, float | None, float | None, str | None, str | None]]:
    """Label, start, end, split and group."""
    if "json" not in label:
        yield _class_name(label["cls"], names), None, None, None, None
        return
    try:
        content = parse_json(label["json"])
    except ValueError as error:
        raise AnnotationError(f"not JSON ({error})") from None
    for row in content if isinstance(content, list) else [content]:
        if not isinstance(row, dict) or not isinstance(row.get("label"), str) or not row["label"]:
            if "cls" not in label or not isinstance(row, dict) or "label" in row:
                raise AnnotationError(f'expected {{"label": "..."}}, found {short_json(row)}')
            row = row | {"label": _class_name(label["cls"], names)}
        split = row.get("split")
        if split not in (None, *SPLITS):
            raise AnnotationError(f"split is {split!r}; it must be {', '.join(SPLITS)} or absent")
        start, end = ("" if row.get(name) is None else str(row[name]) for name in ("start", "end"))
        yield row["label"], *parse_interval(start, end), split, None if row.get("group") is None else str(row["group"])


def _class_name(content: bytes, names: Sequence[str]) -> str:
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise AnnotationError(f"expected a class, found {content[:40]!r}")
    if not names or not text.isdecimal():
        return text
    if int(text) >= len(names):
        raise AnnotationError(f"class {text} is not among the {len(names)} lines of {CLASSES}")
    return names[int(text)]


def _entries(shard: Path) -> dict[str, _Entry]:
    """By key, in the order of the shard; members that are neither video nor label are skipped."""
    split_name = webdataset_module().tariterators.base_plus_ext
    entries: dict[str, _Entry] = {}
    for member, tar in _members(shard):
        key, extension = split_name(member.name)
        if key is None:
            continue
        entry = entries.setdefault(key, _Entry())
        if f".{extension.lower()}" in VIDEO_SUFFIXES:
            if entry.video:
                raise AnnotationError(f"{shard}, member {member.name}: a second video for {entry.video}")
            entry.video, entry.extent = member.name, (member.offset_data, member.size)
        elif extension in _LABELS:
            if extension in entry.label:
                raise AnnotationError(f"{shard}, member {member.name}: is there twice")
            if member.size > _LONGEST_LABEL:
                raise AnnotationError(f"{shard}, member {member.name}: {member.size} bytes are no label")
            content = tar.extractfile(member)
            entry.label[extension] = content.read() if content else b""
    return {key: entry for key, entry in entries.items() if entry.video or entry.label}


def _members(shard: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Visible files of a tar, none of whose names leads out of it."""
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or it would keep all of them
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts or "\\" in member.name:
                    raise AnnotationError(f"{shard}, member {member.name}: the name leads out of the shard")
                if member.isdir() or name.name.startswith("."):
                    continue
                if not member.isreg() or member.issparse():
                    raise AnnotationError(f"{shard}, member {member.name}: a link or a device; expected plain files")
                yield member, tar
    except (OSError, tarfile.TarError) as error:
        raise AnnotationError(f"{shard}: cannot be read as an uncompressed tar file ({error})") from None


# --- writing


def write_shards(
    annotations: Sequence[Annotation], output: str | Path, *, per_shard: int = 1000, root: str | Path | None = None
) -> list[Path]:
    """Write videos and their labels as shards, whole or not at all: a new folder with `shard-000000.tar` and so on.

    Each video is written once, byte for byte, with all of its rows, in the order in which the videos come first.
    `classes.txt` lists the labels; `.cls` members hold their numbers, for programs that read those.

    Args:
        annotations: the rows; their videos are files.
        output: the folder, new or empty.
        per_shard: videos of a shard, at least 1.
        root: keys are the paths below this folder, without suffix; None: what all paths have in common.

    Returns:
        The shards.

    Raises:
        AnnotationError: a video that is missing, a folder of frames, two videos of one key, or a label not in UTF-8.
        VideoError: a video that is larger than what may be held in memory (`Limits.chunk_bytes`).
    """
    if per_shard < 1:
        raise AnnotationError(f"a shard holds at least 1 video, got {per_shard}")
    rows: dict[Path, list[Annotation]] = {}
    for row in annotations:
        rows.setdefault(row.path, []).append(row)
    keys = _keys(list(rows), root)
    classes = sorted({row.label for row in annotations})
    check_names(classes)
    videos = list(rows.items())
    output = Path(output)
    check_target(output)
    names = [f"shard-{number:06d}.tar" for number in range(-(-len(videos) // per_shard))]
    with whole_folder(output) as partial:
        for number, name in enumerate(names):
            part = videos[number * per_shard : (number + 1) * per_shard]
            write_shard(partial / name, [(keys[path], path, labels) for path, labels in part], classes)
        (partial / CLASSES).write_text("".join(f"{label}\n" for label in classes), encoding="utf-8")
    return [output / name for name in names]


def write_shard(target: Path, videos: Iterable[tuple[str, Path, Sequence[Annotation]]], classes: Sequence[str]) -> None:
    """Write one shard; equal videos give equal files.

    Args:
        target: the file, in place of which half of one may stand after an error.
        videos: key, file and rows of each.
        classes: every label.

    Raises:
        AnnotationError, VideoError: as of `write_shards`.
    """
    with webdataset_module().TarWriter(str(target), encoder=False, mtime=0.0, user="", group="") as shard:
        for key, path, rows in videos:
            shard.write(_content(key, path, rows, classes))


def _keys(paths: Sequence[Path], root: str | Path | None) -> dict[Path, str]:
    """A key for each video: its path without suffix, and without dots in its name, where a key would end."""
    if not paths:
        raise AnnotationError("no videos to write")
    shorten = relative_to(
        os.path.commonpath([os.path.abspath(path.parent) for path in paths]) if root is None else root
    )
    keys: dict[Path, str] = {}
    taken: dict[str, Path] = {}
    for path in paths:
        name = PurePosixPath(shorten(str(path)))
        if name.is_absolute():
            raise AnnotationError(f"{path}: does not lie below {root}; choose another root")
        key = str(name.with_name(name.stem.replace(".", "_")))
        if key in taken:
            raise AnnotationError(f"{path}: would have the key {key} in a shard, like {taken[key]}; rename one of them")
        keys[path] = key
        taken[key] = path
    return keys


def _content(key: str, path: Path, rows: Sequence[Annotation], classes: Sequence[str]) -> dict[str, Any]:
    """A video and its labels as the library's writer takes them."""
    if path.is_dir():
        raise AnnotationError(f"{path}: a folder of frames does not fit into a shard; make a video of it")
    suffix = path.suffix.lower()
    if suffix not in VIDEO_SUFFIXES:
        raise AnnotationError(f"{path}: no suffix of a video; known are {', '.join(sorted(VIDEO_SUFFIXES))}")
    try:
        source = video_source(path)
        if isinstance(source, Path):
            _check_size(source.stat().st_size, source)  # the library takes the whole of it
        video = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror or error})") from None
    fields = [{name: getattr(row, name) for name in ("label", "start", "end", "split", "group")} for row in rows]
    labels = [{name: value for name, value in row.items() if value is not None} for row in fields]
    text = json.dumps(labels if len(labels) > 1 else labels[0], ensure_ascii=False)
    number = str(classes.index(rows[0].label))
    return {"__key__": key, suffix[1:]: video, "json": text.encode(), "cls": number.encode()}


def webdataset_module() -> Any:
    """The library of the convention. Raises AnnotationError where it is not installed."""
    try:
        import webdataset
        import webdataset.shardlists
        import webdataset.tariterators
    except ImportError:
        raise AnnotationError('tar shards need webdataset: pip install "uniformerv2[data]"') from None
    return webdataset
