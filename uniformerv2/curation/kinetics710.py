"""Kinetics-710: the training sets of Kinetics-400, 600 and 700 in one, without repeats and without test videos.

Section 4.1 and appendix E of the UniFormerV2 paper (https://arxiv.org/abs/2211.09552) say what is merged; they do not
say which of two rows of one video stays. Here it is that of the newest edition, whose labels were corrected last.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from uniformerv2.atomic import whole_folder
from uniformerv2.curation.importers import ClassNames
from uniformerv2.curation.published import kinetics_rows, stem_of
from uniformerv2.curation.video_index import VideoIndex
from uniformerv2.data.manifest import MANIFEST_COLUMNS, manifest_rows
from uniformerv2.data.tables import check_target, read_rows, relative_to, write_table
from uniformerv2.errors import AnnotationError

if TYPE_CHECKING:
    from uniformerv2.weights.labels import ClassOrder

EDITIONS = ("kinetics700", "kinetics600", "kinetics400")  # newest first: the first row of a video stays
COLUMNS = {**MANIFEST_COLUMNS, "youtube_id": str, "edition": str}

# why a row of a training set is left out
NO_LABEL = "no label"
NO_FILE = "no such file"
HELD_OUT = "in a validation or test set of {}"
REPEATED = "repeats a video of {}"
RELABELLED = "repeats a video of {}, of another class"


class KineticsRow(NamedTuple):
    """A row of the owner's list or of a manifest."""

    line: int
    video: str  # id on YouTube, 11 characters
    label: str  # as published; "" where none
    path: str  # of the file, or what it is usually called
    start: float | None = None
    end: float | None = None
    split: str | None = None


@dataclass
class EditionCounts:
    """How many rows of an edition were kept, and how many were left out."""

    rows: int = 0  # of its training list
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # rows by cause
    held_out: dict[str, int] = field(default_factory=dict)  # validation or test list -> its videos
    splits: Counter[str] = field(default_factory=Counter)  # of the rows of the training list, as it says itself
    renamed: dict[str, str] = field(default_factory=dict)  # class as published -> class of Kinetics-710


@dataclass
class MergeResult:
    """What was merged."""

    order: ClassOrder
    editions: dict[str, EditionCounts]
    classes: dict[str, int]  # every class of Kinetics-710 -> videos

    @property
    def videos(self) -> int:
        return sum(edition.kept for edition in self.editions.values())

    @property
    def empty_classes(self) -> list[str]:
        return [name for name, videos in self.classes.items() if not videos]

    def to_json(self) -> dict[str, object]:
        return {
            "order": self.order,
            "videos": self.videos,
            "editions": {name: vars(edition) for name, edition in self.editions.items()},
            "videos_per_class": self.classes,
        }


def merge_kinetics(
    lists: Mapping[str, Sequence[Path]],
    output: Path,
    *,
    order: ClassOrder = "official",
    videos: Path | None = None,
) -> MergeResult:
    """Write Kinetics-710 into a new folder, whole or not at all.

    The folder receives `kinetics710.csv` (a manifest with the further columns youtube_id and edition), `labels.txt`
    (710 names, line i is class i), `map_kinetics400.json` and so on (entry i: the class of Kinetics-710 that class i of
    that set is, both in the same order) and `report.json` (every count).

    A video is in the manifest once, by its YouTube id, and not at all if that id is in any validation or test list. Of
    several rows of a video the first one of the newest edition stays.

    Args:
        lists: for each of `EDITIONS` the training list, then all of its validation and test lists. A list is the CSV
            file that the owner publishes, or a manifest whose files are called by their YouTube id.
        output: a new or empty folder.
        order: of the 710 classes, and whose names they have.
        videos: where to look for the files of the owner's lists; rows without one are left out, so that an older
            edition's may take their place. None: they are taken to be called ID_000010_000020.mp4.

    Raises:
        AnnotationError: missing or invalid lists, with file and line; an output folder that is not empty.
    """
    from uniformerv2.weights.labels import class_list, head_part

    for edition in EDITIONS:
        if len(lists.get(edition, ())) < 2:
            raise AnnotationError(f"{edition}: expected its training list and at least one validation or test list")
    check_target(output)
    whole = class_list("kinetics710", order=order)
    merged = MergeResult(order, {edition: EditionCounts() for edition in EDITIONS}, dict.fromkeys(whole, 0))
    with whole_folder(output) as folder:
        merge = _Merge(merged, _finder(videos, output))
        merge.hold_out({edition: lists[edition][1:] for edition in EDITIONS})
        rows = (row for edition in EDITIONS for row in merge.kept(edition, lists[edition][0]))
        if not write_table(folder / "kinetics710.csv", COLUMNS, rows):
            counts = sum((edition.left_out for edition in merged.editions.values()), Counter[str]())
            causes = ", ".join(f"{count} {cause}" for cause, count in counts.most_common())
            raise AnnotationError(f"{output}: every row was left out: {causes or 'the lists have no rows'}")
        _write(folder / "labels.txt", "".join(f"{name}\n" for name in whole))
        for edition in EDITIONS:
            _write(folder / f"map_{edition}.json", json.dumps(head_part(whole, edition)[1]) + "\n")
        _write(folder / "report.json", json.dumps(merged.to_json(), indent=2) + "\n")
    return merged


