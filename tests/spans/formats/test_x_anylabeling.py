"""The video labels of X-AnyLabeling."""

from __future__ import annotations

from pathlib import Path

import pytest

from spans.rows import seconds, text
from uniformerv2.spans.files import read_rows
from uniformerv2.spans.formats.label_file import FormatError

SIDECAR = """{"version": "1.0.0", "type": "video_classification", "video": "film.mp4", "fps": 30.0,
"duration_ms": 120000, "width": 64, "height": 48, "labels": ["run", "walk"], "label_colors": {"run": "#ff7f0e"},
"segments": [
  {"id": "s1", "label": "run", "start_ms": 1001, "end_ms": 3500, "start_frame": 30, "end_frame": 105},
  {"id": "s2", "label": "walk", "start_ms": 3500, "end_ms": 4000, "start_frame": 105, "end_frame": 120}]}"""


def test_segments(tmp_path: Path) -> None:
    assert seconds(text(tmp_path / "film.json", SIDECAR)) == [
        ("film.mp4", "run", 1.001, 3.5),
        ("film.mp4", "walk", 3.5, 4.0),
    ]


def test_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"film\.json: version '2\.1' of X-AnyLabeling"):
        list(read_rows(text(tmp_path / "film.json", SIDECAR.replace("1.0.0", "2.1"))))


def test_a_segment_that_is_wrong(tmp_path: Path) -> None:
    rows = read_rows(text(tmp_path / "film.json", SIDECAR.replace('"end_ms": 3500', '"end": 3500')))
    assert "expected label, start_ms and end_ms" in next(rows).wrong
