"""What a video shows and when, and what could not be read."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from uniformerv2.errors import AnnotationError
from uniformerv2.text import normalised

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validation", "valid", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What people call the splits, in lower case, and their names here."""

Interval = tuple[float | None, float | None]  # start and end in seconds; None: from the beginning, to the end


@dataclass(frozen=True, slots=True)
class Annotation:
    """One row: a video (a file or a folder of frame images), what it shows and, if only a part does, when."""

    path: Path
    label: str  # kept as `text.normalised` has it, so that equal labels are equal
    start: float | None = None  # seconds; None: from the beginning
    end: float | None = None  # seconds; None: to the end
    split: str | None = None  # "train", "val" or "test"
    group: str | None = None  # its source, such as a person or a film: a drawn split keeps it on one side
    other_labels: tuple[str, ...] = ()  # what it shows beside `label`, where a video may have several labels

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", normalised(self.label))
        object.__setattr__(self, "other_labels", tuple(map(normalised, self.other_labels)))

    @property
    def labels(self) -> tuple[str, ...]:
        """All of them; none for "", which stands for no label."""
        return (self.label, *self.other_labels) if self.label else ()

    @property
    def interval(self) -> Interval:
        return self.start, self.end


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A video that could not be read, and was left out."""

    path: str
    reason: str
    row: int = 0  # its position in the annotations, from 0


@dataclass(frozen=True, slots=True, order=True)
class Damaged:
    """A video that was read although a part of it is damaged."""

    path: str
    reason: str


def class_names(annotations: Sequence[Annotation], *, minimum: int = 1) -> list[str]:
    """The classes that occur, sorted.

    Raises:
        AnnotationError: fewer than `minimum` of them; training needs two.
    """
    names = sorted({label for annotation in annotations for label in annotation.labels})
    if len(names) < minimum:
        example = f" in {annotations[0].path.parent}" if annotations else ""
        raise AnnotationError(
            f"found {len(names)} class(es) ({', '.join(names) or 'none'}){example}, but at least {minimum} are needed; "
            "give a folder with one folder per class, or a manifest with more than one label"
        )
    return names


def unknown_labels(
    annotations: Sequence[Annotation], unknown: Sequence[str], classes: Sequence[str]
) -> AnnotationError:
    """The error for labels that are not among the classes of a model."""
    row = next(row for row in annotations if unknown[0] in (row.label, *row.other_labels))
    listed = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
    return AnnotationError(
        f"{row.path}: label {unknown[0]!r} is not among the {len(classes)} classes of the model "
        f"({', '.join(classes[:3])}, ...); {len(unknown)} label(s) are unknown: {listed}"
    )


def check_labels(
    annotations: Sequence[Annotation], name: Callable[[int], str], originals: Mapping[Path, Path] = MappingProxyType({})
) -> None:
    """Check that no video is called two things at once.

    Args:
        annotations: the rows.
        name: of the row of a number, for the message.
        originals: for paths of files that have several, the one that stands for all.

    Raises:
        AnnotationError: rows of one file with different labels and equal times, or one without times, which lacks a
            label that another has.
    """
    of_file: dict[Path, list[int]] = defaultdict(list)
    for number, row in enumerate(annotations):
        of_file[originals.get(row.path, row.path)].append(number)
    for numbers in of_file.values():
        first: dict[tuple[float, float | None], int] = {}  # the first row of each interval
        whole: int | None = None  # the first row without times
        for number in numbers:
            row = annotations[number]
            interval, timeless = (row.start or 0.0, row.end), row.interval == (None, None)
            others = first.values() if timeless else (first.get(interval), whole)
            for other in others:
                if other is not None and _contradict(annotations[other], row):
                    raise AnnotationError(
                        f"{name(other)} and {name(number)}: one video at the same time is "
                        f"{_listed(annotations[other])} and {_listed(row)}; keep one of the rows, or train "
                        "a model that names several labels of one video: --task multilabel"
                    )
            first.setdefault(interval, number)
            whole = number if timeless and whole is None else whole


def _contradict(one: Annotation, other: Annotation) -> bool:
    """Whether two rows of one file, of equal times or one without, say different things about the same frames."""
    if one.interval == other.interval or (one.interval != (None, None) and other.interval != (None, None)):
        return {*one.labels} != {*other.labels}
    whole, part = (one, other) if one.interval == (None, None) else (other, one)
    return not {*part.labels} <= {*whole.labels}  # a video shows whatever a part of it shows


def _listed(row: Annotation) -> str:
    return " with ".join(map(repr, row.labels)) or "without a label"


def join_labels(
    annotations: Sequence[Annotation], name: Callable[[int], str], originals: Mapping[Path, Path] = MappingProxyType({})
) -> list[Annotation]:
    """Rows of one video at the same time as one row with all their labels, each once, in the place of the first.

    Args:
        annotations, name, originals: as of `check_labels`.

    Raises:
        AnnotationError: such rows belong to different splits or groups.
    """
    joined: dict[tuple[Path, float, float | None], tuple[int, Annotation]] = {}
    for number, row in enumerate(annotations):
        key = originals.get(row.path, row.path), row.start or 0.0, row.end
        first, whole = joined.get(key, (number, row))
        if (whole.split, whole.group) != (row.split, row.group):
            raise AnnotationError(
                f"{name(first)} and {name(number)}: one video at the same time has the split {whole.split} and "
                f"{row.split}, the group {whole.group} and {row.group}; give its rows the same"
            )
        label, *others = dict.fromkeys((*whole.labels, *row.labels)) or [""]
        joined[key] = first, replace(whole, label=label, other_labels=tuple(others))
    return [row for _, row in joined.values()]


def parse_interval(start: str, end: str) -> Interval:
    """Seconds out of text; None for what is empty.

    Raises:
        AnnotationError: no numbers, negative, or nothing between them; the message lacks file and line.
    """
    if not start and not end:
        return None, None
    first, last = _parse_seconds(start, "start"), _parse_seconds(end, "end")
    if last is not None and last <= (first or 0):
        raise AnnotationError(f"the interval from {first or 0:g} s to {last:g} s is empty; end must be larger")
    return first, last


def _parse_seconds(text: str, column: str) -> float | None:
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        raise AnnotationError(f"{column} is {text!r}; it must be a number of seconds or empty") from None
    if not math.isfinite(seconds) or seconds < 0:
        raise AnnotationError(f"{column} is {text}; it must be 0 or more seconds")
    return seconds


Split = Literal["held-out", "train", "val", "test", "all"]


def of_split(annotations: Sequence[Annotation], split: Split) -> list[Annotation]:
    """The rows of one split: "train", "val", "test", "held-out" (all but train) or "all".

    Rows without a split belong to each of them.

    Raises:
        AnnotationError: there are none.
    """
    several: dict[str, tuple[str, ...]] = {"held-out": ("val", "test"), "all": ("train", "val", "test")}
    wanted = several.get(split, (split,))
    rows = [row for row in annotations if row.split is None or row.split in wanted]
    if not rows:
        raise AnnotationError(f"none of the {len(annotations)} videos belongs to the split {split!r}")
    return rows
