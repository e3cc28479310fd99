"""Runs, read from their folders: their figures, and the differences of their recipes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import Run, assert_refused, tiny_recipe, train
from runs.written import EVALUATION, WriteRun, history, step
from uniformerv2.errors import RecipeError
from uniformerv2.runs.folder import FIGURES, read_run, read_runs, recipe_differences
from uniformerv2.runs.report import render
from uniformerv2.train.log import RunDisplay
from uniformerv2.train.run_folder import RunFolder


def test_figures_are_those_of_the_records(write_run: WriteRun) -> None:
    run = read_run(write_run(records=history([0.5, 0.75, 0.75, 0.625]), evaluation=EVALUATION))
    assert {name: figure(run) for name, figure in FIGURES.items()} == {
        "state": "finished",
        "epochs": "4/4",
        "loss": "0.300",  # of the steps 16 to 20: 0.5, 0.4, 0.3, 0.2, 0.1
        "best top-1": "75.0%",
        "in epoch": "3",  # of equals the later, as best.safetensors
        "last top-1": "62.5%",
        "top-5": "100.0%",
        "steps": "20",
        "clips/s": "16.0",
        "waiting": "20.0%",
        "memory": "0.5 GiB",  # 532 MiB
        "time": "0:00:05",  # 20 steps of 4 clips at 16 clips/s
    }


def test_only_the_fields_that_differ_are_told(write_run: WriteRun) -> None:
    first = write_run("first", recipe={"optimization": {"lr": 3e-4}})
    second = write_run("second", recipe={"clip": {"size": [32, 48]}})
    third = write_run("third", recipe={"optimization": {"lr": 3e-4, "ema": 0.9}})
    runs = read_runs([first, second, third])
    assert recipe_differences(runs) == {
        "ema": ("None", "None", "0.9"),
        "lr": ("0.0003", "0.001", "0.0003"),
        "size": ("32", "32 48", "32"),
    }
    assert recipe_differences(runs[:1]) == {}


def test_speed_is_that_of_the_whole_time(write_run: WriteRun) -> None:
    """A slow step counts for as long as it took: 4 clips in 1 s and 4 clips in 4 s are 1.6 clips/s."""
    quick, slow = step(1, 1.0), step(2, 1.0)
    quick |= {"clips_per_second": 4.0, "data_wait": 0.0}
    slow |= {"clips_per_second": 1.0, "data_wait": 0.5}
    run = read_run(write_run(records=[quick, slow]))
    assert run.clips_per_second == pytest.approx(1.6)
    assert run.data_wait == pytest.approx(2 / 5)
    assert run.seconds == pytest.approx(5)


def test_curves_are_the_recorded_values_over_epochs(write_run: WriteRun) -> None:
    run = read_run(write_run(records=history([None, 0.5, None, 1.0])))
    assert run.curve("loss") == [(pytest.approx(n / 5), pytest.approx(2.0 - 0.1 * (n - 1))) for n in range(1, 21)]
    assert run.curve("top1") == [(2.0, 0.5), (4.0, 1.0)]  # the epochs that were evaluated
    assert run.curve("held_out_loss") == [(2.0, 1.5), (4.0, 1.0)]
    assert run.curve("nonsense") == []


def test_a_step_without_readable_videos_leaves_a_gap(write_run: WriteRun) -> None:
    """It has no record; the others stay where they are."""
    records = [one for one in history([0.5, 0.5]) if one.get("step") not in (3, 5)]
    assert [x for x, _ in read_run(write_run(records=records)).curve("loss")][:4] == [0.2, 0.4, 0.8, 1.2]


def test_first_epoch_is_measured_by_the_videos(write_run: WriteRun) -> None:
    """22 videos in batches of 4 are 5 steps."""
    folder = write_run(records=[step(1, 2.0), step(2, 1.5)])
    assert read_run(folder).curve("loss") == [(0.2, 2.0), (0.4, 1.5)]
    assert FIGURES["epochs"](read_run(folder)) == "0/4"
    assert FIGURES["loss"](read_run(folder)) == "-"


def test_run_that_has_just_begun(write_run: WriteRun) -> None:
    folder = write_run()
    (folder / "metrics.jsonl").unlink()
    run = read_run(folder)
    assert (run.finished_epochs, run.finished_steps, run.best, run.seconds, run.memory_mib) == (0, 0, None, None, None)
    assert FIGURES["epochs"](run) == "0/4"


def test_half_written_last_line_is_no_record(write_run: WriteRun) -> None:
    folder = write_run(records=history([0.5]))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(step(6, 1.5))[:40])
    run = read_run(folder)
    assert run.state == "stopped"
    assert run.finished_steps == 5


def test_state_follows_the_lock_and_the_evaluation(write_run: WriteRun) -> None:
    folder = write_run(records=history([0.5]))
    holding = "import pathlib, sys\nfrom uniformerv2.train.run_folder import locked\n"
    holding += "with locked(pathlib.Path(sys.argv[1])):\n"
    holding += "    print('held', flush=True)\n    sys.stdin.read()\n"
    lock = folder / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", holding, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        assert read_run(folder).state == "running"
        process.kill()
    assert lock.is_file()  # left behind
    assert read_run(folder).state == "stopped"
    with RunFolder(folder).locked():
        assert read_run(folder).state == "running"  # in this process
        assert read_run(folder).state == "running"  # asking did not give the lock up
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    assert read_run(folder).state == "finished"


def test_resumed_run_is_read_as_one(
    colours: Path, image_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(image_model, epochs=3, evaluate_every=2)

    def stop(display: RunDisplay, epoch: int, *_: object) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(RunDisplay, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(colours, recipe, tmp_path / "run")
    stopped = read_run(tmp_path / "run")
    assert (stopped.state, stopped.finished_epochs, stopped.finished_steps) == ("stopped", 1, 4)
    result = train(colours, recipe, tmp_path / "run", resume=True)
    run = read_run(tmp_path / "run")
    assert (run.state, run.finished_epochs) == ("finished", 3)
    assert [one["step"] for one in run.steps] == [1, 2, 3, 4, 5, 6, 7, 8, 9]  # 12 videos: 3 steps an epoch
    assert run.curve("loss")[-1][0] == 3.0
    assert run.curve("top1") == [(2.0, result.history[1]["top1"]), (3.0, result.evaluation.top1)]
    page = render([run])
    assert all(f'<th scope="row">{label}</th>' in page for label in ("blue", "green", "red"))


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("recipe.json", None, "recipe.json is missing"),
        ("recipe.json", "{", "recipe.json: not a file of a run"),
        ("recipe.json", "[1, 2]", "it has no"),
        ("recipe.json", '{"model": {}}', "it has no augmentation, clip"),
        ("metrics.jsonl", '{"accuracy": 1}\n', "metrics.jsonl: not a file of a run (it has no epoch, kind)"),
        ("metrics.jsonl", '{"kind": "step", "epoch": 1, "step": 1, "loss": 1}\n', "it has no clips"),
        ("metrics.jsonl", b"\xff\xfe", "metrics.jsonl: not a file of a run"),
        ("evaluation.json", '{"accuracy": 1}', "evaluation.json: not a file of a run (it has no classes"),
    ],
)
def test_what_is_no_run_is_refused(
    write_run: WriteRun, uniformerv2: Run, file: str, content: str | bytes | None, says: str
) -> None:
    folder = write_run(records=history([0.5]))
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(uniformerv2("runs", folder), folder, says)


def test_no_run_at_all_is_refused(uniformerv2: Run, tmp_path: Path) -> None:
    assert_refused(uniformerv2("runs"), "no runs to show: give the folder of one or more")
    assert_refused(uniformerv2("runs", tmp_path / "absent"), "absent")
    with pytest.raises(RecipeError, match="not the folder of a run"):
        read_run(__file__)


def test_runs_of_one_name_are_told_apart(write_run: WriteRun) -> None:
    folders = [write_run("a/run"), write_run("b/run"), write_run("other")]
    assert [run.name for run in read_runs(folders)] == [str(folders[0]), str(folders[1]), "other"]
