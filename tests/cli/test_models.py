"""`uniformerv2 models`."""

from __future__ import annotations

import json

import pytest

from helpers import Run
from uniformerv2.weights.zoo import list_models


def test_every_model_has_a_whole_line_of_at_most_120_columns(uniformerv2: Run) -> None:
    status, output, errors = uniformerv2("models")
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert max(len(line) for line in lines) <= 120
    assert lines[0].split() == [
        "name",
        "dataset",
        "clip",
        "views",
        "top-1",
        "parameters",
        "multiply-adds",
        "availability",
    ]
    rows = [line.split() for line in lines[1:73]]
    assert [row[:2] for row in rows] == [[entry.name, entry.dataset] for entry in list_models()]
    assert "…" not in output
    by_name = {row[0]: row[2:] for row in rows}
    assert by_name["b16-k400-8x224"] == ["8x224", "8x3x4", "84.4", "114.6", "M", "140.8", "G", "gone"]
    assert by_name["l14-k710-8x336"] == ["8x336", "-", "-", "354.7", "M", "1528.8", "G", "gone"]


def test_only_the_states_that_occur_are_explained(uniformerv2: Run) -> None:
    _, output, _ = uniformerv2("models", "--dataset", "sthv2")
    assert [line.partition(":")[0] for line in output.splitlines()[5:]] == ["views", "gone"]
    _, output, _ = uniformerv2("models", "--dataset", "MIT")
    assert [line.partition(":")[0] for line in output.splitlines()[7:]] == ["views", "gone", "on the hub", "untested"]


def test_json_has_everything(uniformerv2: Run) -> None:
    status, output, errors = uniformerv2("models", "--dataset", "K400", "--json")
    assert (status, errors) == (0, "")
    rows = {row["name"]: row for row in json.loads(output)}
    assert list(rows) == [entry.name for entry in list_models(dataset="kinetics400")]
    row = rows["l14-k400-k710-32x336-mmaction2"]
    assert row.pop("note")
    assert row.pop("url").endswith("_20221219-1dd7650f.pth")
    assert row.pop("licence").startswith("Apache-2.0")
    assert row.pop("multiply_adds") == pytest.approx(6115.2e9, rel=1e-4)  # docs/models.md
    assert row == {
        **{"name": "l14-k400-k710-32x336-mmaction2", "dataset": "kinetics400", "size": "L/14@336", "frozen": False},
        **{"pretraining": "CLIP+K710", "num_frames": 32, "views": "32x3x2", "top1": 89.5, "top5": 98.4},
        **{"format": "mmaction2", "availability": "untested", "sha256": "", "sha256_head": "1dd7650f"},
        **{"layout": "scene", "image_size": 336, "parameters": 354427280},
    }
