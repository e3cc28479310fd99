"""`timeline` with a localiser: a table and a picture of predicted and true spans."""

from __future__ import annotations

from pathlib import Path

import pytest

from drawn_films import Trained, drawn_stretches, write_film
from helpers import Run, assert_refused
from uniformerv2 import Localiser
from uniformerv2.spans.files import read_spans, write_spans
from uniformerv2.spans.span import Span


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_predicted_and_true_spans_are_drawn(suffix: str, trained: Trained, tmp_path: Path, uniformerv2: Run) -> None:
    film = tmp_path / "film.mp4"
    rows = write_film(film, drawn_stretches(300, spans=3))
    truth = tmp_path / f"truth.{suffix}"
    write_spans({"film.mp4": [Span(row.start or 0.0, row.end or 0.0, row.label) for row in rows]}, truth)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no film")
    folder, model = tmp_path / "out", trained.result.last.parent
    status, output, errors = uniformerv2("timeline", model, film, broken, "-o", folder, "--truth", truth)
    expected = Localiser(trained.result.best or trained.result.last).localise(film, threshold=0.3, workers=0)
    assert status == 2
    assert "broken.mp4" in errors
    assert f"{film}: {len(expected)} spans, written to {folder / 'film.csv'} and {folder / 'film.svg'}" in output
    [written] = read_spans(folder / "film.csv").values()
    assert [span.start for span in written] == pytest.approx([span.start for span in expected], abs=1e-3)
    picture = (folder / "film.svg").read_text()
    assert picture.count('class="found"') == len(expected)
    assert picture.count('class="true"') == len(rows) == 3


def test_options_of_the_other_kind_of_timeline_are_refused(trained: Trained, tmp_path: Path, uniformerv2: Run) -> None:
    film = trained.rows[0].path
    command = ["timeline", trained.result.last, film, "-o", tmp_path / "out"]
    assert_refused(uniformerv2(*command, "--window-seconds", 3), "--window-seconds is not for the checkpoints of")
    command[1] = trained.model
    assert_refused(uniformerv2(*command, "--truth", film), "--truth is for the checkpoints of localisers")
    assert not (tmp_path / "out").exists()
