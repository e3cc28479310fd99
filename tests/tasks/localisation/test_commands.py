"""`train-spans` and `predict --spans` do what the functions do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drawn_films import Trained, drawn_stretches, write_film
from helpers import Run, assert_refused
from uniformerv2 import Localiser
from uniformerv2.spans.files import read_spans
from uniformerv2.tasks.localisation.checkpoint import load_localiser


def test_a_command_trains_a_localiser_and_goes_on_with_it(trained: Trained, tmp_path: Path, uniformerv2: Run) -> None:
    films = [trained.rows[0].path, trained.rows[-2].path]
    manifest = tmp_path / "films.csv"
    manifest.write_text(f"path,label,start,end,split\n{films[0]},red,1,3,train\n{films[1]},red,1,2,val\n")
    command = ["train-spans", trained.model, manifest, "-o", tmp_path / "run", "--workers", 0]
    command += ["--window-seconds", 1.0, "--stride-seconds", 0.25, "--epochs", 1, "--warmup-epochs", 0]
    command += ["--width", 16, "--feature-cache", trained.cache]
    status, output, _ = uniformerv2(*command)
    assert status == 0
    assert "average mAP" in output
    assert load_localiser(tmp_path / "run").recipe.head.width == 16
    assert uniformerv2(*command, "--resume")[0] == 0
    assert_refused(uniformerv2(*command), tmp_path / "run", "not empty")


def test_commands_for_other_tasks_name_the_one_for_spans(trained: Trained, uniformerv2: Run) -> None:
    run = trained.result.last.parent
    for command in (["train", "--resume", "--output", run], ["runs", run], ["train", "x", "--task", "localise"]):
        assert_refused(uniformerv2(*command, *(["--arm", "y"] if "--task" in command else [])), "train-spans")


@pytest.mark.parametrize("suffix", ["json", "csv", "srt"])
def test_predicted_spans_are_written_as_files_of_labelling_tools(
    suffix: str, trained: Trained, tmp_path: Path, uniformerv2: Run
) -> None:
    film, target = trained.rows[0].path, tmp_path / f"spans.{suffix}"
    options = ["--threshold", 0.3, "--workers", 0]
    status, output, _ = uniformerv2("predict", trained.result.last, film, "--spans", target, *options)
    expected = Localiser(trained.result.last).localise(film, threshold=0.3, workers=0)
    assert status == 0
    assert f"{len(expected)} spans of 1 videos, written to {target}" in output
    [written] = read_spans(target).values()
    assert sorted((span.label, round(span.start, 2)) for span in written) == sorted(
        (span.label, round(span.start, 2)) for span in expected
    )


def test_spans_are_printed_as_json_and_unreadable_films_named(
    trained: Trained, tmp_path: Path, uniformerv2: Run
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    write_film(tmp_path / "film.mp4", drawn_stretches(3, spans=1))
    files = [tmp_path / "broken.mp4", tmp_path / "film.mp4"]
    options = ["--spans", tmp_path / "spans.json", "--workers", 0, "--json"]
    status, output, errors = uniformerv2("predict", trained.result.last, *files, *options)
    assert status == 2
    assert "broken.mp4" in errors
    printed = [json.loads(line) for line in output.splitlines()]
    assert {line["video"] for line in printed} == {str(files[1])}
    assert len(printed) == len(next(iter(read_spans(tmp_path / "spans.json").values())))


def test_what_cannot_be_written_is_refused_before_anything_is_computed(
    trained: Trained, tmp_path: Path, uniformerv2: Run
) -> None:
    films = [trained.rows[0].path, trained.rows[-1].path]
    for name, said in (("spans.srt", "spans of one video"), ("spans.txt", "spans.txt"), ("no/spans.csv", "no")):
        assert_refused(uniformerv2("predict", trained.result.last, *films, "--spans", tmp_path / name), said)
    assert_refused(
        uniformerv2("predict", trained.model, films[0], "--spans", tmp_path / "spans.csv"), "not a localiser"
    )
