"""What is wrong with the rows of a manifest, given what is in their files. Pure; opens nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from uniformerv2.curation.copies import near_copies
from uniformerv2.curation.probe import GRID, LOOKS, Interval, Probe
from uniformerv2.data.annotations import Annotation

FINDINGS = {
    "missing": "no such file",
    "unreadable": "a wanted frame cannot be decoded",
    "kills-decoder": "reading it ends the process that reads",
    "too-short": "fewer frames than a clip has, or less than the minimum of seconds",
    "beyond-end": "the annotated interval is not within the video",
    "wrong-duration": "the container states another duration than its frames have",
    "damaged": "damaged, yet the wanted frames could be decoded",
    "duplicate": "the content of an earlier row, at the same time and with the same label",
    "leak": "trained on, and its content is in val or test as well",
    "near-duplicate": "looks like an earlier row with the same label",
    "near-leak": "trained on, and looks like a row in val or test",
    "two-labels": "the content of a row with another label, at the same time",
}
KEPT = ("damaged", "near-duplicate", "near-leak", "two-labels")
"""Findings that by default do not cost a row its place: harmless, a guess, or for the user to decide."""

_SECONDS = 0.5  # that annotated and stated times may be off: owners round them, and so do containers
_SHARE = 0.05  # that a stated duration may be off
_RANK = {"test": 0, "val": 1}  # of two copies, the one that figures depend on is the original
_ORDER = {kind: place for place, kind in enumerate(FINDINGS)}


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the manifest."""

    line: int  # in the manifest, from 1; of a folder, its position from 1
    name: str  # its path, relative to the root
    annotation: Annotation

    @property
    def interval(self) -> Interval:
        return self.annotation.start, self.annotation.end


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a row."""

    row: int  # position, from 0
    kind: str  # one of FINDINGS
    detail: str
    other: int | None = None  # position of the row that it resembles


def intervals_of(rows: Iterable[Row]) -> dict[str, tuple[Interval, ...]]:
    """The different intervals of each file, both in the order of the manifest."""
    intervals: dict[str, dict[Interval, None]] = defaultdict(dict)
    for row in rows:
        intervals[row.name][row.interval] = None
    return {name: tuple(of_file) for name, of_file in intervals.items()}


def judge(
    rows: Sequence[Row],
    probes: Mapping[str, Probe],
    missing: Mapping[str, str],
    *,
    num_frames: int,
    minimum_seconds: float,
    keep: Collection[str],
) -> list[Finding]:
    """What is wrong with each row.

    Rows that are left out for what they are in themselves are not compared with others.

    Args:
        rows: of the manifest.
        probes: what was found in the intervals (`intervals_of`) of each file, by name.
        missing: why the other files could not be looked at, by name.
        num_frames: that a row needs.
        minimum_seconds: that a row must last.
        keep: kinds of findings that cost no row its place.

    Returns:
        In the order of the rows and of `FINDINGS`.
    """
    alone = list(_alone(rows, probes, missing, num_frames, minimum_seconds))
    out = {finding.row for finding in alone if finding.kind not in keep}
    compared = list(_compared(rows, probes, [position for position in range(len(rows)) if position not in out]))
    return sorted(alone + compared, key=lambda finding: (finding.row, _ORDER[finding.kind]))


def _alone(
    rows: Sequence[Row],
    probes: Mapping[str, Probe],
    missing: Mapping[str, str],
    num_frames: int,
    minimum_seconds: float,
) -> Iterator[Finding]:
    """What each row is found to be by itself."""
    several = {name: of for name, of in intervals_of(rows).items() if len(of) > 1}
    places = {name: {one: place for place, one in enumerate(of)} for name, of in several.items()}
    for position, row in enumerate(rows):
        if row.name in missing:
            yield Finding(position, "missing", missing[row.name])
            continue
        probe = probes[row.name]
        if probe.fatal:
            yield Finding(position, "kills-decoder", f"reading it ended two processes ({probe.fatal})")
            continue
        place = places[row.name][row.interval] if row.name in places else 0
        stretch = probe.stretches[place] if probe.stretches else None
        if stretch is None or stretch.error:
            yield Finding(position, "unreadable", stretch.error if stretch else probe.error)
            continue
        if beyond := _beyond(row, probe):
            yield Finding(position, "beyond-end", beyond)
        elif stretch.frames < num_frames:
            yield Finding(position, "too-short", f"{stretch.frames} frame(s), but a clip has {num_frames}")
        elif stretch.seconds < minimum_seconds:
            yield Finding(position, "too-short", f"{stretch.seconds:.2f} s of at least {minimum_seconds:g} s")
        stated = probe.stated_seconds
        if stated is not None and abs(stated - probe.seconds) > max(_SECONDS, _SHARE * stated):
            detail = f"the container states {stated:.2f} s, but its {probe.frames} frame(s) last {probe.seconds:.2f} s"
            yield Finding(position, "wrong-duration", detail)
        if probe.damage:
            yield Finding(position, "damaged", probe.damage)


def _beyond(row: Row, probe: Probe) -> str:
    start, end = row.interval
    lasts = f"the video lasts {probe.seconds:.2f} s"
    if start is not None and start >= probe.seconds:
        return f"starts at {start:g} s, but {lasts}"
    if end is not None and end > probe.seconds + _SECONDS:
        return f"ends at {end:g} s, but {lasts}"
    return ""


def _compared(rows: Sequence[Row], probes: Mapping[str, Probe], positions: Sequence[int]) -> Iterator[Finding]:
    """What rows are found to be beside others: of the same content first, then of the same looks."""
    content = {position: probes[rows[position].name].sha256 for position in positions}
    copied: set[int] = set()
    for group in _grouped(rows, content):
        for finding in chain(_repeats(rows, group, "duplicate"), _leaks(rows, group, "leak")):
            copied.add(finding.row)
            yield finding
        yield from _conflicts(rows, group)
    pictures = {content[position]: probes[rows[position].name].picture for position in positions}
    looks = _looks(pictures)
    alike = {position: looks[of] for position, of in content.items() if position not in copied and of in looks}
    for group in _grouped(rows, alike):
        near = [position for position in group if content[position] != content[group[0]]]
        if near:
            yield from _repeats(rows, group, "near-duplicate", content)
            yield from _leaks(rows, group, "near-leak", content)


def _looks(pictures: Mapping[str, bytes]) -> dict[str, str]:
    """For the content of each video, that of the first one that looks the same."""
    contents = [content for content, picture in pictures.items() if picture]
    cells = np.frombuffer(b"".join(pictures[content] for content in contents), np.uint8)
    first = near_copies(cells.reshape(len(contents), LOOKS * GRID * GRID))
    return {content: contents[of] for content, of in zip(contents, first, strict=True)}


def _grouped(rows: Sequence[Row], keys: Mapping[int, str]) -> list[list[int]]:
    """Positions with equal keys, at least two of them, held-out rows first."""
    groups: dict[str, list[int]] = defaultdict(list)
    for position in sorted(keys, key=lambda position: (_RANK.get(rows[position].annotation.split or "", 2), position)):
        groups[keys[position]].append(position)
    return [group for group in groups.values() if len(group) > 1]


def _repeats(
    rows: Sequence[Row], group: Sequence[int], kind: str, content: Mapping[int, str] | None = None
) -> Iterator[Finding]:
    """Rows that repeat one before them; where contents are given, one of another content."""
    by_label: dict[str, list[int]] = defaultdict(list)
    for position in group:
        before = by_label[rows[position].annotation.label]
        for other in before:
            if (content is None or content[position] != content[other]) and _same_row(rows[position], rows[other]):
                yield Finding(position, kind, _named(rows[other]), other)
                break
        before.append(position)


def _leaks(
    rows: Sequence[Row], group: Sequence[int], kind: str, content: Mapping[int, str] | None = None
) -> Iterator[Finding]:
    """Rows that are trained on while others, of another content where that is given, are held out."""
    held = [position for position in group if rows[position].annotation.split in _RANK]
    for position in group:
        if rows[position].annotation.split != "train":
            continue
        other = next((one for one in held if content is None or content[one] != content[position]), None)
        if other is not None:
            yield Finding(position, kind, _named(rows[other]), other)


def _conflicts(rows: Sequence[Row], group: Sequence[int]) -> Iterator[Finding]:
    """Rows that show, at the same time, what another row gives another label."""
    by_label: dict[str, list[int]] = defaultdict(list)
    for position in group:
        by_label[rows[position].annotation.label].append(position)
    for position in group:
        row = rows[position]
        others = chain.from_iterable(of for label, of in by_label.items() if label != row.annotation.label)
        other = next((one for one in others if _overlap(row, rows[one])), None)
        if other is not None:
            yield Finding(position, "two-labels", f"{rows[other].annotation.label!r} in {_named(rows[other])}", other)


def _same_row(row: Row, other: Row) -> bool:
    """Whether two rows of the same content are the same: in one file, intervals that overlap may well be meant."""
    return row.interval == other.interval if row.name == other.name else _overlap(row, other)


def _overlap(row: Row, other: Row) -> bool:
    (start, end), (other_start, other_end) = row.interval, other.interval
    begins_before = end is None or (other_start or 0) < end
    return begins_before and (other_end is None or (start or 0) < other_end)


def _named(row: Row) -> str:
    split = f" ({row.annotation.split})" if row.annotation.split else ""
    return f"{row.name}, line {row.line}{split}"
