"""Videos to embed, out of whatever holds them; they need no labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from uniformerv2.data.annotations import Annotation
from uniformerv2.data.shards import is_shards
from uniformerv2.data.sources import read_annotations
from uniformerv2.data.split import Split, of_split
from uniformerv2.data.tables import PARQUET_SUFFIXES
from uniformerv2.errors import AnnotationError
from uniformerv2.video.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES


def find_videos(
    data: str | Path | Sequence[str | Path | Annotation], *, root: str | Path | None = None, split: Split = "all"
) -> list[Annotation]:
    """The videos of one source or of several.

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
    if is_shards(source) or path.suffix.lower() in {".csv", *PARQUET_SUFFIXES}:
        return read_annotations(source, root=root, split=split)
    if path.is_dir():
        if videos := [Annotation(video, "") for video in _videos_below(path)]:
            return videos
        raise AnnotationError(f"{path}: no video in this folder")
    if not path.exists():
        raise AnnotationError(f"{path}: no such video, folder or manifest")
    return [Annotation(path, "")]


def _videos_below(folder: Path) -> Iterator[Path]:
    children = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    videos = [child for child in children if child.suffix.lower() in VIDEO_SUFFIXES and child.is_file()]
    if not videos and any(child.suffix.lower() in IMAGE_SUFFIXES for child in children):
        yield folder
        return
    for child in children:
        if child.is_dir():
            yield from _videos_below(child)
        elif child in videos:
            yield child
