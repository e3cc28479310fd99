"""Tables in CSV and Parquet files: read with line numbers, written whole or not at all."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from uniformerv2.atomic import whole_file
from uniformerv2.errors import AnnotationError, RecipeError
from uniformerv2.text import utf8

PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})
TABLE_SUFFIXES = PARQUET_SUFFIXES | {".csv"}

_FRAGILE = re.compile(r"^\s|\s$|\r")
_BATCH = 65_536  # rows that are held while Parquet is written


# --- reading


def read_rows(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV or Parquet file, the line of column names first, as (line number from 1, cells).

    Of Parquet, the cells are what CSV would hold: "" for null, and row i is called line i + 1. Columns of lists are
    left out.

    Raises:
        AnnotationError: the file is no such table, not in UTF-8, or has a quote that never closes.
    """
    return _parquet_rows(table) if table.suffix.lower() in PARQUET_SUFFIXES else csv_rows(table)


def csv_rows(table: Path, *, delimiter: str = ",", quotes: bool = True) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV file in UTF-8, with or without a byte order mark, empty lines left out.

    Args:
        table: the file.
        delimiter: between two cells.
        quotes: double quotes keep a cell together; if not, they are characters like all others.

    Returns:
        (number of the line, from 1, where the row ends; cells).

    Raises:
        AnnotationError: names the line.
    """
    reader = None
    try:
        with _readable(table), table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(
                file,
                delimiter=delimiter,
                quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
                skipinitialspace=True,
                strict=quotes,
            )
            for row in reader:
                if row:
                    yield reader.line_num, row
    except csv.Error as error:
        line = reader.line_num if reader else 1
        raise AnnotationError(
            f"{table}, line {line}: cannot be read as CSV: {error}; check its double quotes"
        ) from None


def text_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, stripped, with their numbers from 1. Raises as `csv_rows` does."""
    with _readable(file), file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line := line.strip():
                yield number, line


def utf8_text(file: Path) -> str:
    """The whole text of a file. Raises as `csv_rows` does."""
    with _readable(file):
        return file.read_text(encoding="utf-8-sig")


def place(file: str | Path, line: int) -> str:
    """Where a row stands, for a message: JSON has entries, everything else lines."""
    return f"{file}, {'entry' if Path(file).suffix.lower() == '.json' else 'line'} {line}"


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Errors of reading a text file as those of annotations."""
    try:
        yield
    except UnicodeDecodeError:
        raise AnnotationError(_not_utf8(file)) from None
    except OSError as error:
        raise AnnotationError(f"{file}: cannot be read: {error.strerror or error}") from None


def _not_utf8(file: Path) -> str:
    """The error message. Files are decoded in large blocks, so the line is searched for only now."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                found = f"byte 0x{line[error.start]:02x} at position {error.start + 1}"
                return f"{file}, line {number}: {found} is not UTF-8; save the file in UTF-8"
    return f"{file}: not UTF-8; save the file in UTF-8"


def _parquet_rows(table: Path) -> Iterator[tuple[int, list[str]]]:
    pyarrow, parquet = parquet_modules()
    try:
        file = parquet.ParquetFile(table.open("rb"))  # the library takes no path that is not UTF-8
        names = [column.name for column in file.schema_arrow if not pyarrow.types.is_nested(column.type)]
        yield 1, names
        batches = (
            [column.to_pylist() for column in batch.columns] for batch in file.iter_batches(_BATCH, columns=names)
        )
        rows = chain.from_iterable(zip(*columns, strict=True) for columns in batches)
        for line, cells in enumerate(rows, start=2):
            yield line, ["" if cell is None else str(cell) for cell in cells]
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise AnnotationError(f"{table}: cannot be read as Parquet: {reason}") from None


