"""What is wrong with the rows of a manifest, given what is in their files. Pure; opens nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np

from uniformerv2.curation.copies import near_copies
from uniformerv2.curation.findings import FINDING_KINDS, Finding, FindingKind, ManifestRow
from uniformerv2.curation.probe import THUMBNAIL_SIDE, THUMBNAILS, Probe
from uniformerv2.data.annotations import Interval

_SECONDS = 0.5  # tolerance of annotated and stated times: owners round them, and so do containers
_SHARE = 0.05  # tolerance of a stated duration
_RANK = {"test": 0, "val": 1}  # of two copies, the held-out row counts as the original
_ORDER = {kind: place for place, kind in enumerate(FINDING_KINDS)}


def intervals_of(rows: Iterable[ManifestRow]) -> dict[str, tuple[Interval, ...]]:
    """The different intervals of each file, both in the order of the manifest."""
    intervals: dict[str, dict[Interval, None]] = defaultdict(dict)
    for row in rows:
        intervals[row.name][row.annotation.interval] = None
    return {name: tuple(of_file) for name, of_file in intervals.items()}


def judge(
    rows: Sequence[ManifestRow],
    probes: Mapping[str, Probe],
    missing: Mapping[str, str],
    *,
    num_frames: int,
    minimum_seconds: float,
    keep: Collection[str],
) -> list[Finding]:
    """What is wrong with each row.

    Rows that are left out for what is wrong with them alone are not compared with others.

    Args:
        rows: of the manifest.
        probes: what was found in the intervals (`intervals_of`) of each file, by name.
        missing: why the other files could not be opened, by name.
        num_frames: a row needs so many.
        minimum_seconds: a row must last so long.
        keep: kinds of findings that leave a row in the manifest.

    Returns:
        In the order of the rows and of `FINDING_KINDS`.
    """
    single = list(_row_findings(rows, probes, missing, num_frames, minimum_seconds))
    out = {finding.row for finding in single if finding.kind not in keep}
    pairs = list(_pair_findings(rows, probes, [position for position in range(len(rows)) if position not in out]))
    return sorted(single + pairs, key=lambda finding: (finding.row, _ORDER[finding.kind]))


def _row_findings(
    rows: Sequence[ManifestRow],
    probes: Mapping[str, Probe],
    missing: Mapping[str, str],
    num_frames: int,
    minimum_seconds: float,
) -> Iterator[Finding]:
    """What is wrong with each row by itself."""
    several = {name: of for name, of in intervals_of(rows).items() if len(of) > 1}
    places = {name: {interval: place for place, interval in enumerate(of)} for name, of in several.items()}
    for position, row in enumerate(rows):
        if row.name in missing:
            yield Finding(position, "missing", missing[row.name])
            continue
        probe = probes[row.name]
        if probe.fatal:
            yield Finding(position, "kills-decoder", f"reading it ended two processes ({probe.fatal})")
            continue
        place = places[row.name][row.annotation.interval] if row.name in places else 0
        interval = probe.intervals[place] if probe.intervals else None
        if interval is None or interval.error:
            yield Finding(position, "unreadable", interval.error if interval else probe.error)
            continue
        if beyond := _beyond(row, probe):
            yield Finding(position, "beyond-end", beyond)
        elif interval.frames < num_frames:
            yield Finding(position, "too-short", f"{interval.frames} frame(s), but a clip has {num_frames}")
        elif interval.seconds < minimum_seconds:
            yield Finding(position, "too-short", f"{interval.seconds:.2f} s of at least {minimum_seconds:g} s")
        stated = probe.stated_seconds
        if stated is not None and abs(stated - probe.seconds) > max(_SECONDS, _SHARE * stated):
            detail = f"the container states {stated:.2f} s, but its {probe.frames} frame(s) last {probe.seconds:.2f} s"
            yield Finding(position, "wrong-duration", detail)
        if probe.damage:
            yield Finding(position, "damaged", probe.damage)


def _beyond(row: ManifestRow, probe: Probe) -> str:
    start, end = row.annotation.interval
    lasts = f"the video lasts {probe.seconds:.2f} s"
    if start is not None and start >= probe.seconds:
        return f"starts at {start:g} s, but {lasts}"
    if end is not None and end > probe.seconds + _SECONDS:
        return f"ends at {end:g} s, but {lasts}"
    return ""


def _pair_findings(
    rows: Sequence[ManifestRow], probes: Mapping[str, Probe], positions: Sequence[int]
) -> Iterator[Finding]:
    """What is wrong with rows beside other rows: with equal content first, then with similar pictures."""
    content = {position: probes[rows[position].name].sha256 for position in positions}
    copied: set[int] = set()
    for group in _grouped(rows, content):
        for finding in chain(_repeats(rows, group, "duplicate"), _leaks(rows, group, "leak")):
            copied.add(finding.row)
            yield finding
        yield from _conflicts(rows, group)
    thumbnails = {content[position]: probes[rows[position].name].thumbnails for position in positions}
    first = _first_copies(thumbnails)
    similar = {position: first[of] for position, of in content.items() if position not in copied and of in first}
    for group in _grouped(rows, similar):
        near = [position for position in group if content[position] != content[group[0]]]
        if near:
            yield from _repeats(rows, group, "near-duplicate", content)
            yield from _leaks(rows, group, "near-leak", content)


def _first_copies(thumbnails: Mapping[str, bytes]) -> dict[str, str]:
    """For the content of each video, that of the first video that it is a near copy of, or its own."""
    contents = [content for content, found in thumbnails.items() if found]
    luma = np.frombuffer(b"".join(thumbnails[content] for content in contents), np.uint8)
    first = near_copies(luma.reshape(len(contents), THUMBNAILS * THUMBNAIL_SIDE**2))
    return {content: contents[of] for content, of in zip(contents, first, strict=True)}


def _grouped(rows: Sequence[ManifestRow], keys: Mapping[int, str]) -> list[list[int]]:
    """Positions with equal keys, at least two of them, held-out rows first."""
    groups: dict[str, list[int]] = defaultdict(list)
    for position in sorted(keys, key=lambda position: (_RANK.get(rows[position].annotation.split or "", 2), position)):
        groups[keys[position]].append(position)
    return [group for group in groups.values() if len(group) > 1]


def _repeats(
    rows: Sequence[ManifestRow], group: Sequence[int], kind: FindingKind, content: Mapping[int, str] | None = None
) -> Iterator[Finding]:
    """Rows that repeat an earlier row; where contents are given, an earlier row of other content."""
    by_label: dict[str, list[int]] = defaultdict(list)
    for position in group:
        before = by_label[rows[position].annotation.label]
        for other in before:
            if (content is None or content[position] != content[other]) and _same_row(rows[position], rows[other]):
                yield Finding(position, kind, _named(rows[other]), other)
                break
        before.append(position)


def _leaks(
    rows: Sequence[ManifestRow], group: Sequence[int], kind: FindingKind, content: Mapping[int, str] | None = None
) -> Iterator[Finding]:
    """Rows that are trained on while others, of another content where that is given, are held out."""
    held = [position for position in group if rows[position].annotation.split in _RANK]
    for position in group:
        if rows[position].annotation.split != "train":
            continue
        other = next((row for row in held if content is None or content[row] != content[position]), None)
        if other is not None:
            yield Finding(position, kind, _named(rows[other]), other)


def _conflicts(rows: Sequence[ManifestRow], group: Sequence[int]) -> Iterator[Finding]:
    """Rows that show, at the same time, what another row gives another label."""
    by_label: dict[str, list[int]] = defaultdict(list)
    for position in group:
        by_label[rows[position].annotation.label].append(position)
    for position in group:
        row = rows[position]
        others = chain.from_iterable(of for label, of in by_label.items() if label != row.annotation.label)
        other = next((position for position in others if _overlap(row, rows[position])), None)
        if other is not None:
            yield Finding(position, "two-labels", f"{rows[other].annotation.label!r} in {_named(rows[other])}", other)


def _same_row(row: ManifestRow, other: ManifestRow) -> bool:
    """Whether two rows of the same content are the same: in one file, intervals that overlap may well be meant."""
    return row.annotation.interval == other.annotation.interval if row.name == other.name else _overlap(row, other)


def _overlap(row: ManifestRow, other: ManifestRow) -> bool:
    (start, end), (other_start, other_end) = row.annotation.interval, other.annotation.interval
    begins_before = end is None or (other_start or 0) < end
    return begins_before and (other_end is None or (start or 0) < other_end)


def _named(row: ManifestRow) -> str:
    split = f" ({row.annotation.split})" if row.annotation.split else ""
    return f"{row.name}, line {row.line}{split}"
