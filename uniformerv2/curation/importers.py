"""Published annotations and a folder of videos -> a manifest, and a count of every row that was left out."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from uniformerv2.atomic import whole_file
from uniformerv2.curation.published import (
    DATASETS,
    PublishedDataset,
    PublishedRow,
    action_names,
    dataset_name,
    official_rows,
)
from uniformerv2.curation.video_index import VideoIndex
from uniformerv2.data.manifest import MANIFEST_COLUMNS, write_manifest
from uniformerv2.data.sources import read_annotations
from uniformerv2.data.tables import check_target, csv_writer, relative_to, write_table
from uniformerv2.errors import AnnotationError

if TYPE_CHECKING:
    from uniformerv2.weights.labels import ClassOrder

NO_FILE = "no such file"
SEVERAL_FILES = "several files of that name"
NO_LABEL = "no label"
OTHER_SPLIT = "of another split"
REPEATED = "repeats another row"
INVALID = "invalid"
CONTRADICTORY = "contradicts another row"
INCOMPLETE = frozenset({NO_FILE, SEVERAL_FILES, NO_LABEL, INVALID, CONTRADICTORY})  # what `strict` forbids


@dataclass(frozen=True)
class ImportOptions:
    """Options of an import; `import_dataset` says what each means."""

    split: str | None = None
    fold: int | None = None
    order: ClassOrder = "official"
    official_lists: bool = False
    untrimmed: bool = False
    strict: bool = False
    lenient: bool = False


@dataclass
class ImportResult:
    """How many rows were written, and how many were left out."""

    written: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # rows by cause
    example: dict[str, str] = field(default_factory=dict)  # cause -> where the first one stands, and what it is
    respelled: dict[str, str] = field(default_factory=dict)  # label as published -> as written

    @property
    def rows(self) -> int:
        return self.written + self.left_out.total()


def import_dataset(
    dataset: str,
    annotations: Sequence[Path],
    videos: Path,
    output: Path,
    *,
    root: str | Path | None = None,
    left_out: Path | None = None,
    options: ImportOptions = ImportOptions(),
) -> ImportResult:
    """Write the manifest of a dataset, whole or not at all.

    Args:
        dataset: see `dataset_name`.
        annotations: files as their owner publishes them, or folders of such files. None for `folder`.
        videos: the folder with all videos (or folders of frames), however deep. Rows are matched with names in it.
        output: the manifest, CSV or Parquet by its suffix. Paths in it are relative to its folder if the videos lie
            below that, or to `root`, else absolute. AVA gives a table of boxes instead (docs/datasets.md).
        root: what to write paths relative to.
        left_out: CSV file that names every row left out, with its cause.
        options:
            split: only rows of this split; where the files do not say their split, that they are of this one.
            fold: which of the three splits of UCF101 and HMDB51, where files of several are given.
            order: which list class numbers belong to, and in whose spelling labels are written.
            official_lists: the files are lists of paths and class numbers, as UniFormerV2's authors share them.
            untrimmed: videos called by the id alone are whole ones, not the clips; rows keep their start and end.
            strict: a row without its file, without a label, or with several files is an error.
            lenient: an invalid row, or a row that contradicts an earlier row of the same clip, is left out and counted.

    Raises:
        AnnotationError: invalid rows, with file and line; or nothing left to write. Then nothing is written.
    """
    published = DATASETS[dataset_name(dataset)]
    if not videos.is_dir():
        raise AnnotationError(f"{videos}: no such folder of videos")
    if dataset_name(dataset) == "folder":
        return ImportResult(write_manifest(output, read_annotations(videos), root=root))
    files, class_files = _files(annotations, published, options)
    shorten = relative_to(output.parent if root is None else root)
    prefix = shorten(os.path.join(videos, "_"))[:-1]  # what stands before a path below the folder of videos
    labels = _labels(published, options, class_files)
    with _table_of_left_out(left_out) as leave_out:
        job = _Import(published, options, labels, VideoIndex(videos), leave_out)
        rows = ((f"{prefix}{path}", *cells) for path, *cells in job.accepted(files))
        job.result.written = write_table(
            output, published.columns or MANIFEST_COLUMNS, _at_least_one(rows, job.result), exact=True
        )
    return job.result


class _LeftOut(Exception):
    """A row that is left out of the manifest: the cause and a detail."""

    def __init__(self, cause: str, detail: str = "") -> None:
        super().__init__(cause, detail)
        self.cause, self.detail = cause, detail


@dataclass
class _Import:
    """One pass over the rows of all files, in which rows are matched with videos."""

    dataset: PublishedDataset
    options: ImportOptions
    labels: Callable[[str], str]
    videos: VideoIndex
    report: Callable[[Sequence[object]], object]
    result: ImportResult = field(default_factory=ImportResult)
    seen: dict[object, int] = field(
        default_factory=dict
    )  # clip -> line and kind of its row in one number, for millions
    kinds: dict[tuple[str, str | None, Path], int] = field(default_factory=dict)

    def accepted(self, files: Sequence[Path]) -> Iterator[tuple[object, ...]]:
        """Cells of the rows that are not left out; the first is the path from the folder of videos."""
        read = partial(official_rows, dataset=self.dataset) if self.options.official_lists else self.dataset.read
        assert read is not None, "checked with the files"
        for file in files:
            for row in read(file):
                try:
                    cells = self._cells(file, row)
                except _LeftOut as left:
                    self._leave_out(file, row, left)
                else:
                    yield cells

    def _cells(self, file: Path, row: PublishedRow) -> tuple[object, ...]:
        split = row.split or self.options.split
        if row.skip or (self.options.split and split != self.options.split):
            raise _LeftOut(row.skip or OTHER_SPLIT)
        if row.wrong or any(".." in name and ".." in name.split("/") for name in row.names):
            raise _LeftOut(INVALID, row.wrong or f"found '..' in the path {row.names[0]!r}, expected none")
        if not row.label:
            raise _LeftOut(NO_LABEL)
        try:
            label = self.labels(row.label)
        except AnnotationError as error:
            raise _LeftOut(INVALID, str(error)) from None
        if label != row.label:
            self.result.respelled.setdefault(row.label, label)
        place, path = self._find(row, label, split)
        if self.dataset.columns:
            return path, *row.extra[:-1], label, row.extra[-1], split
        is_clip = self.dataset.clips and (place == 0 or not self.options.untrimmed)
        interval = (None, None) if is_clip else (row.start, row.end)
        self._compare(file, row.line, path, interval, label, split)
        return path, label, *interval, split

    def _find(self, row: PublishedRow, label: str, split: str | None) -> tuple[int, str]:
        for place, name in enumerate(row.names):
            paths = self.videos.find(name, (row.label, label, split))
            if len(paths) > 1:
                raise _LeftOut(SEVERAL_FILES, " and ".join(paths))
            if paths:
                return place, paths[0]
        raise _LeftOut(NO_FILE, row.names[0])

    def _compare(
        self, file: Path, line: int, path: str, interval: tuple[object, ...], label: str, split: str | None
    ) -> None:
        clip = path if interval == (None, None) else (path, *interval)
        former = self.seen.get(clip)
        if former is None:
            kind = self.kinds.setdefault((label, split, file), len(self.kinds))
            self.seen[clip] = line << 32 | kind
            return
        if self.kinds.get((label, split, file)) == former & 0xFFFFFFFF:
            raise _LeftOut(REPEATED, path)
        other, other_split, other_file = list(self.kinds)[former & 0xFFFFFFFF]
        if (label, split) == (other, other_split):
            raise _LeftOut(REPEATED, path)
        raise _LeftOut(
            CONTRADICTORY,
            f"{path} is {label!r}{_of(split)}, but {other!r}{_of(other_split)} in {_where(other_file, former >> 32)}; "
            "remove one of the rows, or keep the first with --lenient",
        )

    def _leave_out(self, file: Path, row: PublishedRow, left: _LeftOut) -> None:
        where, detail = _where(file, row.line), left.detail or row.names[0]
        if left.cause in (INVALID, CONTRADICTORY) and not self.options.lenient:
            raise AnnotationError(f"{where}: {detail}")
        if self.options.strict and left.cause in INCOMPLETE:
            raise AnnotationError(f"{where}: {left.cause}: {detail}; without --strict such rows are counted")
        self.result.left_out[left.cause] += 1
        self.result.example.setdefault(left.cause, f"{where}: {detail}")
        self.report((left.cause, file, row.line, row.names[0], row.label, left.detail))


def _where(file: Path, line: int) -> str:
    return f"{file}, {'entry' if file.suffix.lower() == '.json' else 'line'} {line}"


def _of(split: str | None) -> str:
    return f" ({split})" if split else ""


@contextmanager
def _table_of_left_out(path: Path | None) -> Iterator[Callable[[Sequence[object]], object]]:
    """A function that takes the cells of a row."""
    if path is None:
        yield lambda cells: None
        return
    check_target(path)
    with (
        whole_file(path) as partial_file,
        partial_file.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        write = csv_writer(file)
        write(("cause", "file", "line", "name", "label", "detail"))
        yield write


def _at_least_one(rows: Iterator[tuple[object, ...]], result: ImportResult) -> Iterator[tuple[object, ...]]:
    first = next(rows, None)
    if first is None:
        causes = ", ".join(f"{count} {cause}" for cause, count in result.left_out.most_common())
        examples = "; ".join(result.example.values())[:300]
        raise AnnotationError(f"no row is left to write: {causes or 'there are none'} ({examples})")
    yield first
    yield from rows


def _files(given: Sequence[Path], dataset: PublishedDataset, options: ImportOptions) -> tuple[list[Path], list[Path]]:
    """What to read, and the files that list the classes."""
    if dataset.read is None and not options.official_lists:
        raise AnnotationError(
            "kinetics710 is made by `uniformerv2 data kinetics710`; for its official lists give --format official"
        )
    patterns = ("*.csv", "*.txt") if options.official_lists else dataset.files
    files = []
    for path in given:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        files += [file for file in inside if file is path or _is_one_of(file, (*patterns, *dataset.class_files))]
    class_files = [file for file in files if _is_one_of(file, dataset.class_files)]
    wanted = _of_fold([file for file in files if file not in class_files], dataset, options.fold)
    if not wanted:
        names = ", ".join(map(str, given)) or "nothing"
        raise AnnotationError(f"no annotations among {names}; expected files such as {', '.join(patterns)}")
    return wanted, class_files


def _is_one_of(file: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(file.name, pattern) for pattern in patterns)


def _of_fold(files: list[Path], dataset: PublishedDataset, fold: int | None) -> list[Path]:
    if not dataset.fold:
        return files
    numbers = {file: int(found[1]) if (found := re.search(dataset.fold, file.name)) else None for file in files}
    several = sorted({number for number in numbers.values() if number is not None})
    if fold is None and len(several) > 1:
        raise AnnotationError(f"{files[0].parent}: files of the splits {several}; choose one with --fold")
    return [file for file in files if fold is None or numbers[file] in (None, fold)]


def _labels(dataset: PublishedDataset, options: ImportOptions, class_files: list[Path]) -> Callable[[str], str]:
    """A function from labels as published to labels as they are written."""
    if dataset.columns:
        names = {number: name for file in class_files for number, name in action_names(file).items()}
        return lambda label: names.get(label, label)
    if not dataset.classes:
        return lambda label: label
    if options.official_lists:
        return _by_number(dataset.classes, options.order)
    return ClassNames(dataset.classes, options.order)


def _by_number(dataset: str, order: ClassOrder) -> Callable[[str], str]:
    from uniformerv2.weights.labels import class_list

    names = class_list(dataset, order=order)

    def name(label: str) -> str:
        if int(label) >= len(names):
            raise AnnotationError(f"found class {label}, expected one of the {len(names)} of {dataset}, from 0")
        return names[int(label)]

    return name


class ClassNames:
    """A function from the published names of classes to those in an order.

    Args:
        dataset: whose classes.
        order: "official" or "mmaction2"; the latter's lists have the names as published.

    It raises AnnotationError for a name that is unknown; the message lacks file and line.
    """

    def __init__(self, dataset: str, order: ClassOrder) -> None:
        from uniformerv2.weights.labels import class_list, matching

        self._dataset, self._published = dataset, class_list(dataset, order="mmaction2")
        names = class_list(dataset, order=order)
        rows = matching(self._published, names)
        assert rows is not None, "our own lists of a dataset fit each other"
        self._names = {name: name for name in names}
        self._names.update((name, names[row]) for name, row in zip(self._published, rows, strict=True))

    def __call__(self, label: str) -> str:
        name = self._names.get(label)
        return self._look_up(label) if name is None else name

    def _look_up(self, label: str) -> str:
        from uniformerv2.weights.labels import matching

        place = matching([label], self._published)  # however it is spelled
        if place is None:
            raise AnnotationError(
                f"label {label!r} is none of the {len(self._published)} classes of {self._dataset}; "
                f"the nearest is {_nearest(label, self._published)!r}"
            )
        return self._names.setdefault(label, self._names[self._published[place[0]]])


@lru_cache
def _nearest(label: str, names: tuple[str, ...]) -> str:
    return get_close_matches(label, names, n=1, cutoff=0)[0]
