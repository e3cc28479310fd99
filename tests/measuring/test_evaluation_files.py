from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from uniformerv2.data.annotations import Annotation
from uniformerv2.data.sources import read_annotations
from uniformerv2.measuring.evaluation import evaluate
from uniformerv2.measuring.metrics import default_output, write_predictions
from uniformerv2.video.views import Views


def test_a_table_of_predictions_is_a_manifest_too(checkpoint: Path, colours: Path, tmp_path: Path) -> None:
    rows = [replace(row, start=0.2, end=1.0) for row in read_annotations(colours)]
    rows[3] = Annotation(tmp_path / "absent.mp4", "green")
    result = evaluate(checkpoint, rows, workers=0)
    write_predictions(tmp_path / "table.csv", result)
    again = read_annotations(tmp_path / "table.csv", must_exist=False)
    assert again == rows


def test_the_default_name_says_what_was_measured() -> None:
    checkpoint, data = Path("run/last.safetensors"), Path("videos/held_out.csv")
    assert default_output(checkpoint, data, views=Views(4, 3)) == Path("run/last.held_out.4x3.json")
    assert default_output(checkpoint, data, views=Views(), head="k400") == Path("run/last.k400.held_out.1x1.json")
