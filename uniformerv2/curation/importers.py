"""Published annotations and a folder of videos -> a manifest, and a count of every row that was left out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from uniformerv2.curation.import_job import (
    CONTRADICTORY,
    INVALID,
    NO_FILE,
    NO_LABEL,
    OTHER_SPLIT,
    REPEATED,
    SEVERAL_FILES,
    ImportJob,
    ImportOptions,
    ImportResult,
    LeftOut,
    table_of_left_out,
)
from uniformerv2.curation.published import (
    DATASETS,
    PublishedDataset,
    PublishedRow,
    action_names,
    dataset_name,
    official_rows,
)
from uniformerv2.curation.span_import import SpanImport
from uniformerv2.curation.video_index import VideoIndex
from uniformerv2.data.manifest import MANIFEST_COLUMNS, write_manifest
from uniformerv2.data.sources import read_annotations
from uniformerv2.data.tables import place, relative_to, write_table
from uniformerv2.errors import AnnotationError

if TYPE_CHECKING:
    from uniformerv2.weights.labels import ClassOrder


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
            span_format: the format of files of spans; None: told by their content.
            tier: of spans, those of this tier alone (ELAN), attribute (VIA) or control (Label Studio).
            frame_rate: frames/s in which frames of spans are counted; None: they are the frames of the video.
            untrimmed: videos called by the id alone are whole ones, not the clips; rows keep their start and end.
            strict: a row without its file, without a label, or with several files is an error.
            lenient: an invalid row, or a row that contradicts an earlier row of the same clip, is left out and counted.

    Raises:
        AnnotationError: invalid rows, with file and line; or nothing left to write. Then nothing is written.
    """
    name = dataset_name(dataset)
    if not videos.is_dir():
        raise AnnotationError(f"{videos}: no such folder of videos")
    if name == "folder":
        return ImportResult(write_manifest(output, read_annotations(videos), root=root))
    shorten = relative_to(output.parent if root is None else root)
    prefix = shorten(os.path.join(videos, "_"))[:-1]  # what stands before a path below the folder of videos
    with table_of_left_out(left_out) as report:
        job = ImportJob(options, report)
        if name == "spans":
            found = SpanImport(job, videos, VideoIndex(videos)).accepted(annotations)
        else:
            files, class_files = _files(annotations, DATASETS[name], options)
            labels = _labels(DATASETS[name], options, class_files)
            found = _Import(DATASETS[name], job, labels, VideoIndex(videos)).accepted(files)
        rows = job.at_least_one((f"{prefix}{path}", *cells) for path, *cells in found)
        job.result.written = write_table(output, DATASETS[name].columns or MANIFEST_COLUMNS, rows, exact=True)
    return job.result


@dataclass
class _Import:
    """One pass over the rows of all files, in which rows are matched with videos."""

    dataset: PublishedDataset
    job: ImportJob
    labels: Callable[[str], str]
    videos: VideoIndex
    seen: dict[object, int] = field(
        default_factory=dict
    )  # clip -> line and kind of its row in one number, for millions
    kinds: dict[tuple[str, str | None, Path], int] = field(default_factory=dict)

    def accepted(self, files: Sequence[Path]) -> Iterator[tuple[object, ...]]:
        """Cells of the rows that are not left out; the first is the path from the folder of videos."""
        read = partial(official_rows, dataset=self.dataset) if self.job.options.official_lists else self.dataset.read
        assert read is not None, "checked with the files"
        for file in files:
            for row in read(file):
                try:
                    cells = self._cells(file, row)
                except LeftOut as left:
                    self.job.leave_out(left, file, row.line, row.names[0], row.label)
                else:
                    yield cells

    def _cells(self, file: Path, row: PublishedRow) -> tuple[object, ...]:
        split = row.split or self.job.options.split
        if row.skip or (self.job.options.split and split != self.job.options.split):
            raise LeftOut(row.skip or OTHER_SPLIT)
        if row.wrong or any(".." in name and ".." in name.split("/") for name in row.names):
            raise LeftOut(INVALID, row.wrong or f"found '..' in the path {row.names[0]!r}, expected none")
        if not row.label:
            raise LeftOut(NO_LABEL)
        try:
            label = self.labels(row.label)
        except AnnotationError as error:
            raise LeftOut(INVALID, str(error)) from None
        if label != row.label:
            self.job.result.respelled.setdefault(row.label, label)
        which, path = self._find(row, label, split)
        if self.dataset.columns:
            return path, *row.extra[:-1], label, row.extra[-1], split
        is_clip = self.dataset.clips and (which == 0 or not self.job.options.untrimmed)
        interval = (None, None) if is_clip else (row.start, row.end)
        self._compare(file, row.line, path, interval, label, split)
        return path, label, *interval, split

    def _find(self, row: PublishedRow, label: str, split: str | None) -> tuple[int, str]:
        for which, name in enumerate(row.names):
            paths = self.videos.find(name, (row.label, label, split))
            if len(paths) > 1:
                raise LeftOut(SEVERAL_FILES, " and ".join(paths))
            if paths:
                return which, paths[0]
        raise LeftOut(NO_FILE, row.names[0])

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
            raise LeftOut(REPEATED, path)
        other, other_split, other_file = list(self.kinds)[former & 0xFFFFFFFF]
        if (label, split) == (other, other_split):
            raise LeftOut(REPEATED, path)
        raise LeftOut(
            CONTRADICTORY,
            f"{path} is {label!r}{_of(split)}, but {other!r}{_of(other_split)} in {place(other_file, former >> 32)}; "
            "remove one of the rows, or keep the first with --lenient",
        )


def _of(split: str | None) -> str:
    return f" ({split})" if split else ""


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
