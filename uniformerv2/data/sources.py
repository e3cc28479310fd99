"""Annotations out of whatever holds them: videos, folders of them, manifests, shards; and manifests written."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from sys import intern

from uniformerv2.data.annotations import SPLITS, Annotation, Split, of_split, parse_interval
from uniformerv2.data.shards import is_member, is_shards, read_shards
from uniformerv2.data.tables import TABLE_SUFFIXES, read_rows, relative_to, write_table
from uniformerv2.errors import AnnotationError
from uniformerv2.video.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES

MANIFEST_COLUMNS: dict[str, type] = {"path": str, "label": str, "start": float, "end": float, "split": str}


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
    data: str | Path | Sequence[str | Path | Annotation],
    *,
    root: str | Path | None = None,
    split: Split = "all",
    must_exist: bool = True,
) -> list[Annotation]:
    """The videos of one source or of several, which need no labels.

    Args:
        data: a video file, a folder (every video below it, however deep; a folder of images is one video), a manifest
            (CSV or Parquet), tar shards, or annotations; or a list of these.
        root: what the paths of manifests are relative to; None: their own folders.
        split: which rows of manifests; see `of_split`.
        must_exist: whether a file that is not there is an error now, or one when it is read.

    Returns:
        At least one; labels and times as in manifests, otherwise without.

    Raises:
        AnnotationError: a source that is not there, or without videos.
    """
    sources = [data] if isinstance(data, str | Path) else data
    found = [row for source in sources for row in _videos_of(source, root, split, must_exist)]
    if not found:
        raise AnnotationError("no videos given")
    return of_split(found, split)


def _videos_of(
    source: str | Path | Annotation, root: str | Path | None, split: Split, must_exist: bool
) -> list[Annotation]:
    if isinstance(source, Annotation):
        return [source]
    path = Path(source)
    if is_shards(source) or path.suffix.lower() in TABLE_SUFFIXES:
        return read_annotations(source, root=root, split=split, must_exist=must_exist)
    if not path.exists() and must_exist:
        raise AnnotationError(f"{path}: no such video, folder or manifest")
    videos = [path] if not path.is_dir() or _holds_frames(path) else list(_videos_below(path, []))
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


def manifest_rows(manifest: Path, root: Path) -> Iterator[tuple[int, Annotation]]:
    """Rows of a manifest with their line numbers; the videos may be missing.

    Raises:
        AnnotationError: an invalid row; names the file and the line.
    """
    rows = read_rows(manifest)
    columns = _column_names(manifest, next(rows, (1, []))[1])
    places = [columns.index(name) if name in columns else None for name in MANIFEST_COLUMNS]
    paths: dict[str, Path] = {}  # rows of one file share its path, and rows of one class its label
    for line, cells in rows:
        try:
            values = _row_values(cells, len(columns), places)
            path = paths.get(values[0]) or paths.setdefault(values[0], root / values[0])
            annotation = _parse_row(path, *values)
        except AnnotationError as error:
            raise AnnotationError(f"{manifest}, line {line}: {error}") from None
        yield line, annotation


def _column_names(manifest: Path, cells: list[str]) -> list[str]:
    columns = [cell.strip() for cell in cells]
    missing = [column for column in ("path", "label") if column not in columns]
    if missing:
        found = ", ".join(columns) or "nothing"
        raise AnnotationError(
            f"{manifest}: line 1 must name the columns path,label[,start,end][,split] separated by commas; "
            f"{' and '.join(missing)} missing, found {found[:200]}"
        )
    return columns


def _row_values(cells: list[str], width: int, places: Sequence[int | None]) -> list[str]:
    if len(cells) > width:
        raise AnnotationError("more values than columns; put a path or label with a comma in double quotes")
    cells += [""] * (width - len(cells))
    return ["" if place is None else cells[place].strip() for place in places]


def _parse_row(path: Path, written: str, label: str, start: str, end: str, split: str) -> Annotation:
    for column, value in (("path", written), ("label", label)):
        if not value:
            raise AnnotationError(f"empty {column}")
    interval = parse_interval(start, end)
    part = split.lower() or None
    if part not in (None, *SPLITS):
        raise AnnotationError(f"split is {split!r}; it must be {', '.join(SPLITS)} or empty")
    return Annotation(path, intern(label), *interval, part)


def write_manifest(target: Path, annotations: Iterable[Annotation], *, root: str | Path | None = None) -> int:
    """Write a manifest, whole or not at all; a file that was there before is replaced.

    Args:
        target: a CSV file, or Parquet by the suffix .parquet or .pq.
        annotations: the rows; they may be a generator, of which only one row is held at a time.
        root: paths below this folder are written relative to it, others absolute; by default the manifest's own folder,
            which is also the default for reading.

    Returns:
        The number of rows.

    Raises:
        AnnotationError: a name that cannot be written in UTF-8; Parquet without pyarrow.
    """
    shorten = relative_to(target.parent if root is None else root)
    rows = ((shorten(str(row.path)), row.label, row.start, row.end, row.split) for row in annotations)
    return write_table(target, MANIFEST_COLUMNS, rows)
