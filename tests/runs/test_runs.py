"""Runs are shown as their folders tell them. The folders are written by hand, so that every figure is known."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from uniformerv2.errors import RecipeError
from uniformerv2.runs.comparison import FIGURES, recipe_differences
from uniformerv2.runs.folder import read_run, read_runs
from uniformerv2.runs.report import render, write_report
from uniformerv2.runs.terminal import print_runs
from uniformerv2.tasks.classification.training import train_classifier
from uniformerv2.train.log import RunDisplay
from uniformerv2.train.recipe import ClipRecipe, ModelRecipe, Optimization, Recipe
from uniformerv2.train.run_folder import RunFolder

WriteRun = Callable[..., Path]
CommandLine = Callable[..., tuple[int, str, str]]

RECIPE: dict[str, dict[str, Any]] = {
    "model": {"arm": "tiny.safetensors", "layout": "temporal"},
    "clip": {"num_frames": 8, "size": 32},
    "optimization": {"epochs": 4, "batch_size": 4, "lr": 0.001},
    "augmentation": {"repeats": 1, "flip": 0.5},
    "evaluation": {"clips": 1, "crops": 1},
}
EVALUATION: dict[str, Any] = {
    "top1": 0.75,
    "top5": 1.0,
    "evaluated": 4,
    "views": {"clips": 3, "crops": 1, "average": "probabilities"},
    "skipped": [],
    "classes": [
        {"label": "jump", "videos": 2, "correct": 2, "top1": 1.0},
        {"label": "walk", "videos": 2, "correct": 1, "top1": 0.5},
        {"label": "fly", "videos": 0, "correct": 0, "top1": None},
    ],
    "confusions": [{"label": "walk", "taken_for": "jump", "videos": 1}],
}
STEPS_PER_EPOCH = 5


def step(number: int, loss: float) -> dict[str, Any]:
    """The record of a step of 4 clips that took a quarter of a second, a fifth of it waiting."""
    epoch = (number - 1) // STEPS_PER_EPOCH + 1
    speed = {"clips_per_second": 16.0, "data_wait": 0.2, "memory_mib": 512.0 + number}
    return {"kind": "step", "epoch": epoch, "step": number, "loss": loss, "lr": 0.0001 * number, "clips": 4, **speed}


def epoch(number: int, loss: float, top1: float | None = None) -> dict[str, Any]:
    """The record of an epoch; without top1, one that was not evaluated."""
    held_out = {} if top1 is None else {"top1": top1, "top5": 1.0, "held_out_loss": 2 - top1}
    return {"kind": "epoch", "epoch": number, "loss": loss, **held_out}


def history(top1: Sequence[float | None]) -> list[dict[str, Any]]:
    """The records of whole epochs, whose losses fall from 2.0 by 0.1 a step."""
    records = []
    for number, accuracy in enumerate(top1, start=1):
        steps = [step(one, 2.0 - 0.1 * (one - 1)) for one in range(5 * number - 4, 5 * number + 1)]
        records += [*steps, epoch(number, sum(one["loss"] for one in steps) / 5, accuracy)]
    return records


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes the folder of a run under a name: records, values of the recipe, the evaluation of a finished one."""

    def write(
        name: str = "run",
        records: Sequence[dict[str, Any]] = (),
        *,
        recipe: dict[str, Any] | None = None,
        evaluation: dict[str, Any] | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        changed = {part: values | (recipe or {}).get(part, {}) for part, values in RECIPE.items()}
        (folder / "recipe.json").write_text(json.dumps(changed))
        (folder / "train.csv").write_text("path,label,start,end\n" + "a.mp4,jump,,\n" * 22)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        if evaluation:
            (folder / "evaluation.json").write_text(json.dumps(evaluation))
        return folder

    return write


def printed(folders: Sequence[Path], *, width: int = 80, **options: Any) -> str:
    text = io.StringIO()
    print_runs(read_runs(folders), Console(file=text, width=width, **options))
    return text.getvalue()


def figures(folder: Path) -> dict[str, str]:
    run = read_run(folder)
    return {name: figure(run) for name, figure in FIGURES.items()}


# --- what is read


def test_figures_are_those_of_the_records(write_run: WriteRun) -> None:
    assert figures(write_run(records=history([0.5, 0.75, 0.75, 0.625]), evaluation=EVALUATION)) == {
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
    assert figures(folder)["epochs"] == "0/4"
    assert figures(folder)["loss"] == "-"


def test_run_that_has_just_begun(write_run: WriteRun) -> None:
    folder = write_run()
    (folder / "metrics.jsonl").unlink()
    run = read_run(folder)
    assert (run.finished_epochs, run.finished_steps, run.best, run.seconds, run.memory_mib) == (0, 0, None, None, None)
    assert "0/4" in printed([folder])
    assert "Nothing is recorded yet" in render([run])


def test_half_written_last_line_is_no_record(write_run: WriteRun) -> None:
    folder = write_run(records=history([0.5]))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(step(6, 1.5))[:40])
    run = read_run(folder)
    assert run.state == "stopped"
    assert run.finished_steps == 5


def test_state_follows_the_lock_and_the_evaluation(write_run: WriteRun) -> None:
    folder = write_run(records=history([0.5]))
    holding = "import sys, uniformerv2.train.lock as lock\nwith lock.locked(__import__('pathlib').Path(sys.argv[1])):\n"
    holding += "    print('held', flush=True)\n    sys.stdin.read()\n"
    lock = folder / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", holding, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
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
    recipe = Recipe(
        ModelRecipe(arm=str(image_model)),
        ClipRecipe(num_frames=4, size=32),
        Optimization(epochs=3, batch_size=4, precision="fp32", evaluate_every=2),
    )

    def stop(display: RunDisplay, epoch: int, *_: object) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(RunDisplay, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            train_classifier(colours, recipe, tmp_path / "run", workers=0)
    stopped = read_run(tmp_path / "run")
    assert (stopped.state, stopped.finished_epochs, stopped.finished_steps) == ("stopped", 1, 4)
    result = train_classifier(colours, recipe, tmp_path / "run", workers=0, resume=True)
    run = read_run(tmp_path / "run")
    assert (run.state, run.finished_epochs) == ("finished", 3)
    assert [one["step"] for one in run.steps] == [1, 2, 3, 4, 5, 6, 7, 8, 9]  # 12 videos: 3 steps an epoch
    assert run.curve("loss")[-1][0] == 3.0
    assert run.curve("top1") == [(2.0, result.history[1]["top1"]), (3.0, result.evaluation.top1)]
    assert {row[0] for row in Text(render([run])).tables[1]} == {"", "blue", "green", "red"}


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
    write_run: WriteRun, uniformerv2: CommandLine, file: str, content: str | bytes | None, says: str
) -> None:
    folder = write_run(records=history([0.5]))
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    status, output, errors = uniformerv2("runs", folder)
    assert (status, output) == (2, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert str(folder) in errors
    assert says in errors


def test_no_run_at_all_is_refused(uniformerv2: CommandLine, tmp_path: Path) -> None:
    assert uniformerv2("runs")[::2] == (2, "error: no runs to show: give the folder of one or more\n")
    assert uniformerv2("runs", tmp_path / "absent")[0] == 2
    with pytest.raises(RecipeError, match="not the folder of a run"):
        read_run(__file__)


def test_runs_of_one_name_are_told_apart(write_run: WriteRun) -> None:
    folders = [write_run("a/run"), write_run("b/run"), write_run("other")]
    assert [run.name for run in read_runs(folders)] == [str(folders[0]), str(folders[1]), "other"]


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
    assert re.search(r"lr +0\.0003 +1 3 *\n +0\.001 +2 *\n", printed([first, second, third]))


# --- what is printed


def rows_of(chart: str, text: str) -> list[str]:
    """The lines of a chart in the terminal, from its top to zero."""
    lines = text.split(f"{chart}")[1].splitlines()[1:]
    return [line.split("│")[1] for line in lines[: next(n for n, line in enumerate(lines) if "└" in line)]]


def test_terminal_draws_the_curves(write_run: WriteRun) -> None:
    records = [step(number, 2.0 - 0.4 * (number - 1)) for number in range(1, 6)]  # 2.0 ... 0.4
    records += [step(6, 0.0), epoch(1, 1.0, 1.0)]
    records[5]["epoch"] = 2
    text = printed([write_run(records=records)], width=43)
    rows = rows_of("training loss", text)
    assert len(rows) == 8
    inner = len(rows[0])
    first_step, last_step = round(inner * 0.2 / 2), round(inner * 1.2 / 2)  # the axis ends with epoch 2
    assert rows[0][first_step - 1 : first_step + 2].strip()  # 2.0 is the top
    assert not rows[0][first_step + 4 :].strip()
    assert rows[7][last_step - 1 : last_step + 1].strip()  # 0.0
    assert not rows[7][: last_step - 3].strip()
    for row in rows:
        assert not row[last_step + 1 :].strip()  # nothing is drawn beyond the last step
    assert text.splitlines()[0].split() == ["1", "run"]
    assert rows_of("held-out top-1, %", text)[0][inner // 2 - 2 : inner // 2].strip()  # 100 %, at half of two epochs


@pytest.mark.parametrize("width", [30, 40, 80, 130])
def test_nothing_is_wider_than_the_terminal(write_run: WriteRun, width: int) -> None:
    first = write_run("a-name-of-a-run-that-is-longer-than-narrow-terminals", history([0.5, 0.625]))
    second = write_run("[bold]second", history([None, 0.75, 1.0]), recipe={"optimization": {"lr": 0.5}})
    text = printed([first, second], width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text  # no escape codes where there is no terminal
    assert "[bold]second" in text
    assert "…" not in text
    for figure in ("2/4", "3/4", "62.5%", "100.0%", "16.0", "0.5 GiB", "0:00:04"):
        assert figure in text


def test_each_curve_carries_the_number_of_its_run(write_run: WriteRun) -> None:
    text = printed([write_run("one", history([0.5] * 4)), write_run("two", history([1.0] * 4))])
    rows = rows_of("held-out top-1, %", text)
    assert "2" in rows[0]
    assert any("1" in row for row in rows[3:5])


def test_terminal_is_coloured(write_run: WriteRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    folders = [write_run("one", history([0.5])), write_run("two", history([0.5]))]
    assert "\x1b[36m" in printed(folders, force_terminal=True, color_system="standard")


def test_output_that_cannot_hold_the_curves(write_run: WriteRun) -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii") as ascii_file:
        print_runs(read_runs([write_run(records=history([0.5]))]), Console(file=ascii_file, width=80))
        ascii_file.flush()
        text = raw.getvalue().decode("ascii")
    assert "curves need an output in UTF-8" in text
    assert "50.0%" in text


# --- the page


class Text(HTMLParser):
    """The text of a page, table by table."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: set[str] = set()
        self._in_table = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "table":
            self.tables.append([])
            self._in_table = True
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_table = self._in_table and tag != "table"

    def handle_data(self, data: str) -> None:
        if self._in_table and self.tables[-1] and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += data


def curves_of(page: str, title: str) -> dict[str, list[tuple[float, float]]]:
    """The curves of a chart by their class, in the units of its axes: read off as a person would, with its ticks."""
    chart = page.split(f">{title}</text>")[1].split("</svg>")[0]
    ticks = re.findall(r'class="tick" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([\d.]+)<', chart)
    across = [(float(x), float(value)) for x, _, anchor, value in ticks if anchor == "middle"]
    up = [(float(y) - 4, float(value)) for _, y, anchor, value in ticks if anchor == "end"]  # text stands 4 below

    def read(place: float, ends: list[tuple[float, float]]) -> float:
        (first, low), (last, high) = ends[0], ends[-1]
        return low + (place - first) / (last - first) * (high - low)

    return {
        name: [(read(float(x), across), read(float(y), up)) for x, y in (one.split(",") for one in points.split())]
        for name, points in re.findall(r'<polyline class="line ([^"]+)" points="([^"]*)"', chart)
    }


def test_page_draws_the_curves(write_run: WriteRun) -> None:
    long = write_run("long", history([0.5, None, 1.0, 0.75]))
    short = write_run("short", history([0.25, 0.5]))
    page = render(read_runs([long, short]))
    close = {"abs": 0.01}  # coordinates have a tenth of a pixel
    losses = curves_of(page, "training loss")
    for name, steps in (("c0", 20), ("c1", 10)):
        assert len(losses[name]) == steps
        for number, (epochs, loss) in enumerate(losses[name]):
            assert epochs == pytest.approx((number + 1) / 5, **close)
            assert loss == pytest.approx(2.0 - 0.1 * number, **close)
    accuracies = curves_of(page, "held-out top-1, %")
    assert [y for _, y in accuracies["c0"]] == pytest.approx([50, 100, 75], abs=0.1)
    assert [x for x, _ in accuracies["c0"]] == pytest.approx([1, 3, 4], **close)
    assert [y for _, y in accuracies["c1"]] == pytest.approx([25, 50], abs=0.1)
    assert "<title>epoch 3: 100</title>" in page
    assert "those of each step" in page


def test_page_says_what_is_smoothed(write_run: WriteRun) -> None:
    """401 steps in at most 200 points: means of three."""
    records = [step(number, float(number % 3)) for number in range(1, 402)]
    page = render(read_runs([write_run("many", records)]))
    assert "means of neighbouring steps: 3 in many" in page
    line = curves_of(page, "training loss")["c0"]
    assert len(line) == 134
    assert [y for _, y in line[:-1]] == pytest.approx([1.0] * 133, abs=0.01)


def test_page_holds_the_tables(write_run: WriteRun) -> None:
    finished = write_run("finished", history([0.5] * 4), evaluation=EVALUATION)
    running = write_run("other", history([0.75]), recipe={"optimization": {"lr": 0.5}})
    figures_, recipes, classes, confusions = Text(render(read_runs([finished, running]))).tables
    assert figures_[0] == ["", *FIGURES]
    assert figures_[1][:5] == ["finished", "finished", "4/4", "0.300", "50.0%"]
    assert figures_[2][:5] == ["other", "stopped", "1/4", "1.800", "75.0%"]
    assert recipes == [["", "finished", "other"], ["lr", "0.001", "0.5"]]
    assert classes == [["", "finished"], ["walk", "50.0\xa0%"], ["jump", "100.0\xa0%"], ["fly", "-"]]
    assert confusions[1] == ["finished", "walk", "jump", "1"]


def test_page_is_one_file_that_escapes_what_it_is_given(write_run: WriteRun) -> None:
    evil = "<script>alert('1')<b>&"
    evaluation = EVALUATION | {
        "classes": [{"label": evil, "videos": 1, "correct": 0, "top1": 0.0}],
        "confusions": [{"label": evil, "taken_for": evil, "videos": 1}],
    }
    folders = [
        write_run("<img src=x>&one", history([0.5]), evaluation=evaluation),
        write_run("two", [step(number, 1.0) for number in range(1, 300)], recipe={"model": {"arm": evil}}),
    ]
    page = render(read_runs(folders))
    assert not {"script", "link", "img", "b", "iframe"} & Text(page).tags
    assert not re.search(r"https?://|url\(|@import", page)
    assert "&lt;img src=x&gt;&amp;one" in page
    assert Text(page).tables[1][1] == ["arm", "tiny.safetensors", evil]
    assert Text(page).tables[3][1] == ["<img src=x>&one", evil, evil, "1"]


def test_many_runs_are_told_apart(write_run: WriteRun) -> None:
    page = render(read_runs([write_run(f"run{number}", history([0.5])) for number in range(10)]))
    lines = curves_of(page, "training loss")
    assert sorted(lines) == sorted([f"c{number}" for number in range(8)] + ["c0 again", "c1 again"])


def test_command_prints_and_writes(write_run: WriteRun, uniformerv2: CommandLine, tmp_path: Path) -> None:
    first, second = write_run("first", history([0.5])), write_run("second", history([0.75]))
    before = sorted(file.name for file in first.iterdir())
    status, output, errors = uniformerv2("runs", first, second, "--html", tmp_path / "report.html")
    assert (status, errors) == (0, "")
    assert "training loss" in output
    assert "75.0%" in output
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(read_runs([first, second]))
    assert sorted(file.name for file in first.iterdir()) == before  # the runs are left as they are
    status, _, errors = uniformerv2("runs", first, "--html", tmp_path / "absent" / "report.html")
    assert status == 2
    assert errors.count("\n") == 1


def test_report_is_whole_or_absent(write_run: WriteRun, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent"):
        write_report(tmp_path / "absent" / "report.html", [read_run(write_run())])


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from uniformerv2 import cli\n"
        "try: cli.main(['runs', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'av', 'plotille'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "--html" in result.stdout
