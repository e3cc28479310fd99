"""Training on everything: nothing is held out, because it was asked for or because it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import Run, assert_refused, coloured, write_video
from uniformerv2 import Annotation, fine_tune
from uniformerv2.data.manifest import write_manifest
from uniformerv2.data.sources import read_annotations
from uniformerv2.runs.folder import read_run

ONE_EPOCH = ["--epochs", 1, "--warmup-epochs", 0]


def whole_folder(folder: Path, colours: Path) -> list[object]:
    return [colours, "--holdout", 0]


def one_video_a_class(folder: Path, colours: Path) -> list[object]:
    for number, label in enumerate(("red", "green")):
        write_video(folder / "videos" / label / "one.mp4", coloured([number] * 12))
    return [folder / "videos"]


def training_rows_alone(folder: Path, colours: Path) -> list[object]:
    rows = [Annotation(row.path, row.label, split="train") for row in read_annotations(colours)]
    write_manifest(folder / "videos.csv", rows)
    return [folder / "videos.csv"]


def one_film(folder: Path, colours: Path) -> list[object]:
    write_video(folder / "film.mp4", coloured([0] * 10 + [1] * 10 + [0] * 10))
    rows = [(0, "red"), (1, "green"), (2, "red")]
    write_manifest(folder / "film.csv", [Annotation(folder / "film.mp4", label, at, at + 1) for at, label in rows])
    return [folder / "film.csv"]


@pytest.mark.parametrize("write", [whole_folder, one_video_a_class, training_rows_alone, one_film])
def test_everything_is_trained_on_and_said_so(
    write: Callable[[Path, Path], list[object]],
    uniformerv2: Run,
    colours: Path,
    tiny: list[object],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    data, *options = write(tmp_path, colours)
    status, output, errors = uniformerv2("train", data, "-o", run, *options, *tiny, *ONE_EPOCH)
    assert status == 0, errors
    assert "nothing held out" in errors
    assert output.splitlines()[-1] == f"{run / 'last.safetensors'}: nothing was held out"
    assert not {"best.safetensors", "evaluation.json", "held_out.csv"} & {file.name for file in run.iterdir()}
    assert len(read_annotations(run / "train.csv")) == len(read_annotations(data))
    assert (read_run(run).state, read_run(run).best) == ("finished", None)
    assert uniformerv2("runs", run)[0] == 0
    assert uniformerv2("predict", run, colours / "red" / "red0.mp4")[0] == 0
    assert uniformerv2("train", data, "-o", run, *options, *tiny, *ONE_EPOCH, "--resume")[0] == 0


def test_a_share_that_was_asked_for_is_refused(
    uniformerv2: Run, colours: Path, tiny: list[object], tmp_path: Path
) -> None:
    data, *_ = one_film(tmp_path, colours)
    found = uniformerv2("train", data, "-o", tmp_path / "run", "--holdout", 0.2, *tiny, *ONE_EPOCH)
    assert_refused(found, "a holdout of 0.2", "1 file(s)", "a holdout of 0 trains on everything")


def test_an_early_stop_needs_something_to_measure(
    uniformerv2: Run, colours: Path, tiny: list[object], tmp_path: Path
) -> None:
    found = uniformerv2("train", colours, "-o", tmp_path / "run", "--holdout", 0, "--early-stop", 2, *tiny)
    assert_refused(found, "early_stop needs held-out videos")


def test_a_dry_run_measures_nothing(uniformerv2: Run, colours: Path, tiny: list[object]) -> None:
    status, output, _ = uniformerv2("rehearse", "dry-run", colours, "--holdout", 0, *tiny)
    assert (status, output.startswith("everything works")) == (0, True)


def test_fine_tune_returns_no_evaluation(colours: Path, image_model: Path, tmp_path: Path) -> None:
    tuned = fine_tune(
        colours, arm=image_model, output=tmp_path / "run", holdout=0, epochs=1, batch_size=4, workers=0, size=32
    )
    assert tuned.evaluation is None
    assert repr(tuned) == f"FineTuned(nothing was held out, 3 classes, run {str(tuned.run)!r})"
    assert tuned.predict(colours / "red" / "red0.mp4").labels
