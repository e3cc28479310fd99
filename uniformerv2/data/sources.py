"""Annotations out of whatever holds them: videos, folders of them, manifests, shards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from uniformerv2.data.annotations import Annotation
from uniformerv2.data.manifest import manifest_rows
from uniformerv2.data.shards import is_member, is_shards, read_shards
from uniformerv2.data.split import Split, of_split
from uniformerv2.data.tables import TABLE_SUFFIXES
from uniformerv2.errors import AnnotationError
from uniformerv2.video.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES


def read_annotations(
    data: str | Path | Sequence[Annotation],
    *,
    root: str | Path | None = None,
    split: Split = "all",
    must_exist: bool = True,
) -> list[Annotation]:
    """The annotations of a folder or a manifest.

    A folder has one folder per class:

        actions/wave/anna.mp4           a video file, known by its suffix (`VIDEO_SUFFIXES`)
        actions/wave/office/ben.avi     deeper is fine
        actions/jump/carl/0001.jpg      a folder of images is one video

    Hidden files are skipped; files that are neither are ignored, with one warning that counts them.

    A manifest is a CSV file (UTF-8) or a Parquet file. Its first line names the columns, in any order:

        path,label,start,end,split
        wave/anna.mp4,wave,1.5,4,train

    `path` is relative to `root`; `start` and `end` are seconds and, like `split` (train, val or test),
    may be left out or empty. Other columns are ignored. A video may have several rows.

    Tar shards in the WebDataset convention carry their labels: see `shards.py`.

    Args:
        data: the folder, the manifest, a shard (.tar), a pattern of shards or a folder of them; or annotations.
        root: what the paths of a manifest are relative to; by default the manifest's own folder.
        split: which rows; see `of_split`.
        must_exist: whether a manifest may only name videos that are there.

    Returns:
        At least one annotation, in the order of the manifest or sorted by class and path.

    Raises:
        AnnotationError: nothing there, or an invalid row; names the file and the line (row i of Parquet is
            line i + 1).
    """
    rows = _read(data, root, must_exist) if isinstance(data, str | Path) else list(data)
    return of_split(rows, split)


def _read(source: str | Path, root: str | Path | None, must_exist: bool) -> list[Annotation]:
    if is_shards(source):
        return read_shards(source)
    source = Path(source)
    if source.is_dir():
        return _read_folder(source)
    if not source.exists():
        raise AnnotationError(f"{source}: no such folder or manifest")
    return _read_manifest(source, source.parent if root is None else Path(root), must_exist)


def _read_folder(folder: Path) -> list[Annotation]:
    annotations: list[Annotation] = []
    ignored: list[Path] = []
    classes = [child for child in _visible(folder) if child.is_dir()]
    if not classes:
        raise AnnotationError(f"{folder}: no class folders in it; expected {folder}/CLASS/VIDEO")
    for class_folder in classes:
        videos = list(_videos_below(class_folder, ignored))
        if not videos:
            raise AnnotationError(f"{class_folder}: no video in this class folder; add some or remove the folder")
        annotations += [Annotation(video, class_folder.name) for video in videos]
    if ignored:
        warnings.warn(
            f"{folder}: ignored {len(ignored)} file(s) that are no videos, such as {ignored[0]}", stacklevel=4
        )
    return annotations


def find_videos(
    data: str | Path | Sequence[str | Path | Annotation], *, root: str | Path | None = None, split: Split = "all"
) -> list[Annotation]:
    """The videos of one source or of several, which need no labels.

    Args:
        data: a video file, a folder (every video below it, however deep; a folder of images is one video), a manifest
            (CSV or Parquet), tar shards, or annotations; or a list of these.
        root: what the paths of manifests are relative to; None: their own folders.
        split: which rows of manifests; see `of_split`.

    Returns:
        At least one; labels and times as in manifests, otherwise without.

    Raises:
        AnnotationError: a source that is not there, or without videos.
    """
    sources = [data] if isinstance(data, str | Path) else data
    found = [row for source in sources for row in _videos_of(source, root, split)]
    if not found:
        raise AnnotationError("no videos given")
    return of_split(found, split)


def _videos_of(source: str | Path | Annotation, root: str | Path | None, split: Split) -> list[Annotation]:
    if isinstance(source, Annotation):
        return [source]
    path = Path(source)
    if is_shards(source) or path.suffix.lower() in TABLE_SUFFIXES:
        return read_annotations(source, root=root, split=split)
    if not path.exists():
        raise AnnotationError(f"{path}: no such video, folder or manifest")
    videos = [path] if path.is_file() or _holds_frames(path) else list(_videos_below(path, []))
    if not videos:
        raise AnnotationError(f"{path}: no video in this folder")
    return [Annotation(video, "") for video in videos]


def _visible(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if not child.name.startswith("."))


def _videos_below(folder: Path, ignored: list[Path]) -> Iterator[Path]:
    """Video files and folders of frames, sorted; `ignored` receives the files that are neither."""
    for child in _visible(folder):
        if child.is_dir() and _holds_frames(child):
            yield child
        elif child.is_dir():
            yield from _videos_below(child, ignored)
        elif child.suffix.lower() in VIDEO_SUFFIXES:
            yield child
        else:
            ignored.append(child)


def _holds_frames(folder: Path) -> bool:
    suffixes = {child.suffix.lower() for child in _visible(folder)}
    return not suffixes.isdisjoint(IMAGE_SUFFIXES) and suffixes.isdisjoint(VIDEO_SUFFIXES)


def _read_manifest(manifest: Path, root: Path, must_exist: bool) -> list[Annotation]:
    annotations = [annotation for _, annotation in manifest_rows(manifest, root)]
    if not annotations:
        raise AnnotationError(f"{manifest}: no rows below the line of column names")
    paths = dict.fromkeys(annotation.path for annotation in annotations) if must_exist else ()
    missing = [str(path) for path in paths if not path.exists() and not is_member(path)]
    if missing:
        more = ", ..." if len(missing) > 3 else ""
        raise AnnotationError(
            f"{manifest}: {len(missing)} of its videos do not exist: {', '.join(missing[:3])}{more}; "
            f"paths are relative to {root}"
        )
    return annotations