def merged_names(edition: str, order: ClassOrder) -> Callable[[str], str]:
    """A function from the published classes of an edition to those of Kinetics-710; AnnotationError where unknown.

    It follows the published maps, so what it gives to class i of the edition is class `map[i]` of Kinetics-710.
    """
    from uniformerv2.weights.labels import class_list, head_part

    whole = class_list("kinetics710", order=order)
    own = ClassNames(edition, order)
    merged = {name: whole[row] for name, row in zip(*head_part(whole, edition), strict=True)}
    return lambda label: merged[own(label)]


class _Merge:
    def __init__(self, merged: MergeResult, find: Callable[[KineticsRow], str | None]) -> None:
        self._merged, self._find = merged, find
        self._held_out: dict[str, str] = {}  # id -> edition
        self._kept: dict[str, tuple[str, str]] = {}  # id -> edition and class, few different pairs

    def hold_out(self, lists: Mapping[str, Sequence[Path]]) -> None:
        for edition, files in lists.items():
            for file in files:
                ids = {row.video for row in read_list(file)}
                self._merged.editions[edition].held_out[str(file)] = len(ids)
                for video in ids:
                    self._held_out.setdefault(video, edition)

    def kept(self, edition: str, file: Path) -> Iterator[tuple[object, ...]]:
        """Rows for the manifest."""
        result, names = self._merged.editions[edition], _Names(edition, self._merged.order)
        for row in read_list(file):
            result.rows += 1
            result.splits[row.split or ""] += 1
            cause, path = self._judge(row, edition, names(file, row))
            if cause:
                result.left_out[cause] += 1
                continue
            result.kept += 1
            label = self._kept[row.video][1]
            self._merged.classes[label] += 1
            yield path, label, row.start, row.end, "train", row.video, edition
        result.renamed = names.renamed

    def _judge(self, row: KineticsRow, edition: str, kind: tuple[str, str] | None) -> tuple[str, str | None]:
        """Why a row is left out, "" if it is not, and its path."""
        if kind is None:
            return NO_LABEL, None
        if row.video in self._held_out:
            return HELD_OUT.format(self._held_out[row.video]), None
        if row.video in self._kept:
            former, label = self._kept[row.video]
            return (REPEATED if label == kind[1] else RELABELLED).format(former), None
        path = self._find(row)
        if path is None:
            return NO_FILE, None
        self._kept[row.video] = kind
        return "", path


class _Names:
    """Edition and merged class of a row, one object for all clips of a class."""

    def __init__(self, edition: str, order: ClassOrder) -> None:
        self._edition, self._merged = edition, merged_names(edition, order)
        self._known: dict[str, tuple[str, str] | None] = {"": None}
        self.renamed: dict[str, str] = {}

    def __call__(self, file: Path, row: KineticsRow) -> tuple[str, str] | None:
        if row.label not in self._known:
            try:
                name = self._merged(row.label)
            except AnnotationError as error:
                raise AnnotationError(f"{file}, line {row.line}: {error}") from None
            self._known[row.label] = (self._edition, name)
            if name != row.label:
                self.renamed[row.label] = name
        return self._known[row.label]


def read_list(file: Path) -> Iterator[KineticsRow]:
    """Rows of a list of Kinetics: the CSV file of its owner, or a manifest.

    Raises:
        AnnotationError: neither, or an invalid row; names the line.
    """
    columns = {cell.strip().casefold() for cell in next(read_rows(file), (1, []))[1]}
    if "youtube_id" in columns and "path" not in columns:
        for row in kinetics_rows(file):
            if row.wrong or not _ID.fullmatch(row.names[-1]):
                wrong = row.wrong or f"youtube_id is {row.names[-1]!r}; it must have 11 letters, digits, - and _"
                raise AnnotationError(f"{file}, line {row.line}: {wrong}")
            yield KineticsRow(row.line, row.names[-1], row.label, f"{row.names[0]}.mp4", split=row.split)
        return
    for line, annotation in manifest_rows(file, file.parent):
        path = str(annotation.path)
        found = _CLIP_NAME.fullmatch(os.path.basename(stem_of(path)))
        if not found:
            raise AnnotationError(
                f"{file}, line {line}: found the file {annotation.path.name!r}, expected a name that begins with its "
                "YouTube id, such as ID_000010_000020.mp4; or give the lists of the owner and --videos"
            )
        yield KineticsRow(line, found[1], annotation.label, path, *annotation.interval, annotation.split)


_ID = re.compile(r"[\w-]{11}", re.ASCII)
_CLIP_NAME = re.compile(r"([\w-]{11})(_\d+_\d+)?", re.ASCII)


def _finder(videos: Path | None, output: Path) -> Callable[[KineticsRow], str | None]:
    """A function that gives the path of a row as it is written, None where there is no file."""
    shorten = relative_to(output)
    if videos is None:
        return lambda row: shorten(row.path) if os.path.dirname(row.path) else row.path
    index, root = VideoIndex(videos), os.path.abspath(videos)

    def find(row: KineticsRow) -> str | None:
        if os.path.dirname(row.path):  # of a manifest
            return shorten(row.path)
        for name in (stem_of(row.path), row.video):
            if paths := index.find(name, (row.label, "train")):
                return shorten(os.path.join(root, paths[0]))  # several are copies: each edition may have its folder
        return None

    return find


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
