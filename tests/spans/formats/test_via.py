"""Projects of VIA 3."""

from __future__ import annotations

from pathlib import Path

import pytest

from spans.rows import seconds, text
from uniformerv2.spans.files import read_rows
from uniformerv2.spans.formats.label_file import FormatError

PROJECT = """{"project": {"pid": "__VIA_PROJECT_ID__", "rev": "__VIA_PROJECT_REV_ID__", "pname": "Films",
  "data_format_version": "3.1.1", "creator": "VGG Image Annotator", "created": 1588343615019, "vid_list": ["1", "2"]},
"config": {"file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}}, "ui": {}},
"attribute": {
  "1": {"aname": "Activity", "anchor_id": "FILE1_Z2_XY0", "type": 4, "desc": "", "options": {"1": "wave", "2": "sit"},
        "default_option_id": "2"},
  "2": {"aname": "Mood", "anchor_id": "FILE1_Z2_XY0", "type": 1, "desc": "", "options": {}, "default_option_id": ""},
  "3": {"aname": "Hands", "anchor_id": "FILE1_Z2_XY0", "type": 2, "options": {"1": "left", "2": "right"}}},
"file": {"1": {"fid": "1", "fname": "film.mp4", "type": 4, "loc": 1, "src": ""},
         "2": {"fid": 2, "fname": "", "type": 4, "loc": 2, "src": "https://host/b.ogv"}},
"view": {"1": {"fid_list": ["1"]}, "2": {"fid_list": [2]}},
"metadata": {
  "1_a": {"vid": "1", "flg": 0, "z": [2, 6.5], "xy": [], "av": {"1": "1", "2": "merry"}},
  "1_b": {"vid": "1", "flg": 0, "z": [0.917], "xy": [4, 263, 184, 17, 13], "av": {"2": "Egg"}},
  "2_c": {"vid": "2", "flg": 0, "z": [9, 20], "xy": [], "av": {"1": "_DEFAULT", "3": "1,2"}},
  "2_d": {"vid": "2", "flg": 0, "z": [21, 22], "xy": [], "av": {"2": ""}}}}"""


def test_each_attribute_of_a_segment_is_a_label(tmp_path: Path) -> None:
    file = text(tmp_path / "via_project.json", PROJECT)
    assert seconds(file) == [
        ("film.mp4", "wave", 2.0, 6.5),
        ("film.mp4", "merry", 2.0, 6.5),
        ("b.ogv", "sit", 9.0, 20.0),
        ("b.ogv", "left", 9.0, 20.0),
        ("b.ogv", "right", 9.0, 20.0),
        ("b.ogv", "", 21.0, 22.0),
    ]
    assert [(row.tier, row.skip) for row in read_rows(file)][:3] == [
        ("Activity", ""),
        ("Mood", ""),
        ("", "no temporal segment"),  # a region of a frame
    ]


@pytest.mark.parametrize(
    "content",
    [PROJECT.replace("3.1.1", "4.0.0"), '{"_via_settings": {}, "_via_img_metadata": {}, "_via_attributes": {}}'],
)
def test_other_versions_are_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(FormatError, match=r"x\.json: a project of another version of VIA"):
        list(read_rows(text(tmp_path / "x.json", content)))


def test_metadata_that_is_wrong(tmp_path: Path) -> None:
    rows = read_rows(text(tmp_path / "x.json", PROJECT.replace('"z": [2, 6.5]', '"z": 2')))
    assert 'expected "z": [start, end]' in next(rows).wrong
