"""Annotations as tables: manifests with a line of column names, lists of paths and class numbers."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from sys import intern

from uniformerv2.atomic import write_text
from uniformerv2.data.annotations import SPLIT_NAMES, SPLITS, Annotation, parse_interval
from uniformerv2.data.shards import is_member
from uniformerv2.data.tables import (
    PARQUET_SUFFIXES,
    csv_rows,
    read_rows,
    relative_to,
    text_lines,
    write_table,
)
from uniformerv2.errors import AnnotationError
from uniformerv2.text import normalised, parse_json

MANIFEST_COLUMNS: dict[str, type] = {"path": str, "label": str, "start": float, "end": float, "split": str}
MANIFEST_SUFFIXES = PARQUET_SUFFIXES | {".csv", ".tsv", ".txt", ".list", ".lst"}

# other names of columns, as they are compared: in lower case, "_" for spaces and hyphens
_SYNONYMS = {
    "path": (
        *("file", "filename", "file_name", "filepath", "file_path", "clip", "clip_path"),
        *("video", "video_path", "videopath", "video_name", "video_file"),
    ),
    "label": ("class", "category", "class_name", "label_name", "category_name", "labels"),
    "start": ("start_time", "time_start", "start_seconds", "start_sec", "begin"),
    "end": ("end_time", "time_end", "end_seconds", "end_sec", "stop"),
    "split": ("subset", "partition"),
    "group": (),
}
_MEANING = {name: column for column, names in _SYNONYMS.items() for name in (column, *names)}
_BOXES = {"x1", "y1", "x2", "y2"}

ROOT_FILE = "data.json"


@dataclass(frozen=True)
class Table:
    """A manifest or a list that was opened.

    Attributes:
        header: names of the columns as they are written; empty: a list, whose rows are path and class number.
        places: where the columns of a manifest are among the cells.
        delimiter: between two cells.
    """

    file: Path
    header: Sequence[str]
    places: Mapping[str, int]
    delimiter: str = ","

    @property
    def label_name(self) -> str:
        """Of the column of labels, as it is written; "" where there is none."""
        return self.header[self.places["label"]] if self.header and "label" in self.places else ""

    def cells(self) -> Iterator[tuple[int, list[str]]]:
        """Rows below the header as (line number from 1, cells). Raises AnnotationError."""
        if not self.header:
            yield from _listed_cells(self.file)
            return
        rows = _rows(self.file, self.delimiter)
        next(rows)
        yield from rows


def open_table(file: Path, *, labelled: bool = True, several_labels: bool = False) -> Table:
    """Find out what a table is, by its first line. One warning tells which columns have other names.

    Args:
        file: CSV with "," or ";" or tabs, Parquet, or a list: path, white space or a comma, class number.
        labelled: whether it needs labels; if not, a list may have paths alone.
        several_labels: whether `labels` is a name of its own, of a column with several.

    Raises:
        AnnotationError: no path or no label in its columns, or several columns that may be meant.
    """
    columnar = file.suffix.lower() in PARQUET_SUFFIXES
    wrong: AnnotationError | None = None
    header: list[str] = []
    for delimiter in "," if columnar else ",;\t":
        try:
            cells = next(_rows(file, delimiter), (1, []))[1]
        except AnnotationError as error:  # quotes that are none in a list
            wrong = wrong or error
            continue
        header = max(header, [cell.strip() for cell in cells], key=len)
        places = _places(file, header)
        if "path" in places and ("label" in places or not labelled):
            _tell_synonyms(file, header, places, known={*places, *(["labels"] if several_labels else [])})
            return Table(file, header, places, delimiter)
    first = "" if columnar else next((text for _, text in text_lines(file)), "")
    if re.search(r"[\s,;]\d+$", first) or (first and not labelled):
        return Table(file, [], {"path": 0, "label": 1})
    if wrong:
        raise wrong
    missing = [column for column in ("path", "label") if column not in _places(file, header)]
    raise AnnotationError(
        f"{file}: line 1 must name the columns path,label[,start,end][,split][,group] separated by commas; "
        f"{' and '.join(missing)} missing, found {', '.join(header)[:200] or 'nothing'}"
    )


def _rows(file: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    return read_rows(file) if file.suffix.lower() in PARQUET_SUFFIXES else csv_rows(file, delimiter=delimiter)


def _places(file: Path, header: Sequence[str]) -> dict[str, int]:
    """Where each column of a manifest is; the names that we write go before all others."""
    meant: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(header):
        column = _MEANING.get(re.sub(r"[\s_-]+", "_", normalised(name).casefold()))
        if column:
            meant[column].append(place)
    if {*header} >= _BOXES:
        raise AnnotationError(f"{file}: its rows are boxes in frames ({', '.join(header)[:100]}), not videos")
    places = {column: header.index(column) if column in header else of[0] for column, of in meant.items()}
    for column, of in meant.items():
        if column not in header and len(of) > 1:
            names = " and ".join(repr(header[place]) for place in of)
            raise AnnotationError(f"{file}: columns {names} may both be the {column}; call one of them {column!r}")
    return places


def _tell_synonyms(file: Path, header: Sequence[str], places: Mapping[str, int], known: Collection[str]) -> None:
    other = [f"{header[place]!r} as {column}" for column, place in places.items() if header[place] not in known]
    if other:
        warnings.warn(f"{file}: columns are read under other names: {', '.join(other)}", stacklevel=1)


def _listed_cells(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Path and class number of each line of a list; "" for a number that is not there."""
    for line, text in text_lines(file):
        match = re.fullmatch(r"(.+?)[\s,;]+(\d+)", text)
        path, number = match.groups() if match else (text, "")
        yield line, [path.removeprefix('"').removesuffix('"'), number]


