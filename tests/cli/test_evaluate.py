from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from helpers import before_call, kill_this_process, killed_again_and_again
from uniformerv2.data.sources import read_annotations
from uniformerv2.measuring.scoring import Scoring
from uniformerv2.weights import arm, load_model, save_model
from uniformerv2.weights.labels import class_list

Run = Callable[..., tuple[int, str, str]]
RunCommand = Callable[..., list[int]]


def draw_model(image_model: Path, path: Path, labels: Sequence[str]) -> Path:
    """A checkpoint of random weights that spread its guesses over all classes."""
    torch.manual_seed(0)
    model = arm(image_model, num_classes=len(labels), labels=labels, num_frames=4, size=32)
    torch.nn.init.normal_(model.head.linear.weight, std=3)
    save_model(model, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(image_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_model(image_model, tmp_path_factory.mktemp("model") / "model.safetensors", ["blue", "green", "red"])


# --- processes that are killed, and several at a time


def parts(journal: Path) -> list[list[int]]:
    """Which parts are written down."""
    found = []
    for line in journal.read_bytes().splitlines() if journal.exists() else []:
        try:
            found.append(json.loads(line).get("item"))
        except ValueError:
            continue  # a line that a kill has cut
    return [part for part in found if part is not None]


def kill_before_item(number: int) -> None:
    """Kill this process before it scores so many items."""
    before_call(pytest.MonkeyPatch(), Scoring, "score", number, kill_this_process)


def test_killed_at_any_moment_and_resumed_it_gives_what_an_unbroken_run_gives(
    run_command: RunCommand, checkpoint: Path, colours: Path, tmp_path: Path
) -> None:
    def command(name: str) -> list[object]:
        files = ["--output", tmp_path / f"{name}.json", "--predictions", tmp_path / f"{name}.csv"]
        return ["evaluate", checkpoint, colours, "--batch-size", 1, "--workers", 0, *files]

    assert run_command(*command("whole")) == [0]
    journal = tmp_path / "killed.json.journal"
    before: list[list[int]] = []
    interrupted = 0
    for _ in killed_again_and_again(partial(run_command, *command("killed"), "--resume"), Scoring, "score"):
        after = parts(journal)
        if journal.exists():
            assert after[: len(before)] == before
            assert len({tuple(part) for part in after}) == len(after), "something was computed twice"
        else:  # nothing was begun, or everything is in its place
            assert not before or (tmp_path / "killed.json").exists()
        interrupted += 0 < len(after) < 15
        before = after
    assert interrupted, "no kill came while it was at work"
    for suffix in (".json", ".csv"):
        assert (tmp_path / f"killed{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    left = {
        file.name for file in tmp_path.iterdir() if not file.name.startswith(".")
    }  # a kill may leave temporary files
    assert left == {"whole.json", "whole.csv", "killed.json", "killed.csv"}


def test_what_was_computed_is_not_computed_again(
    uniformerv2: Run, checkpoint: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []
    score = Scoring.score

    def counting(*arguments: object, **options: int) -> object:
        if len(scored) == 6:
            raise KeyboardInterrupt
        scored.append(1)
        return score(*arguments, **options)  # type: ignore[arg-type]

    command = ["evaluate", checkpoint, colours, "--batch-size", 1, "--workers", 0, "--output", tmp_path / "a.json"]
    with monkeypatch.context() as patch:
        patch.setattr(Scoring, "score", counting)
        assert uniformerv2(*command)[0] == 130
        journal = tmp_path / "a.json.journal"
        assert parts(journal) == [[number] for number in range(6)]
        journal.write_bytes(journal.read_bytes()[:-20])  # a kill in the middle of a line
        scored.clear()
        patch.setattr(Scoring, "score", lambda *some, **more: scored.append(1) or score(*some, **more))
        status, output, _ = uniformerv2(*command, "--resume")
        assert status == 0
        assert "15 videos" in output
        assert len(scored) == 10  # five of fifteen were there
    assert not journal.exists()


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        (["--clips", 3], "views (then 2 clips x 1 crops, now 3 clips x 1 crops)"),
        (["--average", "logits"], "average (then probabilities, now logits)"),
        (["--batch-size", 3], "batch size (then 2, now 3)"),
    ],
)
def test_a_journal_of_other_options_is_refused(
    run_command: RunCommand,
    uniformerv2: Run,
    checkpoint: Path,
    colours: Path,
    tmp_path: Path,
    changed: list[object],
    part: str,
) -> None:
    command = ["evaluate", checkpoint, colours, "--clips", 2, "--crops", 1, "--batch-size", 2, "--workers", 0]
    command += ["--output", tmp_path / "a.json"]
    assert run_command(*command, prepare=partial(kill_before_item, 3)) == [-signal.SIGKILL]
    before = (tmp_path / "a.json.journal").read_bytes()
    status, output, errors = uniformerv2(*command, *changed, "--resume")
    assert (status, output) == (2, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert part in errors
    status, _, errors = uniformerv2(*command)  # without --resume
    assert status == 2
    assert "--resume" in errors
    assert (tmp_path / "a.json.journal").read_bytes() == before
    assert uniformerv2(*command, "--resume")[0] == 0


def test_a_journal_of_another_model_or_other_videos_is_refused(
    run_command: RunCommand, uniformerv2: Run, image_model: Path, colours: Path, tmp_path: Path
) -> None:
    checkpoint = draw_model(image_model, tmp_path / "model.safetensors", ["blue", "green", "red"])
    manifest = tmp_path / "videos.csv"
    lines = [f"{row.path},{row.label}" for row in read_annotations(colours)]
    manifest.write_text("\n".join(["path,label", *lines]))
    command = ["evaluate", checkpoint, manifest, "--workers", 0, "--batch-size", 1, "--output", tmp_path / "a.json"]
    assert run_command(*command, prepare=partial(kill_before_item, 3)) == [-signal.SIGKILL]
    manifest.write_text("\n".join(["path,label", *lines[1:]]))
    assert "videos (then 15 rows " in uniformerv2(*command, "--resume")[2]
    manifest.write_text("\n".join(["path,label", *lines]))
    model = load_model(checkpoint)
    with torch.no_grad():
        model.head.linear.bias[0] += 1
    save_model(model, checkpoint)
    assert "weights (then " in uniformerv2(*command, "--resume")[2]


def test_torchrun_starts_processes_that_share_the_videos(
    run_command: RunCommand, checkpoint: Path, colours: Path, tmp_path: Path
) -> None:
    arguments = ["evaluate", checkpoint, colours, "--clips", 1, "--crops", 1, "--workers", 0, "--batch-size", 4]
    assert run_command(*arguments, "--output", tmp_path / "one.json") == [0]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "uniformerv2"]
    shared_out = subprocess.run(
        [sys.executable, *torchrun, *map(str, arguments), "--output", str(tmp_path / "two.json")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shared_out.returncode == 0, shared_out.stderr
    assert shared_out.stdout.count("written to") == 1
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_of_several_processes_that_fail_one_says_why(
    run_command: RunCommand, checkpoint: Path, colours: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "videos.csv"
    manifest.write_text(f"path,label\n{colours / 'red' / 'red0.mp4'},purple\n")
    assert run_command("evaluate", checkpoint, manifest, "--output", tmp_path / "a.json", world=2) == [2, 2]
    assert not (tmp_path / "a.json").exists()


# --- real videos


@pytest.fixture(scope="module")
def weizmann(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[Path]]:
    """Manifest of thirty clips of ten actions with six damaged copies among them, and these copies."""
    folder = tmp_path_factory.mktemp("weizmann")
    clips = sorted((shared / "data" / "weizmann").glob("*/*.avi"))[::3]
    content = clips[0].read_bytes()
    noise = random.Random(0).randbytes(len(content))
    damaged = {
        "empty": b"",
        "header": content[:2000],
        "noise": noise,
        "text": b"this is no video\n" * 500,
        "overwritten": content[:300] + noise[300:],
        "zeros": bytes(len(content)),
    }
    rows = [(clip, clip.parent.name) for clip in clips]
    for place, (name, data) in enumerate(damaged.items()):
        (folder / f"{name}.avi").write_bytes(data)
        rows.insert(5 * place + 2, (folder / f"{name}.avi", clips[0].parent.name))
    with (folder / "videos.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return folder / "videos.csv", {folder / f"{name}.avi" for name in damaged}


def test_figures_do_not_depend_on_how_many_processes_share_the_videos(
    run_command: RunCommand, weizmann: tuple[Path, set[Path]], image_model: Path, tmp_path: Path
) -> None:
    manifest, damaged = weizmann
    labels = sorted({row.label for row in read_annotations(manifest)})
    assert len(labels) == 10
    checkpoint = draw_model(image_model, tmp_path / "model.safetensors", labels)

    def command(name: str) -> list[object]:
        views = ["--clips", 2, "--crops", 3]
        files = ["--output", tmp_path / f"{name}.json", "--predictions", tmp_path / f"{name}.csv"]
        return ["evaluate", checkpoint, manifest, *views, "--batch-size", 12, "--workers", 0, *files]

    for world in (1, 2, 3):
        assert run_command(*command(str(world)), world=world) == [0] * world
    assert run_command(*command("killed"), world=2, prepare=partial(kill_before_item, 4)) == [-signal.SIGKILL] * 2
    journals = [tmp_path / "killed.json.journal", tmp_path / "killed.json.journal.1"]
    assert [parts(journal) for journal in journals] == [[[0], [2], [4]], [[1], [3], [5]]]  # each its own
    assert run_command(*command("killed"), "--resume", world=3) == [0] * 3  # and by another number of processes

    result = json.loads((tmp_path / "1.json").read_text())
    assert {Path(one["path"]) for one in result["skipped"]} == damaged
    assert (result["evaluated"], sum(one["videos"] for one in result["classes"])) == (30, 30)
    with (tmp_path / "1.csv").open() as file:
        table = list(csv.DictReader(file))
    assert {Path(row["path"]) for row in table if row["error"]} == damaged
    for name in ("2", "3", "killed"):
        for suffix in (".json", ".csv"):
            assert (tmp_path / f"{name}{suffix}").read_bytes() == (tmp_path / f"1{suffix}").read_bytes()
    assert not list(tmp_path.glob("*.journal*"))


# --- what is printed and written


def test_predictions_have_a_row_for_every_video(
    uniformerv2: Run, checkpoint: Path, colours: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    red = colours / "red" / "red0.mp4"
    manifest = tmp_path / "videos.csv"
    manifest.write_text(f"path,label,start,end\n{red},red,0.2,1\nbroken.mp4,blue\n{red},green\n")
    command = ["evaluate", checkpoint, manifest, "--workers", 0, "--clips", 1, "--crops", 1]
    for name in ("table.csv", "table.parquet"):
        assert uniformerv2(*command, "--predictions", tmp_path / name)[0] == 0
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["label"], row["start"]) for row in rows] == [
        (str(red), "red", "0.2"),
        (str(tmp_path / "broken.mp4"), "blue", ""),
        (str(red), "green", ""),
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


def test_parquet_without_pyarrow_is_refused_before_anything_is_computed(
    uniformerv2: Run, checkpoint: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uniformerv2.measuring.shared_work.find_spec", lambda name: None)
    files = ["--output", tmp_path / "a.json", "--predictions", tmp_path / "a.parquet"]
    status, output, errors = uniformerv2("evaluate", checkpoint, colours, *files)
    assert (status, output) == (2, "")
    assert errors.count("\n") == 1
    assert 'pip install "uniformerv2[data]"' in errors
    assert not list(tmp_path.iterdir())
    status, _, errors = uniformerv2("evaluate", checkpoint, colours, *files[:2], "--predictions", tmp_path / "a.json")
    assert status == 2
    assert "one file cannot hold two things" in errors


def test_each_label_in_another_spelling_is_told_once(
    uniformerv2: Run, image_model: Path, colours: Path, tmp_path: Path
) -> None:
    labels = class_list("kinetics400", order="official")
    checkpoint = draw_model(image_model, tmp_path / "model.safetensors", labels)
    manifest = tmp_path / "videos.csv"
    reds = sorted((colours / "red").iterdir())
    names = ["hugging", "hugging", "riding_a_bike", "yoga", "sniffing"]
    manifest.write_text("\n".join(["path,label", *(f"{path},{name}" for path, name in zip(reds, names, strict=True))]))
    status, _, errors = uniformerv2("evaluate", checkpoint, manifest, "--workers", 0, "--output", tmp_path / "a.json")
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
    uniformerv2: Run, image_model: Path, colours: Path, tmp_path: Path
) -> None:
    model = load_model(
        draw_model(image_model, tmp_path / "model.safetensors", class_list("kinetics400", order="mmaction2"))
    )
    save_model(model, tmp_path / "model.safetensors", origin="b16-k400-8x224-mmaction2")
    manifest = tmp_path / "videos.csv"
    manifest.write_text(f"path,label\n{colours / 'red' / 'red0.mp4'},yoga\n")
    command = ["evaluate", tmp_path / "model.safetensors", manifest, "--workers", 0, "--output", tmp_path / "a.json"]
    status, output, _ = uniformerv2(*command)
    assert status == 0
    lines = output.splitlines()
    published = lines.index("published: b16-k400-8x224-mmaction2 on kinetics400, 8x3x4 views: top-1 84.3%, top-5 96.4%")
    assert lines[published + 1].startswith("not comparable: measured with 4x1x1 views; ")
    assert "measured on 1 videos, the validation set has about 19,906" in lines[published + 1]
