"""ActivityNet's JSON, which HACS Segments and many others use: `database` of annotations, or `results` of a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from uniformerv2.errors import AnnotationError
from uniformerv2.spans.formats.label_file import FrameSource, LabelFile, SpanRow, entries, number, table, timed
from uniformerv2.spans.formats.thumos import split_of_video
from uniformerv2.spans.span import Spans
from uniformerv2.text import short_json
from uniformerv2.video.suffixes import VIDEO_SUFFIXES


def is_activitynet(file: LabelFile) -> bool:
    return isinstance(table(file.json).get("database", table(file.json).get("results")), dict)


def read_activitynet(file: LabelFile) -> Iterator[SpanRow]:
    """An entry is a video. Its name in the benchmark's own files begins with v_."""
    for key in ("database", "results"):
        for place, (video, entry) in enumerate(table(file.json.get(key)).items(), start=1):
            is_truth = key == "database"
            row = SpanRow(place, (f"v_{video}", video) if is_truth else (video, f"v_{video}"))
            found = entry
            if is_truth:
                # THUMOS is shared in this form too
                row = row._replace(split=split_of_video(video) or str(table(entry).get("subset", "")))
                found = entry.get("annotations") if isinstance(entry, dict) else [entry]
            yield from (_row(row, one) for one in entries(found))


def _row(row: SpanRow, found: Any) -> SpanRow:
    match found:
        case {"segment": [start, end], "label": str() as label}:
            score = number(found.get("score", 1.0))
            if score is None:
                return row._replace(label=label, wrong=f"found the score {short_json(found['score'])}, not a number")
            return timed(row._replace(label=label, score=score), start, end)
    return row._replace(wrong=f'found {short_json(found, longest=80)}, expected "segment": [start, end] and "label"')


def write_results(spans: Spans, _frames: FrameSource) -> str:
    """What the benchmark's evaluator takes as predictions, in full precision."""
    results = {
        name: [{"label": span.label, "score": span.score, "segment": [span.start, span.end]} for span in spans[video]]
        for name, video in _videos(spans).items()
    }
    # indented, half a million spans would take twenty times as long
    return json.dumps({"version": "VERSION 1.3", "results": results, "external_data": {}}, ensure_ascii=False)


def write_ground_truth(spans: Spans, frames: FrameSource) -> str:
    """What the benchmark's evaluator takes as the truth; all videos belong to the subset that it looks at."""
    database = {
        name: {
            "duration": frames(video).duration,
            "subset": "validation",
            "annotations": [{"label": span.label, "segment": [span.start, span.end]} for span in spans[video]],
        }
        for name, video in _videos(spans).items()
    }
    return json.dumps({"version": "VERSION 1.3", "taxonomy": [], "database": database}, ensure_ascii=False)


def _videos(spans: Spans) -> dict[str, str]:
    """The videos by their names as the evaluator has them: without folders, suffix and v_."""
    found: dict[str, str] = {}
    for video in spans:
        path = PurePosixPath(video)
        name = (path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name).removeprefix("v_")
        if name in found:
            raise AnnotationError(
                f"{video}: {found[name]} has the same name {name!r}, and ActivityNet knows no folders"
            )
        found[name] = video
    return found
