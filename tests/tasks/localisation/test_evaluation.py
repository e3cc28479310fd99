"""`evaluate` measures localisers, with the figures that scoring what they find gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drawn_films import Trained
from helpers import Run, assert_refused, files_below
from uniformerv2 import Localiser, evaluate_localiser, score_spans
from uniformerv2.data.annotations import Annotation
from uniformerv2.errors import AnnotationError, RecipeError
from uniformerv2.spans.files import read_spans


@pytest.fixture
def held_out(trained: Trained) -> list[Annotation]:
    return [row for row in trained.rows if row.split == "val"]


@pytest.fixture
def manifest(held_out: list[Annotation], tmp_path: Path) -> Path:
    lines = [f"{row.path},{row.label},{row.start or ''},{row.end or ''}" for row in held_out]
    (tmp_path / "films.csv").write_text("\n".join(["path,label,start,end", *lines]) + "\n")
    return tmp_path / "films.csv"


def test_what_is_found_is_scored_as_any_spans(trained: Trained, held_out: list[Annotation], tmp_path: Path) -> None:
    """The same spans in ActivityNet's form, which a test compares with OpenTAD's evaluator."""
    localiser = Localiser(trained.result.last)
    paths = list(dict.fromkeys(str(row.path) for row in held_out))
    truth = {path: [row for row in held_out if str(row.path) == path and row.label] for path in paths}
    database = {
        path: {"annotations": [{"segment": [row.start, row.end], "label": row.label} for row in rows]}
        for path, rows in truth.items()
    }
    results = {
        path: [
            {"segment": [span.start, span.end], "label": span.label, "score": span.score}
            for span in localiser.localise(path, workers=0)
        ]
        for path in paths
    }
    (tmp_path / "truth.json").write_text(json.dumps({"database": database}))
    (tmp_path / "found.json").write_text(json.dumps({"results": results}))
    for protocol, thresholds in (("thumos", 5), ("hacs", 10)):
        expected = score_spans(tmp_path / "truth.json", tmp_path / "found.json", protocol=protocol, opentad=True)
        found = evaluate_localiser(trained.result.last, trained.rows, protocol=protocol, workers=0)
        assert len(found.scores.tiou) == thresholds
        assert found.scores.tiou == expected.tiou
        assert found.scores.mean_ap == pytest.approx(expected.mean_ap, abs=1e-6)
        assert found.scores.mistakes == expected.mistakes
        assert found.scores.counts.annotations == sum(map(len, truth.values()))
    assert trained.result.evaluation is not None
    assert evaluate_localiser(trained.result.last, held_out, workers=0).scores == trained.result.evaluation.scores


def test_embeddings_of_a_training_are_not_computed_again(
    trained: Trained, held_out: list[Annotation], embedded: list[int]
) -> None:
    evaluate_localiser(trained.result.last, held_out, workers=0, feature_cache=trained.cache)
    assert not embedded
    evaluate_localiser(trained.result.last, held_out[:1], workers=0)
    assert embedded


def test_a_command_prints_and_writes_the_figures(
    trained: Trained, manifest: Path, tmp_path: Path, uniformerv2: Run
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    with manifest.open("a") as file:
        file.write("broken.mp4,red,1,2\n")
    options = ["--workers", 0, "--tiou", 0.3, 0.5, "--output", tmp_path / "a.json"]
    spans = tmp_path / "spans.json"
    status, output, errors = uniformerv2(
        "evaluate", trained.result.last, manifest, *options, "--predictions", spans, "--feature-cache", trained.cache
    )
    assert status == 0, errors
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["tiou_thresholds"] == [0.3, 0.5]
    assert set(written["mAP"]) == {"0.3", "0.5"}
    assert set(written["ap_per_class"]) == {"red", "green", "blue"}
    assert set(written["false_positives"]["0.5"]) >= {"background", "wrong_class", "poor_borders", "double"}
    assert (written["evaluated"], [one["path"] for one in written["skipped"]]) == (3, [str(tmp_path / "broken.mp4")])
    for part in (f"{written['average_mAP']:.2%}", "poor borders", "AR@10", "skipped: ", "broken.mp4", f"{spans}"):
        assert part in output
    assert sum(map(len, read_spans(spans).values())) == sum(map(len, written["spans"].values()))


def test_a_run_is_measured_beside_its_files_with_what_it_has_embedded(
    trained: Trained, manifest: Path, embedded: list[int], uniformerv2: Run
) -> None:
    run = trained.result.last.parent
    (run / "features").symlink_to(trained.cache)
    before = set(run.iterdir())
    try:
        status, output, errors = uniformerv2("evaluate", run, manifest, "--workers", 0, "--protocol", "activitynet")
    finally:
        before.discard(run / "features")
        (run / "features").unlink()
    assert status == 0, errors
    assert not embedded
    [file] = set(run.iterdir()) - before
    assert file.name == "best.films.activitynet.json"
    assert f"written to {file}" in output
    assert json.loads(file.read_text())["protocol"] == "activitynet"
    file.unlink()


def test_what_makes_no_sense_is_refused(
    trained: Trained, manifest: Path, checkpoint: Path, tmp_path: Path, uniformerv2: Run
) -> None:
    before = files_below(tmp_path)
    for option, said in (
        (["--clips", 4], "--clips is not for the checkpoints of localisers"),
        (["--confusion", "c.csv"], "--confusion is not for"),
        (["--precision", "bf16"], "--precision is not for"),
        (["--predictions", tmp_path / "spans.txt"], "spans.txt"),
        (["--output", tmp_path / "no" / "a.json"], "no folder"),
        (["--tiou", 1.5], "1.5"),
    ):
        assert_refused(uniformerv2("evaluate", trained.result.last, manifest, "--workers", 0, *option), said)
    assert_refused(uniformerv2("evaluate", checkpoint, manifest, "--tiou", 0.5), "--tiou is for", "localisers")
    assert files_below(tmp_path) == before


def test_films_that_cannot_be_measured_are_named(trained: Trained, held_out: list[Annotation]) -> None:
    def evaluate(*rows: Annotation, tiou: tuple[float, ...] = ()) -> None:
        evaluate_localiser(trained.result.last, rows, workers=0, feature_cache=trained.cache, tiou=tiou)

    with pytest.raises(AnnotationError, match="label 'jump' is not among the 3 classes"):
        evaluate(*held_out, Annotation(held_out[0].path, "jump", 1.0, 2.0))
    with pytest.raises(AnnotationError, match="no annotation"):
        evaluate(held_out[-1])
    with pytest.raises(RecipeError, match="must be in"):
        evaluate(*held_out, tiou=(0.0,))
