"""The annotation files that the owners of datasets publish, read as rows of one type.

Each dataset is a line of `DATASETS`: how its files are read, which class names they use, the format of its official
lists. A reader turns one file into `PublishedRow`s; `importers` checks labels, splits, videos and contradictions for
all of them. docs/datasets.md says what to download.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from uniformerv2.data.annotations import parse_interval
from uniformerv2.data.manifest import manifest_rows
from uniformerv2.data.tables import csv_rows, text_lines, utf8_text
from uniformerv2.errors import AnnotationError
from uniformerv2.text import parse_json, short_json
from uniformerv2.video.suffixes import VIDEO_SUFFIXES

# why the owner leaves a row out
UNUSED = "unused in this split"
NEGATIVE = "negative example"
SEVERAL_CLASSES = "several classes in one video"
NO_BOX = "no box"


class PublishedRow(NamedTuple):
    """A row as published."""

    line: int  # of the file, from 1; in JSON, the number of the entry
    names: tuple[str, ...]  # what its video may be called, best first: the end of a path, without suffix
    label: str = ""  # a name, or the number of a class; "": not published
    start: float | None = None  # seconds
    end: float | None = None  # seconds
    split: str | None = None  # train, val or test; None: the file does not say
    skip: str = ""  # why the owner leaves it out
    wrong: str = ""  # why it is invalid
    extra: tuple[float | str, ...] = ()  # cells of the columns that this dataset has beside those of a manifest


Reader = Callable[[Path], Iterator[PublishedRow]]


# --- readers


def kinetics_rows(file: Path) -> Iterator[PublishedRow]:
    """Kinetics of every edition. The first name is that of the clip, with its times, the second that of the video."""
    part = split_of(file.stem)
    columns = ("label?", "youtube_id", "time_start", "time_end", "split?")
    for line, (label, video, start, end, split) in named_cells(file, *columns):
        first, last, wrong = _interval(start, end)
        if first is None or last is None:
            yield PublishedRow(
                line, (video,), label, wrong=wrong or "found no time_start or no time_end, expected seconds"
            )
            continue
        names = (f"{video}_{int(first):06d}_{int(last):06d}", video)
        yield PublishedRow(line, names, label, first, last, split_of(split) or part)


def _moments_rows(file: Path) -> Iterator[PublishedRow]:
    split = split_of(file.stem)
    folders = {"train": ("training/", "train/"), "val": ("validation/", "val/")}.get(split or "", ("",))
    for line, cells in csv_rows(file):
        if len(cells) < 2:
            yield PublishedRow(line, ("",), wrong=f"found {cells[0][:80]!r}, expected path,label,agreeing,disagreeing")
        elif (line, cells[1]) != (1, "label"):  # some copies have column names
            yield PublishedRow(line, tuple(folder + stem_of(cells[0]) for folder in folders), cells[1], split=split)


def _semicolon_rows(file: Path) -> Iterator[PublishedRow]:
    split = split_of(file.stem)
    for line, (video, *label) in csv_rows(file, delimiter=";", quotes=False):
        yield PublishedRow(line, (video,), _without_brackets(";".join(label)), split=split)


def _something_v2_rows(file: Path) -> Iterator[PublishedRow]:
    if file.suffix.lower() == ".csv":  # the answers of the test set
        yield from _semicolon_rows(file)
        return
    split = split_of(file.stem)
    entries = _json(file)
    if not isinstance(entries, list):
        raise AnnotationError(f"{file}: found {_kind(entries)}, expected a list of objects with id and template")
    for number, entry in enumerate(entries, start=1):
        match entry:
            case {"id": str() | int() as video, "template": str() as template}:
                yield PublishedRow(number, (str(video),), _without_brackets(template), split=split)
            case {"id": str() | int() as video}:  # the test set
                yield PublishedRow(number, (str(video),), split=split)
            case _:
                yield PublishedRow(
                    number, ("",), wrong=f"found {_kind(entry)}, expected an object with id and template"
                )


def _segment_rows(file: Path) -> Iterator[PublishedRow]:
    """ActivityNet and HACS Segments. Training sees the segments, testing the whole video: so the official protocol."""
    whole = _json(file)
    database = whole.get("database") if isinstance(whole, dict) else None
    if not isinstance(database, dict):
        raise AnnotationError(f'{file}: found {_kind(whole)}, expected an object with "database"')
    for number, (video, entry) in enumerate(database.items(), start=1):
        names = (f"v_{video}", video)
        match entry:
            case {"subset": str() as subset, **rest} if split := split_of(subset):
                row = PublishedRow(number, names, split=split)
                yield from _rows_of_segments(row, rest.get("annotations") or [])
            case _:
                yield PublishedRow(
                    number, names, wrong=f"{video!r} is {_kind(entry)}, expected a subset and annotations"
                )


def _rows_of_segments(row: PublishedRow, segments: Any) -> Iterator[PublishedRow]:
    rows = []
    for segment in segments if isinstance(segments, list) else [segments]:
        match segment:
            case {"segment": [float() | int() as start, float() | int() as end], "label": str() as label}:
                rows.append(_timed(row._replace(label=label), str(start), str(end)))
            case _:
                yield row._replace(wrong=f'{row.names[1]!r} has the annotation {segment!r}, without "segment", "label"')
    labels = {segment.label for segment in rows}
    if row.split == "train":
        yield from rows
    elif len(labels) > 1:
        yield row._replace(label=" / ".join(sorted(labels)), skip=SEVERAL_CLASSES)
    elif labels:
        yield row._replace(label=labels.pop())
    if not rows and not segments:
        yield row


def _hacs_rows(file: Path) -> Iterator[PublishedRow]:
    if file.suffix.lower() == ".json":
        yield from _segment_rows(file)
        return
    columns = ("classname", "youtube_id", "subset", "start", "end", "label")
    for line, (name, video, subset, start, end, mark) in named_cells(file, *columns):
        row = PublishedRow(
            line, (f"v_{video}", video), name, split=split_of(subset), skip="" if mark == "1" else NEGATIVE
        )
        if mark not in ("1", "-1", "0"):
            row = row._replace(wrong=f"label is {mark!r}; it must be 1 or -1")
        yield _timed(row, start, end)


def _ucf_rows(file: Path) -> Iterator[PublishedRow]:
    split = split_of(file.stem)
    for line, text in text_lines(file):
        path = re.sub(r"\s+\d+$", "", text)
        label, _, name = path.rpartition("/")
        wrong = "" if label and name else f"found {text[:80]!r}, expected CLASS/VIDEO.avi"
        yield PublishedRow(line, (stem_of(path),), label.rpartition("/")[2], split=split, wrong=wrong)


def _hmdb_rows(file: Path) -> Iterator[PublishedRow]:
    label = file.name.partition("_test_split")[0]
    for line, text in text_lines(file):
        name, _, mark = text.rpartition(" ")
        split = {"1": "train", "2": "test"}.get(mark)
        wrong = "" if name and mark in ("0", "1", "2") else f"found {text[:80]!r}, expected VIDEO.avi and 0, 1 or 2"
        skip = "" if split else UNUSED
        yield PublishedRow(line, (f"{label}/{stem_of(name.strip())}",), label, split=split, skip=skip, wrong=wrong)


def _ava_rows(file: Path) -> Iterator[PublishedRow]:
    split = split_of(file.stem)
    for line, cells in csv_rows(file):
        video, *numbers = cells
        if len(numbers) == 1:  # a time without a person
            yield PublishedRow(line, (video,), split=split, skip=NO_BOX)
            continue
        try:
            time, *box = map(float, numbers[:5])
            wrong = "" if len(box) == 4 and all(0 <= side <= 1 for side in box) and time >= 0 else "a box out of [0, 1]"
        except ValueError:
            time, box, wrong = 0.0, [], "cells that are no numbers"
        if wrong or len(numbers) not in (6, 7):
            wrong = f"{wrong or f'{len(cells)} cells'}, expected video,seconds,x1,y1,x2,y2,action[,person]"
            yield PublishedRow(line, (video,), split=split, wrong=wrong)
            continue
        yield PublishedRow(
            line, (video,), numbers[5], split=split, extra=(time, *box, numbers[6] if len(numbers) > 6 else "")
        )


def _manifest_dataset_rows(file: Path) -> Iterator[PublishedRow]:
    for line, row in manifest_rows(file, Path()):
        yield PublishedRow(line, (stem_of(row.path.as_posix()),), row.label, row.start, row.end, row.split)


def official_rows(file: Path, dataset: PublishedDataset) -> Iterator[PublishedRow]:
    """The official lists: `path class`, with the frames (Something-Something) or duration, start and end before it."""
    number = r"[ ,\t]+(-?[0-9.]+)"
    pattern = re.compile(rf"(.+?){number * dataset.list_numbers}")
    split = split_of(file.stem)
    for line, text in text_lines(file):
        match = pattern.fullmatch(text)
        if not match or not match[match.re.groups].isdecimal():
            yield PublishedRow(line, ("",), wrong=f"found {text[:80]!r}, expected {dataset.list_form}")
            continue
        row = PublishedRow(line, (stem_of(match[1]),), match[match.re.groups], split=split)
        segment = dataset.list_numbers == 4 and split == "train"
        yield _timed(row, match[3], match[4]) if segment else row


def _timed(row: PublishedRow, start: str, end: str) -> PublishedRow:
    first, last, wrong = _interval(start, end)
    return row._replace(start=first, end=last, wrong=wrong or row.wrong)


@lru_cache(100_000)  # of clips, the same few hundred starts come again and again
def _interval(start: str, end: str) -> tuple[float | None, float | None, str]:
    """Seconds, and what is wrong with them."""
    try:
        return *parse_interval(start, end), ""
    except AnnotationError as error:
        return None, None, str(error)


def named_cells(file: Path, *names: str) -> Iterator[tuple[int, list[str]]]:
    """Cells of the columns of these names; those of a name with "?" are "" where there is no such column."""
    rows = csv_rows(file)
    columns = [cell.strip().casefold() for cell in next(rows, (1, []))[1]]
    missing = [name for name in names if not name.endswith("?") and name not in columns]
    if missing:
        found = ",".join(columns)[:200] or "nothing"
        raise AnnotationError(
            f"{file}, line 1: expected the column names {','.join(names).replace('?', '')}, found {found}; "
            "a list of paths and class numbers is imported with --format official"
        )
    places = [columns.index(plain) if (plain := name.rstrip("?")) in columns else -1 for name in names]
    for line, cells in rows:
        if len(cells) != len(columns):
            raise AnnotationError(
                f"{file}, line {line}: found {len(cells)} cells, expected {len(columns)} ({','.join(columns)}); "
                "a label with a comma belongs in double quotes"
            )
        yield line, [cells[place].strip() if place >= 0 else "" for place in places]


def _json(file: Path) -> Any:
    try:
        return parse_json(utf8_text(file))
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{file}, line {error.lineno}: cannot be read as JSON: {error.msg}") from None
    except ValueError as error:
        raise AnnotationError(f"{file}: cannot be read as JSON: {error}") from None


def _kind(value: object) -> str:
    """A value of JSON in a few words."""
    return short_json(value, longest=60)


@lru_cache
def split_of(word: str) -> str | None:
    """What train, training, something-something-v2-validation, ava_test_v2.2, ... mean; None: nothing."""
    found = re.search("train|val|test", word.casefold())
    return found[0] if found else None


def _without_brackets(template: str) -> str:
    return template.replace("[", "").replace("]", "")


def stem_of(path: str) -> str:
    """A path with "/" without the suffixes of a video, of which downloaders may leave two (ID.mp4.webm)."""
    path = path.strip().replace("\\", "/")
    while (parts := os.path.splitext(path))[1].lower() in VIDEO_SUFFIXES:
        path = parts[0]
    return path


# --- the datasets


@dataclass(frozen=True)
class PublishedDataset:
    """How a dataset is published."""

    read: Reader | None  # None: its owner publishes no annotations, only the official lists have it
    classes: str = ""  # whose class names its labels are; "": any
    files: tuple[str, ...] = ()  # what to read of a folder that is given in place of files
    class_files: tuple[str, ...] = ()  # files that list its classes
    fold: str = ""  # regular expression for the number of the split in a file name
    clips: bool = False  # the videos are the clips themselves, unless `untrimmed` is given
    list_numbers: int = 1  # numbers behind the path in the official lists
    list_form: str = "PATH CLASS"
    columns: dict[str, type] = field(default_factory=dict)  # of its table, where that is no manifest


KINETICS = PublishedDataset(kinetics_rows, files=("*.csv",), clips=True)
SOMETHING = PublishedDataset(None, list_numbers=2, list_form="PATH FRAMES CLASS")
SEGMENTS = PublishedDataset(_segment_rows, files=("*.json",), list_numbers=4, list_form="PATH DURATION START END CLASS")


DATASETS = {
    **{name: replace(KINETICS, classes=name) for name in ("kinetics400", "kinetics600", "kinetics700")},
    "kinetics700_2020": replace(KINETICS, classes="kinetics700"),
    "kinetics710": PublishedDataset(None, classes="kinetics710"),
    "moments_in_time": PublishedDataset(
        _moments_rows, classes="moments_in_time", files=("*Set.csv",), class_files=("moments_categories.txt",)
    ),
    "something_something_v1": replace(
        SOMETHING,
        read=_semicolon_rows,
        classes="something_something_v1",
        files=("something-something-v1-*.csv",),
        class_files=("*labels.csv",),
    ),
    "something_something_v2": replace(
        SOMETHING,
        read=_something_v2_rows,
        classes="something_something_v2",
        files=("*train.json", "*validation.json", "*test.json", "*test-answers.csv"),
        class_files=("*labels.json",),
    ),
    "activitynet": replace(SEGMENTS, classes="activitynet"),
    "hacs": replace(SEGMENTS, read=_hacs_rows, classes="hacs", files=("*.csv", "*.json")),
    "ucf101": PublishedDataset(
        _ucf_rows,
        classes="ucf101",
        files=("trainlist*.txt", "testlist*.txt"),
        class_files=("classInd.txt",),
        fold=r"list0*(\d+)\.txt$",
    ),
    "hmdb51": PublishedDataset(_hmdb_rows, classes="hmdb51", files=("*_test_split*.txt",), fold=r"_split(\d+)\.txt$"),
    "ava": PublishedDataset(
        _ava_rows,
        files=("ava_*.csv",),
        class_files=("*.pbtxt",),
        columns={"video": str, "time": float}
        | dict.fromkeys(("x1", "y1", "x2", "y2"), float)
        | dict.fromkeys(("label", "person", "split"), str),
    ),
    "manifest": PublishedDataset(_manifest_dataset_rows),
    "spans": PublishedDataset(None),  # in the formats of spans/formats
    "folder": PublishedDataset(None),
}


def dataset_name(name: str) -> str:
    """The name of a dataset in `DATASETS`, however it is written: k400, SSv2, Kinetics700-2020, ...

    Raises:
        AnnotationError: an unknown dataset.
    """
    from uniformerv2.weights.labels import ALIASES

    plain = name.casefold().replace("-", "_")
    plain = {"k700_2020": "kinetics700_2020"}.get(plain, ALIASES.get(plain, plain))
    if plain not in DATASETS:
        raise AnnotationError(f"dataset {name!r}: it must be one of {', '.join(DATASETS)}")
    return plain


def action_names(file: Path) -> dict[str, str]:
    """Names of the actions of AVA by their number, out of its ava_action_list_*.pbtxt."""
    found = re.findall(r'name:\s*"([^"]*)"\s*(?:label_)?id:\s*(\d+)', utf8_text(file))
    if not found:
        raise AnnotationError(f'{file}: found no action, expected such as item {{ name: "bend/bow" id: 1 }}')
    return {number: name for name, number in found}
