"""`uniformerv2 score`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import Run, assert_refused

TRUTH = {"database": {"v": {"subset": "validation", "annotations": [{"segment": [0, 10], "label": "jump"}] * 2}}}
FOUND = {"segment": [0, 10], "label": "jump", "score": 0.9}  # one of two annotations that are one
MISSED = {"segment": [50, 60], "label": "jump", "score": 0.8}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return write(tmp_path, {"v": [FOUND], "w": [MISSED]})


def write(folder: Path, results: dict[str, Any]) -> list[Path]:
    files = [folder / "truth.json", folder / "predictions.json"]
    for file, content in zip(files, (TRUTH, {"results": results}), strict=True):
        file.write_text(json.dumps(content))
    return files


def test_score_prints_a_table_and_what_it_counted(files: list[Path], uniformerv2: Run) -> None:
    status, printed, errors = uniformerv2("score", *files, "--tiou", 0.5, 0.95)
    assert (status, errors) == (0, "")
    lines = [line.replace("│", "").split() for line in printed.splitlines()]
    assert ["0.5", "50.00%", "1", "0", "0", "0", "1"] in lines
    assert ["0.95", "50.00%", "1", "0", "0", "0", "1"] in lines
    assert ["average", "50.00%"] in lines
    assert printed.startswith("validation, official rules")
    assert "1 videos, 2 annotations of 1 classes, 2 predictions" in printed
    assert "repeated annotations: 1, counted each time" in printed
    assert "predictions for videos without ground truth: 1, wrong" in printed


def test_score_with_the_rules_of_opentad(tmp_path: Path, uniformerv2: Run) -> None:
    files = write(tmp_path, {"v": [FOUND, {**MISSED, "label": "swim"}]})
    status, printed, _ = uniformerv2("score", *files, "--opentad")
    assert status == 0
    assert "100.00%" in printed
    assert "repeated annotations: 1, dropped" in printed
    assert "predictions of labels without ground truth: 1, dropped" in printed
    assert_refused(uniformerv2("score", *files), files[1], "video 'v'", "'swim'", "--opentad")


def test_score_as_json(files: list[Path], tmp_path: Path, uniformerv2: Run) -> None:
    status, printed, errors = uniformerv2("score", *files, "--protocol", "thumos", "--json")
    assert (status, errors) == (0, "")
    result = json.loads(printed)
    assert result["mAP"] == dict.fromkeys(("0.3", "0.4", "0.5", "0.6", "0.7"), 0.5)
    assert result["average_mAP"] == 0.5
    assert result["ap_per_class"] == {"jump": result["mAP"]}
    assert result["false_positives"]["0.3"] == {"double": 0, "wrong_class": 0, "poor_borders": 0, "background": 1}
    assert (result["protocol"], result["rules"], result["subset"]) == ("thumos", "official", "validation")
    assert result["counts"]["repeated_annotations"] == result["counts"]["predictions_of_unknown_videos"] == 1
    assert len(result["average_recall"]["average_recall"]) == 100

    output = tmp_path / "scores.json"
    status, table, _ = uniformerv2("score", *files, "--protocol", "thumos", "--json", output)
    assert status == 0
    assert json.loads(output.read_text()) == result
    assert table.endswith(f"written to {output}\n")


def test_score_says_in_one_line_what_is_wrong(files: list[Path], tmp_path: Path, uniformerv2: Run) -> None:
    assert_refused(uniformerv2("score", *files, "--tiou", 50), "in (0, 1]", "50")
    assert_refused(uniformerv2("score", *files, "--subset", "test"), files[0], "'validation'")
    assert_refused(uniformerv2("score", *files, "--json", "a.json", "b.json"), "one file")
    assert_refused(uniformerv2("score", *reversed(files)), files[1], '"database"')
    files = write(tmp_path, {"v": [FOUND, {**MISSED, "segment": [60, 50]}]})
    assert_refused(uniformerv2("score", *files, "--json", tmp_path / "out.json"), files[1], "prediction 2", "60")
    assert not (tmp_path / "out.json").exists()
