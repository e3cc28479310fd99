"""Label Studio: exports as JSON and JSON-MIN, and tasks with predictions. Frames are counted from 1."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from uniformerv2.spans.formats.label_file import (
    FormatError,
    FrameSource,
    LabelFile,
    SpanRow,
    entries,
    number,
    table,
    timed,
)
from uniformerv2.spans.span import Spans
from uniformerv2.text import short_json
from uniformerv2.video.suffixes import VIDEO_SUFFIXES

_CONTROL, _OBJECT = "videoLabels", "video"  # as in Label Studio's own template
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what an upload puts before the name of a file


def is_label_studio(file: LabelFile) -> bool:
    tasks = entries(file.json)
    return any(
        "completions" in found or ("data" in found and {"annotations", "predictions"} & found.keys()) or _minimal(found)
        for found in map(table, tasks)
    )


def read_label_studio(file: LabelFile) -> Iterator[SpanRow]:
    """Of a task, the annotations that were not cancelled; its predictions where it has none. Tiers are controls.

    A region has `ranges` of frames, both ends included, or `start` and `end` in seconds as for videos with sound.
    """
    tasks = entries(file.json)
    for entry, task in enumerate(map(table, tasks), start=1):
        if "completions" in task:
            raise FormatError(f"{file.path}, entry {entry}: exported by Label Studio before 1.0; expected 1.0 or later")
        if "data" not in task:
            row = SpanRow(entry, _names(task))
            for control, regions in _minimal(task).items():
                for region in regions:
                    yield from _spans(row._replace(tier=control), region)
            continue
        row = SpanRow(entry, _names(table(task["data"])))
        annotations = [one for one in map(table, entries(task.get("annotations"))) if not one.get("was_cancelled")]
        for annotation in annotations or map(table, entries(task.get("predictions"))):
            for region in map(table, entries(annotation.get("result"))):
                score = number(region.get("score", 1.0))  # null of people's regions in some versions
                of_region = row._replace(tier=str(region.get("from_name", "")), score=1.0 if score is None else score)
                yield from _spans(of_region, table(region.get("value")))


def _minimal(task: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """The regions with times of a task of JSON-MIN, by control."""
    regions = {
        control: [region for region in map(table, found) if "ranges" in region or {"start", "end"} <= region.keys()]
        for control, found in task.items()
        if isinstance(found, list)
    }
    return {control: found for control, found in regions.items() if found}


def _names(data: Mapping[str, Any]) -> tuple[str, ...]:
    """What the video may be called, by the addresses in the data of a task."""
    paths = [_path(address) for address in (data.get("video"), *data.values()) if isinstance(address, str)]
    videos = [path for path in paths if PurePosixPath(path).suffix.lower() in VIDEO_SUFFIXES] or paths[:1]
    names: list[str] = []
    for path in videos:
        name = path.rpartition("/")[2]
        # folders of the server are none of ours, but those of a relative path may be
        names += [path if not path.startswith("/") else name, name, _UPLOADED.sub("", name, count=1)]
    return tuple(dict.fromkeys(names)) or ("",)


def _path(address: str) -> str:
    """The path in an address, or the one that Label Studio serves from its own disk."""
    if "://" not in address and not address.startswith("/data/"):
        return address.replace("\\", "/")
    try:
        parts = urlsplit(address)
    except ValueError:  # such as brackets that do not close
        return address
    return parse_qs(parts.query).get("d", [unquote(parts.path)])[0]


def _spans(row: SpanRow, value: Mapping[str, Any]) -> Iterator[SpanRow]:
    """A span for each range and label; nothing of regions that have no times, such as boxes and choices."""
    labels = entries(value.get("timelinelabels", value.get("labels")))
    for label in [label for label in labels if isinstance(label, str)] or [""]:
        found = row._replace(label=label)
        for of_frames in entries(value.get("ranges")):
            match of_frames:
                case {"start": int() as start, "end": int() as end}:
                    yield found._replace(frames=(start - 1, end))
                case _:
                    given = short_json(of_frames, longest=80)
                    yield found._replace(wrong=f"found the range {given}, expected frames as start and end")
        if "ranges" not in value and "start" in value and "end" in value:
            yield timed(found, value["start"], value["end"])


def write_label_studio(spans: Spans, frames: FrameSource) -> str:
    """Tasks with predictions; `data.video` is the name that the spans go by."""
    tasks = []
    for video, of_video in spans.items():
        film = frames(video)
        regions = []
        for place, span in enumerate(of_video):
            first, past = film.span(span.start, span.end)
            value = {"ranges": [{"start": first + 1, "end": past}], "timelinelabels": [span.label]}
            names = {"id": f"span{place}", "from_name": _CONTROL, "to_name": _OBJECT, "type": "timelinelabels"}
            regions.append({**names, "score": span.score, "value": value})
        predictions = [{"model_version": "uniformerv2", "result": regions}]
        tasks.append({"data": {_OBJECT: video}, "predictions": predictions})
    return json.dumps(tasks, ensure_ascii=False)
