"""Manifests: annotations as a table. `sources.read_annotations` says what the columns mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from sys import intern

from uniformerv2.data.annotations import SPLITS, Annotation, parse_interval
from uniformerv2.data.tables import read_rows, relative_to, write_table
from uniformerv2.errors import AnnotationError

MANIFEST_COLUMNS: dict[str, type] = {"path": str, "label": str, "start": float, "end": float, "split": str}


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