# --- rows


def manifest_rows(
    manifest: Path, root: Path, *, classes: Sequence[str] = (), labelled: bool = True, several_labels: bool = False
) -> Iterator[tuple[int, Annotation]]:
    """Rows of a manifest or a list with their line numbers; the videos may be missing.

    Args:
        manifest: the file.
        root: what its paths are relative to.
        classes: names of the classes that numbers stand for, from 0.
        labelled: whether rows need labels; if not, they may have "".
        several_labels: whether a column `labels` has several, separated by ";" or "|"; then a row may have none, too.

    Raises:
        AnnotationError: an invalid row; names the file and the line.
    """
    table = open_table(manifest, labelled=labelled, several_labels=several_labels or not labelled)
    separated = several_labels and normalised(table.label_name).casefold() == "labels"
    if not table.header and labelled and not classes:
        raise AnnotationError(
            f"{manifest}: a list of paths and class numbers has no names of classes: give them with --classes FILE "
            "(a name a line, in the order of the numbers)"
        )
    places = [table.places.get(name) for name in (*MANIFEST_COLUMNS, "group")]
    paths: dict[str, Path] = {}  # rows of one file share its path, and rows of one class its label
    known = {str(number): name for number, name in enumerate(classes)} | {name: name for name in classes}
    clock: set[str] = set()
    for line, cells in table.cells():
        try:
            written, label, start, end, split, group = _row_values(cells, len(table.header) or 2, places)
            if not label and labelled and not several_labels:
                raise AnnotationError("empty label")
            path = paths.get(written) or paths.setdefault(written, root / written)
            if table.delimiter == ";":
                start, end = start.replace(",", "."), end.replace(",", ".")
            clock.update(time for time in (start, end) if ":" in time)
            interval = parse_interval(_seconds(start), _seconds(end))
            labels = re.split(r"[;|]", label) if separated else [label]
            named = [_class_name(text, known) if known else text for text in map(str.strip, labels) if text]
            label, *others = map(intern, dict.fromkeys(named) or [""])
            source = normalised(group) or None
            annotation = Annotation(path, label, *interval, _split(split), source, tuple(others))
        except AnnotationError as error:
            raise AnnotationError(f"{manifest}, line {line}: {error}") from None
        yield line, annotation
    if clock:
        warnings.warn(f"{manifest}: times such as {min(clock)!r} are read as [hours:]minutes:seconds", stacklevel=1)


def _row_values(cells: list[str], width: int, places: Sequence[int | None]) -> list[str]:
    if len(cells) > width:
        raise AnnotationError("more values than columns; put a path or label with a comma in double quotes")
    cells += [""] * (width - len(cells))
    written, *values = ["" if place is None else cells[place] for place in places]
    if not written.strip():
        raise AnnotationError("empty path")
    return [written, *(value.strip() for value in values)]


def _seconds(text: str) -> str:
    """A time as [hours:]minutes:seconds in seconds; any other text as it is."""
    clock = re.fullmatch(r"(?:(\d+):)?([0-5]?\d):([0-5]?\d(?:\.\d*)?)", text)
    return str(int(clock[1] or 0) * 3600 + int(clock[2]) * 60 + float(clock[3])) if clock else text


def _split(text: str) -> str | None:
    split = SPLIT_NAMES.get(text.casefold())
    if text and not split:
        raise AnnotationError(f"split is {text!r}; it must be {', '.join(SPLITS)} or empty")
    return split


def _class_name(label: str, known: Mapping[str, str]) -> str:
    name = known.get(normalised(label)) or known.get(label.lstrip("0"))
    if name is None:
        raise AnnotationError(f"label {label!r} is neither a name in the list of classes nor a number of one, from 0")
    return name


def read_classes(classes: str | Path | Sequence[str]) -> list[str]:
    """Names of classes in the order of their numbers, from a file with a name a line. Raises AnnotationError."""
    lines = [text for _, text in text_lines(Path(classes))] if isinstance(classes, str | Path) else classes
    names = [normalised(line) for line in lines]
    where = classes if isinstance(classes, str | Path) else "classes"
    if not names:
        raise AnnotationError(f"{where}: no names of classes in it; expected a name a line")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise AnnotationError(f"{where}: class {twice[0]!r} comes twice")
    return names


# --- paths as people write them


