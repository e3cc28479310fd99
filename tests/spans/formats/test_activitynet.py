"""ActivityNet 1.3, and HACS Segments, which has its form."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from spans.rows import UNEVEN, seconds, text
from uniformerv2.errors import AnnotationError
from uniformerv2.spans.files import read_rows, write_spans
from uniformerv2.spans.span import Span

TRUTH = """{"version": "VERSION 1.3", "taxonomy": [{"nodeName": "Sailing", "nodeId": 1, "parentId": 0}],
"database": {
 "sJFgo9H6zNo": {"duration": 149.48, "subset": "training", "resolution": "320x240",
  "url": "https://www.youtube.com/watch?v=sJFgo9H6zNo", "annotations": [
   {"label": "Fun sliding down", "segment": [0, 145.43]}, {"label": "Sailing", "segment": [1.5, 1.5]}]},
 "V1zhqaGFY2A": {"duration": 20.0, "subset": "validation", "annotations": [{"label": "Sailing", "segment": [9.5, 3]}]},
 "JDg--pjY5gg": {"duration": 153.5, "subset": "testing", "annotations": []}}}"""
HACS = """{"version": "HACS Segments v1.1.1", "database": {"--0edUL8zmA": {"subset": "training", "duration": 92.16,
"url": "https://youtube.com", "annotations": [{"label": "Dodgeball", "segment": [5.47, 86.71]}]}}}"""


def test_annotations_of_every_subset(tmp_path: Path) -> None:
    file = text(tmp_path / "activity_net.v1-3.min.json", TRUTH)
    assert seconds(file) == [
        ("v_sJFgo9H6zNo", "Fun sliding down", 0.0, 145.43),
        ("v_sJFgo9H6zNo", "Sailing", 1.5, 1.5),
        ("v_V1zhqaGFY2A", "Sailing", 9.5, 3.0),
    ]
    rows = list(read_rows(file))
    assert [(row.line, row.split, row.names[1]) for row in rows][1:] == [
        (1, "training", "sJFgo9H6zNo"),
        (2, "validation", "V1zhqaGFY2A"),
    ]


def test_hacs_segments(tmp_path: Path) -> None:
    assert seconds(text(tmp_path / "HACS_segments_v1.1.1.json", HACS)) == [("v_--0edUL8zmA", "Dodgeball", 5.47, 86.71)]


def test_results_of_a_model(tmp_path: Path) -> None:
    results = '{"version": "VERSION 1.3", "results": {"a": [{"label": "x", "score": 0.25, "segment": [1, 2]}]}}'
    (row,) = read_rows(text(tmp_path / "results.json", results))
    assert (row.names[0], row.label, row.score, row.start, row.end) == ("a", "x", 0.25, 1.0, 2.0)


@pytest.mark.parametrize(
    ("annotation", "wrong"),
    [
        ('{"label": "x", "segment": [1]}', "expected"),
        ('{"segment": [1, 2]}', "expected"),
        ('{"label": "x", "segment": ["a", 2]}', "two numbers"),
        ('{"label": "x", "segment": [NaN, 2]}', "two numbers"),
        ('{"label": "x", "segment": [1, true]}', "two numbers"),
        ('{"label": "x", "segment": [1, 2], "score": "high"}', "the score"),
    ],
)
def test_a_row_that_is_wrong(tmp_path: Path, annotation: str, wrong: str) -> None:
    (row,) = read_rows(text(tmp_path / "x.json", f'{{"database": {{"a": {{"annotations": [{annotation}]}}}}}}'))
    assert wrong in row.wrong


def test_names_are_those_of_the_evaluator(tmp_path: Path) -> None:
    write_spans({"films/v_abc.mp4": [Span(0.0, 1.0, "x")], "Mr. B": []}, tmp_path / "out.json")
    assert '"abc"' in (tmp_path / "out.json").read_text()
    assert '"Mr. B": []' in (tmp_path / "out.json").read_text()
    with pytest.raises(AnnotationError, match=r"b/v_abc\.mkv: a/abc\.mp4 has the same name 'abc'"):
        write_spans({"a/abc.mp4": [], "b/v_abc.mkv": []}, tmp_path / "out.json")


def test_ground_truth_is_scored_against(tmp_path: Path) -> None:
    write_spans(
        {"a/v_abc.mp4": [Span(0.1, 1.0, "x", 0.5)], "b": []},
        tmp_path / "x.json",
        "activitynet_truth",
        frames=lambda _: UNEVEN,
    )
    assert json.loads((tmp_path / "x.json").read_text())["database"] == {
        "abc": {"duration": 1.0, "subset": "validation", "annotations": [{"label": "x", "segment": [0.1, 1.0]}]},
        "b": {"duration": 1.0, "subset": "validation", "annotations": []},
    }


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("activitynet/activitynet_1.3_train_val.json", {"training": 14859, "validation": 7293}),
        ("thumos14/thumos14.json", {"train": 3007, "test": 3358}),
    ],
)
def test_published_files(shared: Path, name: str, splits: dict[str, int]) -> None:
    """As many as their publishers count; THUMOS14 without the ambiguous ones."""
    rows = list(read_rows(shared / "data" / "annotations" / name))
    assert Counter(row.split for row in rows) == splits
    assert not any(row.wrong or row.skip for row in rows)
