"""Annotations out of whatever holds them: videos, folders of them, manifests, lists, shards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from uniformerv2.data.annotations import Annotation, Split, check_labels, join_labels, of_split
from uniformerv2.data.content import same_files
from uniformerv2.data.folders import holds_frames, list_folder, read_class_folders
from uniformerv2.data.manifest import MANIFEST_SUFFIXES, find_respelled, manifest_root, manifest_rows, read_classes
from uniformerv2.data.shards import is_member, is_shards, read_shards
from uniformerv2.errors import AnnotationError

Classes = str | Path | Sequence[str]


def read_annotations(
    data: str | Path | Sequence[Annotation],
    *,
    root: str | Path | None = None,
    classes: Classes | None = None,
    split: Split = "all",
    must_exist: bool = True,
    several_labels: bool = False,
) -> list[Annotation]:
    """The annotations of a folder, a manifest or a list.

    A folder has one folder per class:

        actions/wave/anna.mp4           a video file, known by its suffix (`VIDEO_SUFFIXES`)
        actions/wave/office/ben.avi     deeper is fine
        actions/jump/carl/0001.jpg      a folder of images is one video

    Hidden files are skipped; files that are neither are ignored, with one warning that counts them. Where all folders
    at the top are called like splits (`SPLIT_NAMES`) and hold folders of classes, they are splits; a warning says so.

    A manifest is a CSV file (UTF-8) or a Parquet file. Its first line names the columns, in any order:

        path,label,start,end,split,group
        wave/anna.mp4,wave,1.5,4,train,anna

    `path` is relative to `root`; `start` and `end` are seconds or [hours:]minutes:seconds and, like `split` (train, val
    or test) and `group` (the source of the video, see `split_annotations`), may be left out or empty. Other columns are
    ignored. A video may have several rows. A list has no such line: `wave/anna.mp4 0`, with the number of a class.

    Tar shards in the WebDataset convention carry their labels: see `shards.py`.

    Args:
        data: a folder, a manifest, a list, a shard (.tar), a pattern of shards or a folder of them; or annotations.
        root: what the paths of a manifest are relative to; None: its own folder, or that which a run has noted.
        classes: what the numbers of classes in a list or a manifest stand for: names, or a file with a name a line.
        split: which rows; see `of_split`.
        must_exist: whether a manifest may only name videos that are there, under this or another spelling.
        several_labels: whether a video may have several labels: in several rows, or in a column `labels`, a;b or a|b.

    Returns:
        At least one annotation, in the order of the manifest or sorted by class and path.

    Raises:
        AnnotationError: nothing there, an invalid row, or two rows that give one video different labels; names the
            file and the line (row i of Parquet is line i + 1).
    """
    if isinstance(data, str | Path) and not is_shards(data) and not Path(data).is_dir():
        options: Any = {"must_exist": must_exist, "several_labels": several_labels}
        return of_split(_read_manifest(Path(data), root, classes, **options), split)
    if classes is not None:
        raise AnnotationError(f"{data}: classes name the numbers in a list or a manifest, and this is neither")
    files: dict[Path, Path] = {}
    if not isinstance(data, str | Path):
        rows = list(data)
    elif is_shards(data):
        rows = read_shards(data)
    else:
        rows, linked = read_class_folders(Path(data))
        files = {row.path: row.path.resolve() for row in rows} if linked else {}
    return of_split(_checked(rows, lambda number: str(rows[number].path), files, several_labels), split)


def _checked(
    rows: list[Annotation], name: Callable[[int], str], files: Mapping[Path, Path], several_labels: bool
) -> list[Annotation]:
    """The rows, joined where a video may have several labels. Raises AnnotationError where they contradict."""
    if not several_labels:
        check_labels(rows, name, files)
        return rows
    joined = join_labels(rows, name, files)
    check_labels(joined, lambda number: str(joined[number].path), files)
    return joined


def _read_manifest(
    manifest: Path,
    root: str | Path | None,
    classes: Classes | None,
    *,
    must_exist: bool = True,
    labelled: bool = True,
    several_labels: bool = False,
) -> list[Annotation]:
    if not manifest.exists():
        raise AnnotationError(f"{manifest}: no such folder or manifest")
    folder = manifest_root(manifest) if root is None else Path(root)
    names = () if classes is None else read_classes(classes)
    lines, rows = [], []
    found = manifest_rows(manifest, folder, classes=names, labelled=labelled, several_labels=several_labels)
    for line, row in found:
        lines.append(line)
        rows.append(row)
    if not rows:
        raise AnnotationError(f"{manifest}: no rows below the line of column names")
    files: dict[Path, Path] = {}
    rows = find_respelled(manifest, rows)
    if must_exist:
        paths = dict.fromkeys(row.path for row in rows)
        _check_exist(manifest, paths, folder)
        files = same_files(paths)
    if not labelled:
        return rows
    return _checked(
        rows, lambda number: f"{manifest}, line {lines[number]}: {rows[number].path}", files, several_labels
    )


def _check_exist(manifest: Path, paths: Iterable[Path], root: Path) -> None:
    missing = [str(path) for path in paths if not path.exists() and not is_member(path)]
    if missing:
        more = ", ..." if len(missing) > 3 else ""
        raise AnnotationError(
            f"{manifest}: {len(missing)} of its videos do not exist: {', '.join(missing[:3])}{more}; "
            f"paths are relative to {root}, unless --root FOLDER names another folder"
        )


def find_videos(
    data: str | Path | Sequence[str | Path | Annotation],
    *,
    root: str | Path | None = None,
    classes: Classes | None = None,
    split: Split = "all",
    must_exist: bool = True,
) -> list[Annotation]:
    """The videos of one source or of several, which need no labels.

    Args:
        data: a video file, a folder (every video below it, however deep; a folder of images is one video), a manifest
            or a list with or without labels, tar shards, or annotations; or a list of these.
        root, classes: as of `read_annotations`.
        split: which rows of manifests; see `of_split`.
        must_exist: whether a file that is not there is an error now, or one when it is read.

    Returns:
        At least one; labels and times as in manifests, otherwise without.

    Raises:
        AnnotationError: a source that is not there, or without videos.
    """
    sources = [data] if isinstance(data, str | Path) else data
    found = [row for source in sources for row in _videos_of(source, root, classes, split, must_exist)]
    if not found:
        raise AnnotationError("no videos given")
    return of_split(found, split)


def _videos_of(
    source: str | Path | Annotation,
    root: str | Path | None,
    classes: Classes | None,
    split: Split,
    must_exist: bool,
) -> list[Annotation]:
    if isinstance(source, Annotation):
        return [source]
    path = Path(source)
    if is_shards(source):
        return read_annotations(source, split=split)
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        return of_split(_read_manifest(path, root, classes, must_exist=must_exist, labelled=False), split)
    if not path.exists() and must_exist:
        raise AnnotationError(f"{path}: no such video, folder or manifest")
    if not path.is_dir() or holds_frames(path):
        return [Annotation(path, "")]
    videos = sorted(video.split("/") for video in list_folder(path).videos)
    if not videos:
        raise AnnotationError(f"{path}: no video in this folder")
    return [Annotation(path.joinpath(*video), "") for video in videos]


def data_root(data: str | Path | Sequence[Annotation], rows: Sequence[Annotation], root: str | Path | None) -> Path:
    """The folder that the paths of data are said to be relative to, absolute.

    Args:
        data, root: as of `read_annotations`.
        rows: what was read.

    Returns:
        The folder or the root of the manifest if all videos lie below it, else the deepest folder that has them all.
    """
    folder: str | Path | None = root
    if isinstance(data, str | Path) and (root is None or Path(data).is_dir()):
        folder = data if Path(data).is_dir() else manifest_root(Path(data))
    if folder is not None and all(_is_below(row.path, folder) for row in rows):
        return Path(os.path.abspath(folder))
    return Path(os.path.commonpath([os.path.abspath(row.path.parent) for row in rows]))


def _is_below(path: Path, folder: str | Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))
