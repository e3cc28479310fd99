"""Label Studio's exports, and tasks with predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spans.rows import UNEVEN, seconds, text
from uniformerv2.spans.files import read_rows, write_spans
from uniformerv2.spans.formats.label_file import FormatError
from uniformerv2.spans.span import Span

EXPORT = """[{"id": 24, "annotations": [
  {"id": 23, "completed_by": 1, "was_cancelled": false, "lead_time": 30.1, "result": [
    {"id": "aX", "origin": "manual", "to_name": "video", "from_name": "timelineLabels", "type": "timelinelabels",
     "value": {"ranges": [{"start": 2, "end": 3}], "timelinelabels": ["wave"]}},
    {"id": "bX", "origin": "manual", "to_name": "video", "from_name": "timelineLabels", "type": "timelinelabels",
     "value": {"ranges": [{"start": 6, "end": 6}], "timelinelabels": ["sit", "rest"]}},
    {"id": "cX", "to_name": "video", "from_name": "box", "type": "videorectangle",
     "value": {"framesCount": 6, "duration": 1.0, "sequence": [], "labels": ["hand"]}},
    {"id": "dX", "to_name": "video", "from_name": "note", "type": "choices", "value": {"choices": ["good"]}}]},
  {"id": 25, "was_cancelled": true, "result": [
    {"from_name": "timelineLabels", "value": {"ranges": [{"start": 1, "end": 6}], "timelinelabels": ["skipped"]}}]}],
 "predictions": [{"result": [{"value": {"ranges": [{"start": 1, "end": 2}], "timelinelabels": ["guess"]}}]}],
 "file_upload": "3d3ad63e-film.mp4", "data": {"video": "/data/upload/1/3d3ad63e-film.mp4"}, "meta": {}}]"""
OF_SOUND = """[{"id": 1, "data": {"video_url": "https://host/films/my%20film.mp4?sig=1"}, "annotations": [{"result": [
  {"original_length": 9.0, "value": {"start": 1.25, "end": 3.5, "channel": 0, "labels": ["talk"]},
   "from_name": "tricks", "to_name": "audio", "type": "labels"}]}]}]"""
MINIMAL = """[{"video": "/data/local-files/?d=films/film.mp4", "id": 3, "annotator": 1, "annotation_id": 2,
  "videoLabels": [{"ranges": [{"start": 1, "end": 4}], "timelinelabels": ["wave"]}]}]"""


def test_both_frames_of_a_range_belong_to_it_and_count_from_1(tmp_path: Path) -> None:
    file = text(tmp_path / "project-1.json", EXPORT)
    assert seconds(file) == [
        ("3d3ad63e-film.mp4", "wave", 0.04, 0.5),
        ("3d3ad63e-film.mp4", "sit", 0.9, 1.0),
        ("3d3ad63e-film.mp4", "rest", 0.9, 1.0),
    ]
    row = next(read_rows(file))
    assert row.names == ("3d3ad63e-film.mp4", "film.mp4")
    assert row.tier == "timelineLabels"
    assert row.times(lambda: UNEVEN, frame_rate=25) == (0.04, 0.12)  # where the tool counted by itself


def test_regions_of_videos_with_sound_are_seconds(tmp_path: Path) -> None:
    assert seconds(text(tmp_path / "x.json", OF_SOUND)) == [("my film.mp4", "talk", 1.25, 3.5)]


def test_the_minimal_export(tmp_path: Path) -> None:
    file = text(tmp_path / "x.json", MINIMAL)
    assert seconds(file) == [("films/film.mp4", "wave", 0.0, 0.54)]
    assert next(read_rows(file)).tier == "videoLabels"


def test_predictions_are_read_where_nobody_labelled(tmp_path: Path) -> None:
    write_spans({"film.mp4": [Span(0.1, 0.54, "x", 0.5)]}, tmp_path / "x.json", "label_studio", frames=lambda _: UNEVEN)
    (task,) = json.loads((tmp_path / "x.json").read_text())
    assert task["data"] == {"video": "film.mp4"}
    (region,) = task["predictions"][0]["result"]
    assert region["value"] == {"ranges": [{"start": 3, "end": 4}], "timelinelabels": ["x"]}
    assert (region["type"], region["score"]) == ("timelinelabels", 0.5)
    assert [(row.score, row.label) for row in read_rows(tmp_path / "x.json")] == [(0.5, "x")]


def test_an_address_that_is_none(tmp_path: Path) -> None:
    content = OF_SOUND.replace("https://host/", "https://[host/")
    assert seconds(text(tmp_path / "x.json", content))[0][0] == "https://[host/films/my%20film.mp4?sig=1"


def test_a_range_that_is_wrong(tmp_path: Path) -> None:
    content = EXPORT.replace('{"start": 2, "end": 3}', '{"start": 2, "end": null}')
    assert "expected frames as start and end" in next(read_rows(text(tmp_path / "x.json", content))).wrong


def test_exports_before_1_0_are_refused(tmp_path: Path) -> None:
    old = '[{"id": 1, "data": {"video": "a.mp4"}, "completions": [{"result": []}]}]'
    with pytest.raises(FormatError, match=r"x\.json, entry 1: exported by Label Studio before 1\.0"):
        list(read_rows(text(tmp_path / "x.json", old)))
