"""`uniformerv2 evaluate`."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import KINETICS, Run, as_kinetics, assert_error_line, assert_refused
from uniformerv2 import Predictor, cli, load_model, save_model
from uniformerv2.data.sources import read_annotations
from uniformerv2.measuring.evaluation import Scoring
from uniformerv2.weights.labels import class_list


@pytest.fixture
def evaluate(uniformerv2: Run, tmp_path: Path) -> Run:
    """Runs the command in this process, by default with the result in tmp_path / "a.json"."""

    def run(checkpoint: Path, data: Path, *options: object, output: str = "a.json") -> tuple[int, str, str]:
        return uniformerv2("evaluate", checkpoint, data, "--workers", 0, "--output", tmp_path / output, *options)

    return run


def with_labels(
    checkpoint: Path, path: Path, labels: Sequence[str], *, rows: Sequence[str] = (), origin: str = ""
) -> Path:
    """The model of three colours as one of Kinetics; its head may have its rows in another order than its labels."""
    model = as_kinetics(load_model(checkpoint), rows or labels)
    model.labels = tuple(labels)
    save_model(model, path, origin=origin)
    return path


def kinetics_manifest(colours: Path, path: Path) -> Path:
    rows = [f"{row.path},{KINETICS[row.label]}" for row in read_annotations(colours)]
    path.write_text("\n".join(["path,label", *rows]))
    return path


# --- what is printed and written


def test_a_table_is_printed_and_json_saved_beside_the_checkpoint(
    uniformerv2: Run, checkpoint: Path, tmp_path: Path
) -> None:
    for file in (checkpoint, *(checkpoint.with_name(name) for name in ("held_out.csv", "data.json"))):
        shutil.copyfile(file, tmp_path / file.name)
    command = ["evaluate", tmp_path / checkpoint.name, tmp_path / "held_out.csv", "--clips", 2, "--crops", 3]
    status, output, errors = uniformerv2(*command, "--workers", 0)
    assert (status, errors) == (0, "")
    saved = tmp_path / "last.held_out.2x3.json"
    result = json.loads(saved.read_text())
    assert (result["evaluated"], result["skipped"], result["precision"]) == (3, [], "fp32")
    assert result["views"] == {"clips": 2, "crops": 3, "average": "probabilities"}
    assert f"top-1 {result['top1']:.1%}" in output
    assert all(name in output for name in ("blue", "green", "red", str(saved)))


def test_rows_of_a_split_are_evaluated_and_skipped_ones_named(
    evaluate: Run, checkpoint: Path, video: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    manifest = tmp_path / "some.csv"
    manifest.write_text(f"path,label,split\n{video},red,test\nbroken.mp4,red,test\nbroken.mp4,red,train\n")
    status, output, _ = evaluate(checkpoint, manifest)
    assert status == 0
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["evaluated"] == 1
    assert [video["path"] for video in result["skipped"]] == [str(tmp_path / "broken.mp4")]
    assert "skipped 1" in output
    assert f"skipped: {tmp_path / 'broken.mp4'}" in output


def test_predictions_have_a_row_for_every_video(evaluate: Run, checkpoint: Path, video: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    manifest = tmp_path / "videos.csv"
    manifest.write_text(f"path,label,start,end\n{video},red,0.2,1\nbroken.mp4,blue\n{video},green,1\n")
    for name in ("table.csv", "table.parquet"):
        assert evaluate(checkpoint, manifest, "--predictions", tmp_path / name)[0] == 0
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["label"], row["start"]) for row in rows] == [
        (str(video), "red", "0.2"),
        (str(tmp_path / "broken.mp4"), "blue", ""),
        (str(video), "green", "1.0"),
    ]
    assert "broken.mp4" in rows[1]["error"]
    assert [rows[1][f"{kind}{place}"] for kind in ("label", "score") for place in range(1, 6)] == [""] * 10
    for row in (rows[0], rows[2]):
        assert row["error"] == ""
        assert {row["label1"], row["label2"], row["label3"]} == {"blue", "green", "red"}
        scores = [float(row[f"score{place}"]) for place in (1, 2, 3)]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1)
        assert (row["label4"], row["score5"]) == ("", "")  # of three classes
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(tmp_path / "table.parquet").to_pylist()
    assert [row["score1"] for row in table] == [float(rows[0]["score1"]), None, float(rows[2]["score1"])]
    assert [row["error"] is None for row in table] == [True, False, True]


def test_all_scores_of_every_video_are_written(
    evaluate: Run, checkpoint: Path, video: Path, colours: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    manifest = tmp_path / "videos.csv"
    blue = colours / "blue" / "blue1.mp4"
    manifest.write_text(f"path,label,start,end\n{video},red,0.2,1\nbroken.mp4,blue\n{blue},green\n")
    for name in ("a.npz", "a.parquet", "a.csv"):
        assert evaluate(checkpoint, manifest, "--predictions", tmp_path / name)[0] == 0
    arrays = np.load(tmp_path / "a.npz")
    assert arrays["classes"].tolist() == ["blue", "green", "red"]
    assert arrays["paths"].tolist() == [str(video), str(tmp_path / "broken.mp4"), str(blue)]
    assert arrays["labels"].tolist() == ["red", "blue", "green"]
    assert arrays["start"].tolist() == pytest.approx([0.2, math.nan, math.nan], nan_ok=True)
    assert (arrays["errors"] != "").tolist() == [False, True, False]
    scores = arrays["scores"]
    assert (scores.shape, scores.dtype) == ((3, 3), np.float32)
    assert np.isnan(scores[1]).all()
    assert scores[[0, 2]].sum(1) == pytest.approx(1)
    assert scores[[0, 2]].argmax(1).tolist() == [2, 0]
    assert scores[2, 0] == pytest.approx(Predictor(checkpoint).predict(blue).scores[0], abs=1e-5)
    table = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "a.parquet")
    assert json.loads(table.schema.metadata[b"classes"]) == ["blue", "green", "red"]
    assert table.column("scores").to_pylist() == [scores[0].tolist(), None, scores[2].tolist()]
    again = [read_annotations(tmp_path / name, must_exist=False) for name in ("a.parquet", "a.csv")]
    assert again[0] == again[1]  # each is a manifest too
    status, _, errors = evaluate(checkpoint, manifest, "--predictions", tmp_path / "a.json")
    assert status == 2
    assert_error_line(errors, "a.json: this is written to .csv, .npz, .parquet, .pq")


def test_precision_recall_and_the_confusion_matrix(
    evaluate: Run, checkpoint: Path, colours: Path, tmp_path: Path
) -> None:
    """Every video is recognised, but one of blue is annotated as green: what the figures are follows."""
    rows = [f"{row.path},{'green' if row.path.stem == 'blue0' else row.label}" for row in read_annotations(colours)]
    (tmp_path / "videos.csv").write_text("\n".join(["path,label", *rows]))
    status, output, _ = evaluate(checkpoint, tmp_path / "videos.csv", "--confusion", tmp_path / "matrix.csv")
    assert status == 0
    assert (tmp_path / "matrix.csv").read_text() == ",blue,green,red\nblue,4,0,0\ngreen,1,5,0\nred,0,0,5\n"
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["confusion_matrix"] == [[4, 0, 0], [1, 5, 0], [0, 0, 5]]
    figures = [[row["precision"], row["recall"], row["f1"]] for row in result["classes"]]
    assert figures == [[4 / 5, 1, 8 / 9], [1, 5 / 6, 10 / 11], [1, 1, 1]]
    assert result["macro"] == pytest.approx({"precision": 14 / 15, "recall": 17 / 18, "f1": (8 / 9 + 10 / 11 + 1) / 3})
    assert result["weighted"]["recall"] == pytest.approx(14 / 15)
    lines = [" ".join(re.findall(r"[\w.%]+", line)) for line in output.splitlines()]
    assert "blue 4 4 80.0% 100.0% 88.9%" in lines
    assert "macro average 15 14 93.3% 94.4% 93.3%" in lines
    assert f"mean class accuracy {17 / 18:.1%}" in output
    assert f"and {tmp_path / 'matrix.csv'}" in output


def test_labels_in_another_order_are_suspected(evaluate: Run, checkpoint: Path, colours: Path, tmp_path: Path) -> None:
    official, mmaction2 = class_list("kinetics400", order="official"), class_list("kinetics400", order="mmaction2")
    model = with_labels(checkpoint, tmp_path / "model.safetensors", mmaction2, rows=official)
    status, _, errors = evaluate(model, kinetics_manifest(colours, tmp_path / "videos.csv"))
    assert status == 0
    assert errors.startswith("warning: top-1 0.0% is what guessing gives with 400 classes")
    assert "as the official kinetics400 order top-1 would be 100.0%" in errors
    assert errors.count("\n") == 1
    assert json.loads((tmp_path / "a.json").read_text())["warning"] in errors


def test_each_label_in_another_spelling_is_told_once(
    evaluate: Run, checkpoint: Path, colours: Path, tmp_path: Path
) -> None:
    model = with_labels(checkpoint, tmp_path / "model.safetensors", class_list("kinetics400", order="official"))
    manifest = tmp_path / "videos.csv"
    reds = sorted((colours / "red").iterdir())
    names = ["hugging", "hugging", "riding_a_bike", "yoga", "sniffing"]
    manifest.write_text("\n".join(["path,label", *(f"{path},{name}" for path, name in zip(reds, names, strict=True))]))
    status, _, errors = evaluate(model, manifest)
    assert status == 0
    notes = [line for line in errors.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: the label 'hugging' is taken for the model's 'hugging baby'",
        "note: the label 'riding_a_bike' is taken for the model's 'riding a bike'",
        "note: the label 'sniffing' is taken for the model's 'smelling feet'",
    ]
    result = json.loads((tmp_path / "a.json").read_text())
    assert [video["label"] for video in result["videos"]] == [
        "hugging baby", "hugging baby", "riding a bike", "yoga", "smelling feet",
    ]  # fmt: skip


def test_the_published_figure_stands_beside_the_measured_one(
    evaluate: Run, checkpoint: Path, video: Path, tmp_path: Path
) -> None:
    labels = class_list("kinetics400", order="mmaction2")
    model = with_labels(checkpoint, tmp_path / "model.safetensors", labels, origin="b16-k400-8x224-mmaction2")
    manifest = tmp_path / "videos.csv"
    manifest.write_text(f"path,label\n{video},yoga\n")
    status, output, _ = evaluate(model, manifest)
    assert status == 0
    lines = output.splitlines()
    published = lines.index("published: b16-k400-8x224-mmaction2 on kinetics400, 8x3x4 views: top-1 84.3%, top-5 96.4%")
    assert lines[published + 1].startswith("not comparable: measured with 4x1x1 views; ")
    assert "measured on 1 videos, the validation set has about 19,906" in lines[published + 1]


# --- runs that are stopped, and several processes


def test_an_interrupted_run_is_resumed_and_writes_the_same_bytes(
    evaluate: Run, checkpoint: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []
    score = Scoring.score

    def counting(*arguments: Any, **options: Any) -> Any:
        if len(scored) == 6:
            raise KeyboardInterrupt
        scored.append(1)
        return score(*arguments, **options)

    whole, stopped = (("--batch-size", 1, "--predictions", tmp_path / f"{name}.csv") for name in ("whole", "stopped"))
    assert evaluate(checkpoint, colours, *whole, output="whole.json")[0] == 0
    journal = tmp_path / "stopped.json.journal"
    with monkeypatch.context() as patch:
        patch.setattr(Scoring, "score", counting)
        assert evaluate(checkpoint, colours, *stopped, output="stopped.json")[0] == 130
        before = journal.read_bytes()
        journal.write_bytes(before[:-20])  # cut in the middle of the last line
        for options, part in (
            ([], "--resume"),
            (["--clips", 2, "--resume"], "views (then 1 clips x 1 crops, now 2 clips"),
        ):
            assert_refused(evaluate(checkpoint, colours, *stopped, *options, output="stopped.json"), part)
        scored.clear()
        patch.setattr(Scoring, "score", lambda *some, **more: scored.append(1) or score(*some, **more))
        assert evaluate(checkpoint, colours, *stopped, "--resume", output="stopped.json")[0] == 0
    assert len(scored) == 10  # five of fifteen were there
    for suffix in (".json", ".csv"):
        assert (tmp_path / f"stopped{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert not journal.exists()


def test_one_of_several_processes_prints_and_writes(
    together: Callable[..., list[Any]], checkpoint: Path, colours: Path, video: Path, tmp_path: Path
) -> None:
    def command(data: Path, output: str) -> tuple[int, str, str]:
        arguments = ["evaluate", checkpoint, data, "--batch-size", 4, "--workers", 0, "--output", tmp_path / output]
        with redirect_stdout(StringIO()) as printed, redirect_stderr(StringIO()) as errors:
            status = cli.main([str(argument) for argument in arguments])
        return status, printed.getvalue(), errors.getvalue()

    assert command(colours, "one.json")[0] == 0
    first, second = together(2, lambda: command(colours, "two.json"))
    assert (first[0], first[1].count("written to"), second) == (0, 1, (0, "", ""))
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    (tmp_path / "videos.csv").write_text(f"path,label\n{video},purple\n")
    first, second = together(2, lambda: command(tmp_path / "videos.csv", "three.json"))
    assert (first[:2], second) == ((2, ""), (2, "", ""))
    assert_error_line(first[2], "purple")
    assert {file.name for file in tmp_path.iterdir()} == {"one.json", "two.json", "videos.csv"}


def test_torchrun_starts_the_processes(checkpoint: Path, colours: Path, tmp_path: Path) -> None:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "uniformerv2"]
    command = ["evaluate", checkpoint, colours, "--workers", 0, "--output", tmp_path / "a.json"]
    ended = subprocess.run(
        [sys.executable, "-m", *torchrun, *map(str, command)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("written to") == 1
    assert json.loads((tmp_path / "a.json").read_text())["evaluated"] == 15
