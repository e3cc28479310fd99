"""Training runs read from their folders, while they train, stopped or finished; and what a comparison of them shows."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from uniformerv2.errors import RecipeError
from uniformerv2.pages.curves import Points, last_epoch
from uniformerv2.text import parse_json
from uniformerv2.train.choices import MONITORED, SPAN_TASK
from uniformerv2.train.log import TIMINGS, read_metrics
from uniformerv2.train.recipe import USUAL_TASK, Recipe, disagreements
from uniformerv2.train.run_folder import RunFolder, is_locked

STEP = {"step", "clips", *TIMINGS}  # keys of the record of a step
SEVERAL_LABELS = "multilabel"  # a task whose figures are others; so are those of localisers
METRICS = {SEVERAL_LABELS: "mean_average_precision", SPAN_TASK: "average_map"}  # in metrics.jsonl; of others top1
RECIPE = {part.name for part in fields(Recipe)}
EVALUATION = {"views", "evaluated", "classes", "skipped"}
SPAN_RECIPE = {"localiser", "optimization"}
SPAN_EVALUATION = {"evaluated", "mAP", "average_mAP", "ap_per_class", "right", "false_positives", "skipped"}

State = Literal["running", "stopped", "finished"]


@dataclass(frozen=True)
class Run:
    """The state of a run. Values that are not known yet are None."""

    folder: Path
    name: str  # distinct among the compared runs
    state: State  # stopped: neither finished nor trained by a process
    recipe: dict[str, Any]  # as recipe.json has it
    steps: tuple[Mapping[str, Any], ...]  # records of metrics.jsonl
    epochs: tuple[Mapping[str, Any], ...]  # the same
    evaluation: Mapping[str, Any] | None  # evaluation.json: the last model, when the run is over
    training_videos: int

    @property
    def planned_epochs(self) -> int:
        return self.recipe["optimization"]["epochs"]

    @property
    def finished_epochs(self) -> int:
        return self.epochs[-1]["epoch"] if self.epochs else 0

    @property
    def finished_steps(self) -> int:
        return self.steps[-1]["step"] if self.steps else 0

    @property
    def steps_per_epoch(self) -> int:
        """Counted, or during the first epoch computed from the videos and the recipe."""
        if self.epochs:  # the last step of each; a step without a readable video has no record
            return max((math.ceil(step["step"] / step["epoch"]) for step in self.steps), default=1)
        batch_size = self.recipe["optimization"]["batch_size"]
        if self.task == SPAN_TASK:
            return max(1, math.ceil(self.training_videos / batch_size))
        return max(1, self.training_videos * self.recipe["augmentation"]["repeats"] // batch_size)

    def curve(self, name: str) -> list[tuple[float, float]]:
        """What was recorded under a name at each step, or else at each epoch: (epochs since the start, value)."""
        length = self.steps_per_epoch
        steps = [(step["step"] / length, step[name]) for step in self.steps if name in step]
        points = steps or [(float(epoch["epoch"]), epoch[name]) for epoch in self.epochs if name in epoch]
        return [(epochs, value) for epochs, value in points if math.isfinite(value)]

    def last(self, name: str) -> float | None:
        """The value of the last epoch that has it."""
        return next((epoch[name] for epoch in reversed(self.epochs) if name in epoch), None)

    @property
    def best(self) -> tuple[float, int] | None:
        """Held-out `metric`, in [0, 1], and number of the epoch of best.safetensors: of equals the later."""
        monitor = self.recipe["optimization"].get("monitor", "top1")
        name, sign = MONITORED.get(monitor, self.metric), -1 if monitor == "loss" else 1
        measured = [epoch for epoch in self.epochs if name in epoch]
        if not measured:
            return None
        best = max(measured, key=lambda epoch: (sign * epoch[name], epoch["epoch"]))
        return best[self.metric], best["epoch"]

    @property
    def task(self) -> str:
        return self.recipe.get("task", USUAL_TASK)

    @property
    def metric(self) -> str:
        """What tells how good the model is: its name in metrics.jsonl."""
        return METRICS.get(self.task, "top1")

    @property
    def seconds(self) -> float | None:
        """Time of all training steps, waiting for clips included, evaluating and saving not."""
        return math.fsum(step["clips"] / step["clips_per_second"] for step in self.steps) if self.steps else None

    @property
    def clips_per_second(self) -> float | None:
        return sum(step["clips"] for step in self.steps) / self.seconds if self.seconds else None

    @property
    def data_wait(self) -> float | None:
        """Share of `seconds` that passed waiting for clips."""
        if not self.seconds:
            return None
        waited = (step["data_wait"] * step["clips"] / step["clips_per_second"] for step in self.steps)
        return math.fsum(waited) / self.seconds

    @property
    def memory_mib(self) -> float | None:
        """Largest use: of a GPU's memory by tensors, or of the machine's by the process."""
        return max((step["memory_mib"] for step in self.steps), default=None)


def read_run(folder: str | Path, *, name: str = "") -> Run:
    """A run from its folder, which is not changed.

    Args:
        folder: as `train_model` and `train_localiser` write it.
        name: of the run; default: that of the folder.

    Raises:
        RecipeError: it is not the folder of a run, or its files are not those of a run.
    """
    run = RunFolder(folder)
    if not run.recipe.is_file():
        raise RecipeError(f"{run.path}: not the folder of a run (recipe.json is missing)")
    running = is_locked(run.path / ".lock")  # asked first: a run that ends meanwhile is finished
    task = _read_json(run.recipe, set()).get("task", USUAL_TASK)
    of_recipe, of_evaluation = (SPAN_RECIPE, SPAN_EVALUATION) if task == SPAN_TASK else (RECIPE, EVALUATION)
    evaluation = _read_json(run.evaluation, of_evaluation) if run.evaluation.is_file() else None
    steps, epochs = _read_records(run.metrics) if run.metrics.is_file() else ((), ())
    recipe = _read_json(run.recipe, of_recipe)
    whole = bool(epochs) and epochs[-1]["epoch"] == recipe["optimization"]["epochs"]
    finished = evaluation or (whole and not running and not run.held_out.is_file())  # some have nothing to evaluate
    return Run(
        folder=run.path,
        name=name or run.path.absolute().name,
        state="finished" if finished else "running" if running else "stopped",
        recipe=recipe,
        steps=steps,
        epochs=epochs,
        evaluation=evaluation,
        training_videos=_count_videos(run.train, task),
    )


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Several runs, under names that differ: those of the folders, or their whole paths where these are the same.

    Raises:
        RecipeError: as `read_run`, or `folders` is empty.
    """
    if not folders:
        raise RecipeError("no runs to show: give the folder of one or more")
    names = [Path(folder).absolute().name for folder in folders]
    return [
        read_run(folder, name=name if names.count(name) == 1 else str(folder))
        for folder, name in zip(folders, names, strict=True)
    ]


