"""What several labels at a time are scored on: annotations of Charades and MultiTHUMOS, and scores of every class."""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uniformerv2.data.tables import csv_rows, text_lines
from uniformerv2.errors import AnnotationError
from uniformerv2.spans.scored_files import read_json
from uniformerv2.text import short_json

Array = np.ndarray[Any, np.dtype[Any]]
_ACTION = re.compile(r"c(\d{3}) +([\d.]+) +([\d.]+)")


class AnnotatedVideo(NamedTuple):
    """A video as its data set has it."""

    name: str
    seconds: float
    actions: list[tuple[int, float, float]]  # number of the class, from 0, start and end in seconds


def read_charades(path: Path, *, classes: int) -> list[AnnotatedVideo]:
    """Charades_v1_test.csv: the columns id, length and actions, which may be empty. Raises AnnotationError."""
    rows = csv_rows(path)
    _, header = next(rows, (1, []))
    if missing := {"id", "length", "actions"} - {*header}:
        raise AnnotationError(f"{path}, line 1: no column {', '.join(sorted(missing))}; expected Charades_v1_test.csv")
    places = [header.index(name) for name in ("id", "length", "actions")]
    return [_charades_video(f"{path}, line {line}", cells, places, classes) for line, cells in rows]


def _charades_video(where: str, cells: list[str], places: list[int], classes: int) -> AnnotatedVideo:
    if len(cells) <= max(places):
        raise AnnotationError(f"{where}: {len(cells)} cells, fewer than columns; quote cells with commas")
    name, length, actions = (cells[place].strip() for place in places)
    found = [(action, _ACTION.fullmatch(action)) for action in filter(None, map(str.strip, actions.split(";")))]
    for action, match in found:
        if match is None or int(match[1]) >= classes:
            raise AnnotationError(f"{where}: {action[:80]!r}; expected CLASS START END with c000 to c{classes - 1:03}")
    try:
        times = [(int(match[1]), float(match[2]), float(match[3])) for _, match in found if match]
        return AnnotatedVideo(name, _positive(float(length)), times)
    except ValueError:
        raise AnnotationError(f"{where}: length {length!r} with {actions[:80]!r}; expected seconds") from None


def read_multithumos(path: Path, *, classes: int, subset: str = "testing") -> list[AnnotatedVideo]:
    """`multithumos.json` as Super-Events published it; the videos of a subset.

    A video has "subset", "duration" in seconds and "actions", each [class from 1, start, end].

    Raises:
        AnnotationError: another form, or nothing of the subset.
    """
    content = read_json(path)
    entries = content.items() if isinstance(content, dict) else ()
    videos = []
    for name, entry in entries:
        try:
            if entry["subset"] != subset:
                continue
            actions = [(int(number) - 1, float(start), float(end)) for number, start, end in entry["actions"]]
            if not all(0 <= number < classes for number, *_ in actions):
                raise ValueError
            videos.append(AnnotatedVideo(name, _positive(float(entry["duration"])), actions))
        except (KeyError, TypeError, ValueError):
            raise AnnotationError(
                f'{path}, video {name!r}: expected "subset", "duration" and "actions" of [CLASS, START, END] with '
                f"classes from 1 to {classes}, got {short_json(entry)}"
            ) from None
    if not videos:
        raise AnnotationError(f'{path}: no video with "subset": "{subset}"; expected multithumos.json')
    return videos


def _positive(seconds: float) -> float:
    if not 0 < seconds < math.inf:
        raise ValueError(seconds)
    return seconds


def read_submission(path: Path, *, classes: int, frames: int) -> dict[str, Array]:
    """A text as Charades' scripts take it: a line VIDEO FRAME SCORE ... a frame, or VIDEO SCORE ... a video.

    Args:
        path: the file.
        classes: how many scores a line has.
        frames: how many a video has, counted from 1, or from 0 where one is 0; 0: lines are of videos. Further ones are
            left out.

    Returns:
        By video, float64 (frames, classes), or (1, classes) of whole videos; -inf for frames that are missing.

    Raises:
        AnnotationError: another form, a score that is no number, or a frame or video twice; names the line.
    """
    expected = f"VIDEO {'FRAME ' * bool(frames)}and {classes} scores"
    found: dict[str, dict[int, Array]] = {}
    for number, line in text_lines(path):
        name, *cells = line.split()
        where, scores = f"{path}, line {number}", cells[bool(frames) :]
        if len(scores) != classes:
            raise AnnotationError(f"{where}: {len(cells)} values after {name[:40]!r}; expected {expected}")
        try:
            frame, values = int(cells[0]) if frames else 1, np.array(scores, dtype=np.float64)
        except ValueError:
            raise AnnotationError(f"{where}: {line[:80]!r}; expected {expected}") from None
        of_video = found.setdefault(name, {})
        if frame < 0 or frame in of_video:
            raise AnnotationError(
                f"{where}: {f'frame {frame} of ' * bool(frames)}{name!r} is negative or stands there twice"
            )
        of_video[frame] = values
    first = 0 if any(0 in of_video for of_video in found.values()) else 1
    none = np.full(classes, -np.inf)
    return {
        name: np.stack([of_video.get(frame + first, none) for frame in range(frames or 1)])
        for name, of_video in found.items()
    }


def read_arrays(path: Path) -> dict[str, Array]:
    """A file .npz with scores for each video, (frames, classes) or (classes). Raises AnnotationError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: np.atleast_2d(arrays[name]).astype(np.float64) for name in arrays.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise AnnotationError(f"{path}: cannot be read as .npz with an array for each video: {error}") from None