def parquet_modules(other: str = ".csv") -> tuple[Any, Any]:
    """pyarrow and its `parquet`. Raises AnnotationError, with another suffix to use, where they are not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise AnnotationError(f'Parquet files need pyarrow: pip install "uniformerv2[data]"; or use {other}') from None
    return pyarrow, parquet


# --- writing


def write_table(
    target: Path,
    columns: Mapping[str, type],
    rows: Iterable[Sequence[object]],
    *,
    metadata: Mapping[str, str] | None = None,
    exact: bool = False,
) -> int:
    """Write rows under column names, whole or not at all, as CSV in UTF-8 or as Parquet; None becomes an empty cell.

    Args:
        target: the file; the suffixes .parquet and .pq ask for Parquet.
        columns: name and type (str, float or int; for Parquet also list, of float32) of each.
        rows: their cells, in that order; may be a generator.
        metadata: texts that Parquet keeps beside the table.
        exact: whether a text that is not UTF-8, such as the name of a file, is an error, since it would not be read
            back; else it is written with escapes (`text.utf8`).

    Returns:
        The number of rows.

    Raises:
        AnnotationError: a name that is not UTF-8; Parquet without pyarrow; whatever `rows` raises. The
            target is then as it was before.
    """
    check_target(target)
    with whole_file(target) as partial:
        write = _write_parquet if target.suffix.lower() in PARQUET_SUFFIXES else _write_csv
        try:
            return write(partial, columns, rows if exact else map(_escaped, rows), metadata or {})
        except UnicodeEncodeError as error:
            name = ascii(error.object[max(0, error.start - 100) : error.start + 100])
            raise AnnotationError(f"{target}: {name} cannot be written in UTF-8; rename that file") from None


def check_names(names: Iterable[str]) -> None:
    """Raises AnnotationError for a path or label that is not UTF-8, so that no manifest can hold it."""
    for name in names:
        if utf8(name) != name:
            raise AnnotationError(f"{utf8(name)}: this name is not UTF-8, and no manifest can hold it; rename it")


def _escaped(row: Sequence[object]) -> list[object]:
    return [utf8(cell) if isinstance(cell, str) else cell for cell in row]


def ranked_columns(places: int) -> dict[str, type]:
    """Columns for so many of the most likely classes: label1, score1, label2, ..."""
    pair = {"label": str, "score": float}
    return {f"{name}{place}": kind for place in range(1, places + 1) for name, kind in pair.items()}


def check_target(target: Path) -> None:
    """Check where a result will be written, before much work is done.

    Raises:
        AnnotationError: there is no folder to write to, or it is itself a folder that is not empty.
    """
    if not target.absolute().parent.is_dir():
        raise AnnotationError(f"{target}: there is no folder {target.parent} to write to")
    if target.is_dir() and any(target.iterdir()):
        raise AnnotationError(f"{target}: is there already; give a new or an empty folder")


def check_suffix(target: Path, suffixes: Iterable[str]) -> None:
    """Raises RecipeError for a result file of another suffix."""
    if target.suffix.lower() not in suffixes:
        raise RecipeError(f"{target}: this is written to {', '.join(sorted(suffixes))}; choose one of these suffixes")


def _write_csv(
    target: Path, columns: Mapping[str, type], rows: Iterable[Sequence[object]], metadata: Mapping[str, str]
) -> int:
    with target.open("w", encoding="utf-8", newline="") as file:
        write = csv_writer(file)
        write(tuple(columns))
        count = 0
        for row in rows:
            write(row)
            count += 1
    return count


def csv_writer(file: TextIO) -> Callable[[Sequence[object]], object]:
    """A function that writes a row of cells as CSV, so that `csv_rows` reads the same.

    Texts with white space around them, or with a lone carriage return, are quoted, which the csv module leaves out.
    """
    plain = csv.writer(file, lineterminator="\n")
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)

    def write(row: Sequence[object]) -> None:
        fragile = any(isinstance(cell, str) and _FRAGILE.search(cell) for cell in row)
        (quoted if fragile else plain).writerow(row)

    return write


def _write_parquet(
    target: Path, columns: Mapping[str, type], rows: Iterable[Sequence[object]], metadata: Mapping[str, str]
) -> int:
    pyarrow, parquet = parquet_modules()
    kinds = {str: pyarrow.string(), float: pyarrow.float64(), int: pyarrow.int64()}
    kinds[list] = pyarrow.list_(pyarrow.float32())
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in columns.items()], metadata)
    count = 0
    rows = iter(rows)
    with target.open("wb") as file, parquet.ParquetWriter(file, schema) as writer:
        while batch := list(islice(rows, _BATCH)):
            cells = zip(*batch, strict=True)
            arrays = [pyarrow.array(column, kind) for column, kind in zip(cells, schema.types, strict=True)]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
            count += len(batch)
    return count


def relative_to(folder: str | Path) -> Callable[[str], str]:
    """A function that makes the paths below a folder relative to it, with "/", and all others absolute."""
    prefix = os.path.join(os.path.abspath(folder), "")

    def shorten(path: str) -> str:
        path = os.path.abspath(path)
        return path.removeprefix(prefix).replace(os.sep, "/")

    return shorten