def _read_json(file: Path, wanted: Set[str]) -> dict[str, Any]:
    """The object in a JSON file, which must have these keys."""
    try:
        value = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of its encoding
        raise RecipeError(f"{file}: not a file of a run ({error})") from error
    return _check(value, wanted, file)


def _read_records(file: Path) -> tuple[tuple[dict[str, Any], ...], tuple[dict[str, Any], ...]]:
    """Records of the steps and of the epochs."""
    try:
        records = [_check(record, {"kind", "epoch"}, file) for record in read_metrics(file)]
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file}: not a file of a run ({error})") from error
    steps = tuple(_check(record, STEP, file) for record in records if record["kind"] == "step")
    return steps, tuple(record for record in records if record["kind"] == "epoch")


def _check(value: Any, wanted: Set[str], file: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecipeError(f"{file}: not a file of a run (it has no {', '.join(sorted(wanted)) or 'fields'})")
    if missing := wanted - value.keys():
        raise RecipeError(f"{file}: not a file of a run (it has no {', '.join(sorted(missing))})")
    return value


def _count_videos(manifest: Path, task: str) -> int:
    if not manifest.is_file():
        return 0
    columns = ("path",) if task == SPAN_TASK else ("path", "start", "end")
    with manifest.open(encoding="utf-8", newline="") as file:  # perhaps a row for each label, or span
        rows = [tuple(row.get(name) for name in columns) for row in csv.DictReader(file)]
    return len(set(rows) if task in METRICS else rows)


# --- what a comparison shows, on a page as in a terminal: curves, figures and differences of the recipes

UNKNOWN = "-"


@dataclass(frozen=True)
class Quantity:
    """A recorded value that is drawn as a curve."""

    name: str  # in metrics.jsonl
    title: str
    factor: float = 1.0  # of the values
    top: float | None = None  # where the axis ends, if not above the largest value


QUANTITIES = (
    Quantity("loss", "training loss"),
    Quantity("top1", "held-out top-1, %", factor=100.0, top=100.0),
    Quantity("mean_average_precision", "held-out mAP, %", factor=100.0, top=100.0),
    Quantity("average_map", "held-out average mAP, %", factor=100.0, top=100.0),
    Quantity("held_out_loss", "held-out loss"),
    Quantity("lr", "learning rate"),
)

FIGURES: Mapping[str, Callable[[Run], str]] = {
    "state": lambda run: run.state,
    "epochs": lambda run: f"{run.finished_epochs}/{run.planned_epochs}",
    "loss": lambda run: _number(run.last("loss"), ".3f"),
    "best top-1": lambda run: _best(run, "top1"),
    "in epoch": lambda run: str(run.best[1]) if run.best else UNKNOWN,
    "last top-1": lambda run: _share(run.last("top1")),
    "top-5": lambda run: _share(run.last("top5")),
    "steps": lambda run: str(run.finished_steps),
    "clips/s": lambda run: _number(run.clips_per_second, ".1f"),
    "waiting": lambda run: _share(run.data_wait),
    "memory": lambda run: _number(run.memory_mib and run.memory_mib / 2**10, ".1f", " GiB"),
    "time": lambda run: UNKNOWN if run.seconds is None else str(timedelta(seconds=round(run.seconds))),
}
OF_SEVERAL_LABELS: Mapping[str, Callable[[Run], str]] = {
    "best mAP": lambda run: _best(run, "mean_average_precision"),
    "last mAP": lambda run: _share(run.last("mean_average_precision")),
    "macro F1": lambda run: _share(run.last("macro_f1")),
}  # in the place of those of `OF_ONE_LABEL`
OF_SPANS: Mapping[str, Callable[[Run], str]] = {
    "best average mAP": lambda run: _best(run, "average_map"),
    "last average mAP": lambda run: _share(run.last("average_map")),
}  # likewise
OF_ONE_LABEL = ("best top-1", "last top-1", "top-5")
FIGURES_NOTE = (
    "Loss: mean of the last epoch. Top-1, top-5, mAP and F1: single views of the held-out videos; average mAP: of the "
    "spans in held-out films, over tIoU 0.3 to 0.7; the best epoch is that of best.safetensors, by the recipe's "
    "monitor. Clips per second (of localisers films), waiting (for videos) and time: of all training steps, without "
    "evaluating and saving."
)


def figures_of(runs: Sequence[Run]) -> Mapping[str, Callable[[Run], str]]:
    """The figures of `FIGURES`, `OF_SEVERAL_LABELS` and `OF_SPANS` that some of the runs have."""
    metrics = {run.metric for run in runs}
    found = {name: figure for name, figure in FIGURES.items() if name not in OF_ONE_LABEL or "top1" in metrics}
    for metric, figures in ((METRICS[SEVERAL_LABELS], OF_SEVERAL_LABELS), (METRICS[SPAN_TASK], OF_SPANS)):
        found |= figures if metric in metrics else {}
    return found


def curves(runs: Sequence[Run]) -> list[tuple[Quantity, list[Points]]]:
    """Each quantity that was recorded, with a curve for every run, which may be empty."""
    found: list[tuple[Quantity, list[Points]]] = []
    for quantity in QUANTITIES:
        lines: list[Points] = [[(x, y * quantity.factor) for x, y in run.curve(quantity.name)] for run in runs]
        if any(lines):
            found.append((quantity, lines))
    return found


def axis_end(found: Sequence[tuple[Quantity, Sequence[Points]]]) -> int:
    """The epoch where the horizontal axes of all `curves` end, so that they can be compared."""
    return last_epoch([line for _, lines in found for line in lines])


def recipe_differences(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    """The fields that the recipes disagree on, with the value of each run."""
    found = disagreements([run.recipe for run in runs])
    return {name: tuple(_value(value) for value in values) for name, values in found.items()}


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: float | None, form: str, unit: str = "") -> str:
    return UNKNOWN if value is None else f"{value:{form}}{unit}"


def _best(run: Run, metric: str) -> str:
    """Of the best epoch, where this is the metric of the run."""
    return _share(run.best[0] if run.best and run.metric == metric else None)


def _share(value: float | None) -> str:
    return _number(value, ".1%")
