"""Windows of films outside all of their spans, from which a model learns what none of its classes looks like."""

from __future__ import annotations

import random
import warnings
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from uniformerv2.data.annotations import Annotation, Interval
from uniformerv2.data.content import same_files
from uniformerv2.data.shards import video_source
from uniformerv2.errors import AnnotationError, VideoError
from uniformerv2.progress import bar, say
from uniformerv2.video.reader import VideoReader

BACKGROUND = "background"
_TOLERANCE = 0.5  # seconds that a span may reach past the end of its film: owners round times, and so do containers

Gap = tuple[float, float]  # start and end in seconds


def with_background(
    training: Sequence[Annotation],
    held_out: Sequence[Annotation],
    *,
    share: float,
    label: str = BACKGROUND,
    seed: int = 0,
    progress: bool = False,
) -> tuple[list[Annotation], list[Annotation]]:
    """The rows of both sides, each followed by windows of its films that have no frame of any row.

    They are `share` of the rows of a side then. A window is as long as a span of its side, drawn among those that fit;
    films take turns, however long they are, and windows do not overlap. Where nothing fits any more there are
    fewer, which is told.

    Args:
        training, held_out: rows of files with times; a row without an end lasts until the end of its file.
        share: in (0, 1).
        label: of the windows; "": none.
        seed: equal rows and an equal seed give equal windows.
        progress: whether to show a bar and how many were drawn.

    Raises:
        AnnotationError: a row has the label already, no training row has an end, a span reaches past the end of its
            file, or nothing fits into the training files. Where that is so of held-out files, a warning says it.
    """
    for row in (*training, *held_out):
        if taken := [one for one in row.labels if one.casefold() == BACKGROUND]:
            raise AnnotationError(
                f"{row.path}: its label {taken[0]!r} is what windows of background are called; rename it, or leave "
                "--background out, and its rows are a class like others"
            )
    options: Any = {"share": share, "label": label, "seed": seed, "progress": progress}
    drawn, measured = _draw(training, "training", **options), list[Annotation]()
    if held_out:
        try:
            measured = _draw(held_out, "held-out", **options)
        except _NothingFits as error:
            warnings.warn(f"nothing is held out of {BACKGROUND}: {error}", stacklevel=1)
    return [*training, *drawn], [*held_out, *measured]


class _NothingFits(AnnotationError):
    """There is no room outside the spans, or no span to say how long a window should be."""


def _draw(
    rows: Sequence[Annotation], side: str, *, share: float, label: str, seed: int, progress: bool
) -> list[Annotation]:
    lengths = sorted(row.end - (row.start or 0.0) for row in rows if row.end is not None)
    if not lengths:
        raise _NothingFits(
            f"{rows[0].path}: none of {len(rows)} rows has an end, and a file that is trimmed to its action has "
            "nothing outside; --background needs films with spans, path,label,start,end (docs/training.md)"
        )
    films, rng = _films(rows), random.Random(f"{seed} {side} {BACKGROUND}")
    waiting, found = deque(rng.sample(films, len(films))), list[Annotation]()
    wanted = max(1, round(share / (1 - share) * len(rows)))
    with bar("looking for background", wanted, progress=progress) as advance:
        while waiting and len(found) < wanted:
            film = waiting.popleft()
            if (window := film.take(lengths, rng)) is not None:
                found.append(replace(film.rows[0], label=label, other_labels=(), start=window[0], end=window[1]))
                waiting.append(film)
                advance(1)
    if not found:
        unread = [film.unreadable for film in films if film.unreadable]
        reason = f"; {len(unread)} of them cannot be read, such as {unread[0]}" if unread else ""
        raise _NothingFits(
            f"no window as long as the shortest span, {lengths[0]:g} s, fits between the spans of {len(films)} {side} "
            f"films such as {rows[0].path}{reason}; label shorter spans, give longer films, or leave --background out"
        )
    fewer = f", not {wanted}, as no more fit between the spans" if len(found) < wanted else ""
    sources = len({row.path for row in found})
    say(f"{len(found)} windows of background from {sources} {side} films{fewer}", progress=progress)
    return found


def _films(rows: Sequence[Annotation]) -> list[_Film]:
    """Rows of a file together, also where links give it several names."""
    first, of_file = same_files(row.path for row in rows), defaultdict[Path, list[Annotation]](list)
    for row in rows:
        of_file[first[row.path]].append(row)
    return [_Film(found) for found in of_file.values()]


@dataclass
class _Film:
    """A file, opened when its first window is wanted."""

    rows: Sequence[Annotation]
    unreadable: str = ""  # why

    def take(self, lengths: Sequence[float], rng: random.Random) -> Gap | None:
        """A window as long as one of these, which rise; None if none of them fits. What it covers is taken."""
        longest = max((end - start for start, end in self.gaps), default=0.0)
        fitting = lengths[: bisect_right(lengths, longest)]
        if not fitting:
            return None
        length = rng.choice(fitting)
        roomy = [gap for gap in self.gaps if gap[1] - gap[0] >= length]
        gap = rng.choices(roomy, weights=[end - start for start, end in roomy])[0]
        start = rng.uniform(gap[0], gap[1] - length)
        window = start, min(start + length, gap[1])
        at = self.gaps.index(gap)
        self.gaps[at : at + 1] = [(gap[0], window[0]), (window[1], gap[1])]
        return window

    @cached_property
    def gaps(self) -> list[Gap]:
        """Parts whose frames no row has, in order; none of a file that cannot be read, as training will tell.

        Raises:
            AnnotationError: a span reaches past the end.
        """
        if any(row.interval == (None, None) for row in self.rows):
            return []
        path = self.rows[0].path
        try:
            with VideoReader(video_source(path), threads=1, name=str(path)) as reader:
                self._check_ends(reader.duration)
                return _outside([row.interval for row in self.rows], reader)
        except (VideoError, OSError) as error:
            self.unreadable = str(error)
            return []

    def _check_ends(self, duration: float) -> None:
        for row in self.rows:
            if max(row.start or 0.0, row.end or 0.0) > duration + _TOLERANCE:
                end = "the end" if row.end is None else f"{row.end:g} s"
                raise AnnotationError(
                    f"{row.path}: {row.label!r} from {row.start or 0:g} s to {end}, but the file lasts {duration:g} s, "
                    "so that nobody knows what lies outside; correct the times (`uniformerv2 data check`)"
                )


def _outside(intervals: Sequence[Interval], reader: VideoReader) -> list[Gap]:
    """From frame to frame, as an interval has the frames that are shown at its two ends."""
    shown = np.zeros(len(reader), dtype=bool)
    for start, end in intervals:
        first, count = reader.frames_between(start, end)
        shown[first : first + count] = True
    starts = np.append(reader.ticks * reader.tick, reader.duration)
    # borders between frames that are shown and others: pairs of first and one after the last
    borders = np.flatnonzero(np.diff(shown, prepend=True, append=True)).reshape(-1, 2)
    last = [end if end == len(reader) else end - 1 for end in borders[:, 1]]
    return [(float(starts[first]), float(starts[end])) for first, end in zip(borders[:, 0], last, strict=True)]