class Spellings:
    """Finds files whose names are written otherwise than they are stored.

    With backslashes, in another form of Unicode (macOS decomposes names), or with white space around them.
    """

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, list[str]]] = {}

    def find(self, path: Path) -> Path | None:
        """The file that is meant; None where there is none, or several."""
        found = Path(path.anchor)
        for part in Path(str(path).replace("\\", "/")).parts[len(found.parts) :]:
            if not (found / part).exists():
                names = self._listed(found).get(normalised(part), [])
                if len(names) != 1:
                    return None
                part = names[0]
            found /= part
        return found

    def _listed(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._names:
            names = self._names[folder] = defaultdict(list)
            for child in folder.iterdir() if folder.is_dir() else ():
                names[normalised(child.name)].append(child.name)
        return self._names[folder]


def find_respelled(manifest: Path, rows: Sequence[Annotation]) -> list[Annotation]:
    """The rows with the paths of files that are there under another spelling. Tells of them."""
    spellings = Spellings()
    missing = [path for path in {row.path: None for row in rows} if not os.path.exists(path) and not is_member(path)]
    found = {path: stored for path in missing if (stored := spellings.find(path))}
    if found:
        path, stored = next(iter(found.items()))
        warnings.warn(
            f"{manifest}: {len(found)} path(s) are spelled otherwise than their files (backslashes, white space or the "
            f"form of Unicode), such as {str(path)!r} for {str(stored)!r}",
            stacklevel=1,
        )
    return [replace(row, path=found[row.path]) if row.path in found else row for row in rows]


# --- the root of a run's manifests


def note_root(root: Path, manifests: Collection[Path]) -> None:
    """Write beside manifests which folder their paths are relative to, wherever that is."""
    folder = next(iter(manifests)).parent
    note: dict[str, object] = {"root": str(root), "manifests": sorted(manifest.name for manifest in manifests)}
    with suppress(ValueError):  # on another drive
        note["from_here"] = os.path.relpath(root, folder)  # for a folder that is moved with its videos
    write_text(folder / ROOT_FILE, json.dumps(note, indent=2) + "\n")


def manifest_root(manifest: Path) -> Path:
    """The folder that the paths of a manifest are relative to: what the file beside it says, else its own."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        note = parse_json(manifest.with_name(ROOT_FILE).read_text(encoding="utf-8"))
        if manifest.name in note["manifests"]:
            places = [Path(note["root"]), manifest.parent / note.get("from_here", note["root"])]
            return next((place for place in places if place.is_dir()), places[0])
    return manifest.parent


# --- writing


def write_manifest(target: Path, annotations: Iterable[Annotation], *, root: str | Path | None = None) -> int:
    """Write a manifest, whole or not at all; a file that was there before is replaced.

    Args:
        target: a CSV file, or Parquet by the suffix .parquet or .pq.
        annotations: the rows; they may be a generator, of which only one row is held at a time. One with several
            labels is written as a row for each.
        root: paths below this folder are written relative to it, others absolute; by default the manifest's own folder,
            which is also the default for reading.

    Returns:
        The number of rows.

    Raises:
        AnnotationError: a name that cannot be written in UTF-8; Parquet without pyarrow.
    """
    shorten = relative_to(target.parent if root is None else root)
    rows = (
        (shorten(str(row.path)), label, row.start, row.end, row.split)
        for row in annotations
        for label in (row.label, *row.other_labels)
    )
    return write_table(target, MANIFEST_COLUMNS, rows, exact=True)


def copy_manifest(source: Path | None, target: Path, rows: Sequence[Annotation | None]) -> int:
    """Write the rows of a manifest with other values, and all of its other columns cell by cell.

    Args:
        source: the manifest; None, or a list: the columns are those that the rows need.
        target: a CSV file, whose folder paths are relative to.
        rows: the rows of the manifest in order, with their new values; None: left out.

    Returns:
        The number of rows that were written.

    Raises:
        AnnotationError: a name that is not UTF-8, or a manifest that names a column twice.
    """
    shorten = relative_to(target.parent)
    table = open_table(source) if source else None
    columns = (*MANIFEST_COLUMNS, "group")
    kept = [row for row in rows if row is not None]
    if table is None or not table.header:
        needed = [name for name in columns if name in ("path", "label") or any(getattr(row, name) for row in kept)]
        cells = ([shorten(str(row.path)) if name == "path" else getattr(row, name) for name in needed] for row in kept)
        return write_table(target, dict.fromkeys(needed, str), cells, exact=True)
    if len(set(table.header)) < len(table.header):
        raise AnnotationError(f"{source}: line 1 names a column twice: {', '.join(table.header)}")

    def copied(cells: list[str], row: Annotation) -> list[object]:
        whole: list[object] = [*cells, *[""] * (len(table.header) - len(cells))]
        for column, place in table.places.items():
            whole[place] = shorten(str(row.path)) if column == "path" else getattr(row, column)
        return whole

    of_rows = (copied(cells, row) for (_, cells), row in zip(table.cells(), rows, strict=True) if row is not None)
    return write_table(target, dict.fromkeys(table.header, str), of_rows, exact=True)
