"""`train --task localise`, its dry run and `predict --spans` do what the functions do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drawn_films import Trained, drawn_stretches, write_film
from helpers import Run, assert_refused, before_call, files_below, interrupt, logged
from uniformerv2 import Localiser
from uniformerv2.spans.files import read_spans
from uniformerv2.tasks.localisation.checkpoint import load_localiser
from uniformerv2.tasks.localisation.rehearsal import dry_run_localiser
from uniformerv2.train.step import TrainingStep
from uniformerv2.video.reader import VideoReader


@pytest.fixture
def command(trained: Trained, tmp_path: Path) -> list[object]:
    """A training of an epoch on one film."""
    films = [trained.rows[0].path, trained.rows[-2].path]
    manifest = tmp_path / "films.csv"
    manifest.write_text(f"path,label,start,end,split\n{films[0]},red,1,3,train\n{films[1]},red,1,2,val\n")
    options = ["--task", "localise", "--checkpoint", trained.model, "--workers", 0, "--width", 16]
    return [manifest, *options, "--window-seconds", 1.0, "--stride-seconds", 0.25, "--epochs", 1]


def test_a_command_trains_a_localiser(
    command: list[object], trained: Trained, tmp_path: Path, uniformerv2: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, output, errors = uniformerv2("train", *command, "--feature-cache", trained.cache)
    assert status == 0, errors
    assert "films-run/last.safetensors: average mAP" in output
    recipe = load_localiser(tmp_path / "films-run").recipe
    assert (recipe.head.width, recipe.epochs, recipe.warmup_epochs) == (16, 1, 0.1)
    assert_refused(uniformerv2("train", *command, "-o", "films-run"), "films-run", "not empty")


def test_a_run_goes_on_without_another_option(
    command: list[object], tmp_path: Path, uniformerv2: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command[-1] = 3
    assert uniformerv2("train", *command, "-o", whole)[0] == 0
    with monkeypatch.context() as patch:
        before_call(patch, TrainingStep, "__call__", 2, interrupt)
        status, _, errors = uniformerv2("train", *command, "-o", broken, "--save-every-seconds", 0)
    assert status == 130
    assert f"uniformerv2 train --resume --output {broken}" in errors
    status, output, errors = uniformerv2("train", "--resume", "--output", broken, "--workers", 0)
    assert status == 0, errors
    assert "average mAP" in output
    assert logged(broken) == logged(whole)
    for name in ("recipe.json", "train.csv", "held_out.csv", "evaluation.json"):
        assert (broken / name).read_text() == (whole / name).read_text()


def test_what_another_run_began_with_is_not_changed(trained: Trained, tmp_path: Path, uniformerv2: Run) -> None:
    run = trained.result.last.parent
    resume = ["--resume", "--output", run, "--workers", 0]
    assert_refused(uniformerv2("train", *resume, "--epochs", 99), "epochs 10 is now 99")
    assert_refused(uniformerv2("train", *resume, "--task", "classification"), "run of a localiser", "--task localise")
    (tmp_path / "broken").mkdir()
    for text in ("[]", "{", '{"task": "localise"}'):
        (tmp_path / "broken" / "recipe.json").write_text(text)
        refused = uniformerv2("train", "--resume", "--output", tmp_path / "broken")
        assert_refused(refused, "recipe.json: not the recipe")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "x", "--task", "localise"], "a localiser needs a trained video model, give --checkpoint"),
        (["train", "x", "--task=localise", "--no-flip"], "--no-flip is not an option of --task localise"),
        (["train", "x", "--task", "localise", "--num_frames=8"], "--num-frames is not an option of --task localise"),
        (["rehearse", "dry-run", "x", "--task", "localise", "--arm", "y"], "--arm is not an option of --task localise"),
        (["train", "x", "--arm", "y", "--window-seconds", "2"], "--window-seconds is an option of --task localise"),
        (["rehearse", "overfit-batch", "x", "--task", "localise", "--arm", "y"], "train --task localise"),
        (["train", "x", "--task", "localize", "--arm", "y"], "did you mean localise"),
    ],
)
def test_options_of_another_task_are_named(arguments: list[str], said: str, uniformerv2: Run) -> None:
    assert_refused(uniformerv2(*arguments), *said.split(", "))


def test_a_dry_run_tells_the_cost_and_writes_nothing(
    command: list[object], tmp_path: Path, uniformerv2: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files_below(tmp_path)
    status, output, errors = uniformerv2("rehearse", "dry-run", *command)
    assert status == 0, errors
    assert "of 2 films" in output
    assert "1 steps an epoch" in output
    assert files_below(tmp_path) == before
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    (tmp_path / "films.csv").write_text("path,label,start,end\nbroken.mp4,red,1,3\n")
    refused = uniformerv2("rehearse", "dry-run", *command, "--holdout", 0)
    assert refused[0] == 2
    assert "not one of 1 films could be read" in refused[2].splitlines()[-1]


def test_a_dry_run_judges_by_the_first_windows(trained: Trained, embedded: list[int]) -> None:
    """Windows of a second, every quarter of one, of which 32 are embedded in three films on either side."""
    found = dry_run_localiser(trained.model, trained.rows, trained.recipe, workers=0)
    seconds = []
    for path in dict.fromkeys(row.path for row in trained.rows):
        with VideoReader(path) as reader:
            seconds.append(reader.duration)
    assert found.films == 10
    assert found.windows == pytest.approx(sum(4 * (duration - 1) + 1 for duration in seconds), abs=10)
    assert sum(embedded) == 6 * 32
    assert found.steps == 7
    assert found.window_seconds > 0
    assert found.training_seconds > 70 * found.step_seconds
    assert not found.skipped


def test_runs_are_shown(trained: Trained, tmp_path: Path, uniformerv2: Run) -> None:
    assert trained.result.evaluation is not None
    run, page = trained.result.last.parent, tmp_path / "report.html"
    status, output, errors = uniformerv2("runs", run, "--html", page)
    assert status == 0, errors
    share = f"{trained.result.evaluation.scores.average_mean_ap:.1%}"
    assert share in output
    assert share in page.read_text()


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
