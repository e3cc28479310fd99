"""ActivityNet's JSON: ground truth (`database`) and predictions (`results`), as its evaluator takes them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from uniformerv2.errors import AnnotationError
from uniformerv2.spans.span import Span, Spans
from uniformerv2.text import parse_json, short_json


def read_ground_truth(path: str | Path) -> dict[str, Spans]:
    """The annotated spans of each subset, in the order of the file; "" of videos without a `subset`.

    Raises:
        AnnotationError: the file cannot be read or has another form; the message names the video and the annotation.
    """
    subsets: dict[str, Spans] = {}
    for video, entry in _videos(Path(path), "database"):
        place = f"{path}, video {video!r}"
        if not isinstance(entry, dict):
            raise AnnotationError(
                f'{place}: expected an object with "subset" and "annotations", got {short_json(entry)}'
            )
        subset = entry.get("subset", "")
        if not isinstance(subset, str):
            raise AnnotationError(f'{place}: "subset" must be a name, got {short_json(subset)}')
        annotations = _spans(entry.get("annotations", []), f"{place}, annotation", scored=False)
        subsets.setdefault(subset, {})[video] = annotations
    return subsets


def read_predictions(path: str | Path) -> Spans:
    """The predicted spans, in the order of the file, which decides between equal scores.

    Raises:
        AnnotationError: the file cannot be read or has another form; the message names the video and the prediction.
    """
    return {
        video: _spans(entry, f"{path}, video {video!r}, prediction", scored=True)
        for video, entry in _videos(Path(path), "results")
    }


def read_json(path: Path) -> Any:
    """What a file says in JSON, where no object has a key twice. Raises AnnotationError."""
    try:
        return parse_json(path.read_bytes(), repeats=False)
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise AnnotationError(f"{path}: cannot be read as JSON: {error}") from None


def _videos(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    """What stands in a field of the file, video by video."""
    content = read_json(path)
    videos = content.get(field) if isinstance(content, dict) else None
    if not isinstance(videos, dict):
        raise AnnotationError(
            f'{path}: no object "{field}"; videos are in "database" of a ground truth and in "results" of predictions'
        )
    yield from videos.items()


def _spans(entries: Any, place: str, *, scored: bool) -> list[Span]:
    if not isinstance(entries, list):
        raise AnnotationError(f"{place}s: expected a list, got {short_json(entries)}")
    return [_span(entry, place, number, scored=scored) for number, entry in enumerate(entries, start=1)]


def _span(entry: Any, place: str, number: int, *, scored: bool) -> Span:
    if not isinstance(entry, dict):
        raise AnnotationError(f"{place} {number}: expected an object, got {short_json(entry)}")
    segment, label, score = entry.get("segment"), entry.get("label"), entry.get("score") if scored else 1
    if not (isinstance(segment, list) and len(segment) == 2 and all(map(_is_number, segment))):
        raise AnnotationError(
            f'{place} {number}: "segment" must be [start, end] in seconds, got {_found(entry, "segment")}'
        )
    if segment[0] > segment[1]:
        raise AnnotationError(
            f"{place} {number}: ends at {segment[1]} s, before it starts at {segment[0]} s; exchange the times, or "
            "leave it out"
        )
    if not (isinstance(label, str) and label):
        raise AnnotationError(f'{place} {number}: "label" must be a name, got {_found(entry, "label")}')
    if not _is_number(score):
        raise AnnotationError(f'{place} {number}: "score" must be a number, got {_found(entry, "score")}')
    return Span(float(segment[0]), float(segment[1]), label, float(score))


def _is_number(value: Any) -> TypeGuard[float]:
    # a bool is an int, too; nan is below nothing; JSON's whole numbers may be too large for a float
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _found(entry: dict[str, Any], field: str) -> str:
    return short_json(entry[field]) if field in entry else "nothing"
