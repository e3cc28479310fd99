"""What a run reports: metrics.jsonl for programs, a progress bar and a line per epoch for people.

TensorBoard and Weights & Biases get the numbers of metrics.jsonl. They are imported when asked for, and not before.
"""

from __future__ import annotations

import importlib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar

import torch
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from uniformerv2.atomic import write_text
from uniformerv2.device import peak_memory_mib
from uniformerv2.distributed import current_ranks
from uniformerv2.errors import RecipeError
from uniformerv2.progress import LineTimer, say, stderr_console
from uniformerv2.text import parse_json
from uniformerv2.train.run_folder import RunFolder
from uniformerv2.train.step import StepResult

T = TypeVar("T")
LoggerName = Literal["tensorboard", "wandb"]
Logger = Callable[[str, Mapping[str, float], int], object]
"""Takes the kind "step" or "epoch", its numbers, and after how many steps they are known."""

TIMINGS = ("clips_per_second", "data_wait", "memory_mib")
"""What differs between records of equal runs."""


def open_metrics(path: Path, *, finished_epochs: int, finished_steps: int = 0) -> TextIO:
    """metrics.jsonl, to be written to: a JSON object a line, of `kind` "step" or "epoch", whose `epoch` counts from 1.

    Args:
        path: the file, continued where it exists.
        finished_epochs: what it holds of later epochs is dropped: a killed run wrote it, and they run again.
        finished_steps: but for these steps, counted from the first epoch on.
    """
    records = read_metrics(path) if path.is_file() else []

    def counts(record: dict[str, Any]) -> bool:
        return record["epoch"] <= finished_epochs or record.get("step", finished_steps + 1) <= finished_steps

    kept = (json.dumps(record) + "\n" for record in records if counts(record))
    write_text(path, "".join(kept))  # whole, whenever a kill comes
    return path.open("a", encoding="utf-8", buffering=1)  # line by line, for those who watch


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl. A last line that a killed run left half written is no record."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(parse_json(line))
        except ValueError:
            break
    return records


class Speed:
    """How fast training is, and how long it waits for data.

    Figures are clips_per_second; data_wait, the share of the time that passed waiting for clips; memory_mib, see
    `peak_memory_mib`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._start = self._last = time.perf_counter()
        self._clips = 0
        self._waited = self._waited_before = 0.0

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; the time until they come counts as waiting."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def step(self, clips: int) -> dict[str, float]:
        """Count a step; returns the figures of this step."""
        now = time.perf_counter()
        figures = self._figures(clips, now - self._last, self._waited - self._waited_before)
        self._clips += clips
        self._last, self._waited_before = now, self._waited
        return figures

    @property
    def computing(self) -> float:
        """Seconds from the start to the last step that did not pass waiting."""
        return self._last - self._start - self._waited_before

    @property
    def total(self) -> dict[str, float]:
        """The figures from the start to the last step."""
        return self._figures(self._clips, self._last - self._start, self._waited_before)

    def _figures(self, clips: int, seconds: float, waited: float) -> dict[str, float]:
        seconds = max(seconds, 1e-9)
        figures = (clips / seconds, min(waited / seconds, 1.0), peak_memory_mib(self.device))
        return dict(zip(TIMINGS, figures, strict=True))


class RunDisplay(ExitStack):
    """Shows a run: on a terminal a bar with loss, metrics, clips/s and time left; everywhere a line per epoch.

    The bar is on stderr, and without a terminal a line from time to time in its place; lines of epochs are on stdout.

    Args:
        epochs: of the whole run.
        steps: of the whole run.
        finished_steps: where a resumed run starts.
        progress: whether to show anything.
    """

    def __init__(self, *, epochs: int, steps: int, finished_steps: int = 0, progress: bool = False) -> None:
        super().__init__()
        self.epochs, self.progress = epochs, progress
        self._steps, self._finished, self._start = steps, finished_steps, time.perf_counter()
        self._first = finished_steps
        self._timer = LineTimer()
        self._bar = _bar() if progress else None
        if self._bar:
            self._task = self._bar.add_task("", total=steps, completed=finished_steps)
            self.enter_context(self._bar)

    def step(
        self, epoch: int, means: Mapping[str, float], facts: Mapping[str, float], speed: Mapping[str, float]
    ) -> None:
        """A step is done; `means` and `speed` are those of the epoch so far, `facts` of the step."""
        self._finished += 1
        if not self.progress or not (self._bar or self._timer.passed()):
            return
        rate = f"lr {facts['lr']:.2e}  " if "lr" in facts else ""
        text = f"epoch {epoch}/{self.epochs}  step {self._finished}  {_values(means)}  {rate}{_speed(speed)}"
        if self._bar:
            self._bar.update(self._task, completed=self._finished, description=text)
        else:
            say(f"{text}  {self._left()} left")

    def epoch(self, epoch: int, means: Mapping[str, float], speed: Mapping[str, float]) -> None:
        """An epoch is done and evaluated."""
        if not self.progress:
            return
        print(
            f"epoch {epoch:>{len(str(self.epochs))}}/{self.epochs}  {_values(means)}  {_speed(speed)}  "
            f"{self._left()} left",
            flush=True,
        )

    def _left(self) -> timedelta:
        elapsed = time.perf_counter() - self._start
        return timedelta(seconds=round(elapsed / max(self._finished - self._first, 1) * (self._steps - self._finished)))


def _bar() -> Progress | None:
    console = stderr_console()
    if not console.is_terminal:
        return None
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("left"),
        console=console, transient=True,
        redirect_stdout=sys.stdout.isatty(),  # on one terminal, lines go above the bar; a file gets them as they are
    )  # fmt: skip


class RunLog(ExitStack):
    """Where a run is recorded and shown, open until the end: metrics.jsonl, loggers and display, on rank zero.

    Args:
        run: whose metrics.jsonl is written, from where a resumed run goes on.
        loggers: that get the same records, see `open_loggers`.
        recipe: that is run, for the loggers.
        epochs: of the whole run.
        steps_per_epoch: steps of an epoch.
        finished_epochs: where it starts.
        finished_steps: where it starts, counted from the first epoch on.
        progress: whether to show anything.
    """

    def __init__(
        self,
        run: RunFolder,
        *,
        loggers: Sequence[LoggerName],
        recipe: Mapping[str, Any],
        epochs: int,
        steps_per_epoch: int,
        finished_epochs: int,
        finished_steps: int,
        progress: bool,
    ) -> None:
        super().__init__()
        self.run, self.steps_per_epoch = run, steps_per_epoch
        self._metrics: TextIO | None = None
        self._loggers: list[Logger] = []
        first, steps = current_ranks().first, epochs * steps_per_epoch
        with ExitStack() as stack:
            if first:
                file = open_metrics(run.metrics, finished_epochs=finished_epochs, finished_steps=finished_steps)
                self._metrics = stack.enter_context(file)
                opened = open_loggers(loggers, run.path, recipe, finished_steps=finished_steps)
                self._loggers = stack.enter_context(opened)
            self._display = stack.enter_context(
                RunDisplay(epochs=epochs, steps=steps, finished_steps=finished_steps, progress=progress and first)
            )
            self.push(stack.pop_all())

    def step(
        self,
        epoch: int,
        number: int,
        result: StepResult,
        means: Mapping[str, float],
        figures: Mapping[str, float],
        speed: Mapping[str, float],
    ) -> None:
        """Step `number` of the run, from 1, is done.

        Args:
            epoch, number, result: which, and what it did.
            means: of the epoch so far.
            figures: of `Speed`, of the step.
            speed: the same of the epoch so far.
        """
        if result.clips:
            numbers = {**result.means, **result.facts, **figures}
            self._record({"kind": "step", "epoch": epoch, "step": number}, numbers, number)
        self._display.step(epoch, means, result.facts, speed)

    def epoch(self, epoch: int, means: Mapping[str, float], speed: Speed) -> None:
        """An epoch is done and evaluated."""
        self._record({"kind": "epoch", "epoch": epoch}, {**means, **speed.total}, epoch * self.steps_per_epoch)
        self._display.epoch(epoch, means, speed.total)

    def _record(self, key: Mapping[str, Any], numbers: Mapping[str, float], step: int) -> None:
        if self._metrics is None:
            return
        with self.run.saving(self.run.metrics):
            self._metrics.write(json.dumps({**key, **numbers}) + "\n")
        for write in self._loggers:
            write(key["kind"], numbers, step)


def _values(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in values.items())


def _speed(speed: Mapping[str, float]) -> str:
    return (
        f"{speed['clips_per_second']:.1f} clips/s  waiting {speed['data_wait']:.0%}  "
        f"{speed['memory_mib'] / 2**10:.1f} GiB"
    )


@contextmanager
def open_loggers(
    names: Sequence[LoggerName], folder: Path, recipe: Mapping[str, Any], *, finished_steps: int = 0
) -> Iterator[list[Logger]]:
    """A logger for each name, closed at the end.

    Args:
        names: "tensorboard" writes into the folder `tensorboard` of the run; "wandb" is Weights & Biases, with
            the settings of that program: project and name are WANDB_PROJECT and WANDB_NAME, else uniformerv2 and the
            name of the folder.
        folder: of the run.
        recipe: what is run.
        finished_steps: where a resumed run goes on; what was logged of later steps does not count any more.

    Raises:
        RecipeError: a logger is not installed, or does not start.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(_LOGGERS[name](folder, recipe, finished_steps)) for name in names]


def check_loggers(names: Sequence[LoggerName]) -> None:
    """Raises RecipeError for an unknown logger, or one that is not installed."""
    for name in names:
        if name not in _LOGGERS:
            raise RecipeError(f"loggers are {' and '.join(_LOGGERS)}, got {name!r}")
        _module(name)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RecipeError(
            f'{name} is not installed: pip install "uniformerv2[logging]", or train without it'
        ) from error


@contextmanager
def _tensorboard(folder: Path, recipe: Mapping[str, Any], finished_steps: int) -> Iterator[Logger]:
    _module("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    purge_step = finished_steps + 1 if finished_steps else None
    with SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step) as writer:

        def write(kind: str, numbers: Mapping[str, float], step: int) -> None:
            for name, value in numbers.items():
                writer.add_scalar(f"{kind}/{name}", value, step)

        yield write


@contextmanager
def _weights_and_biases(folder: Path, recipe: Mapping[str, Any], finished_steps: int) -> Iterator[Logger]:
    wandb = _module("wandb")
    identity = folder / "wandb_id.txt"  # the same when a run is resumed, another when it is begun again
    if not finished_steps or not identity.is_file():
        identity.write_text(secrets.token_hex(8), encoding="utf-8")
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "uniformerv2",
            name=os.environ.get("WANDB_NAME") or folder.absolute().name,
            id=identity.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(folder),
            config=dict(recipe),
        )
    except wandb.Error as error:
        raise RecipeError(f"wandb does not start: {str(error).splitlines()[0]}") from error
    try:
        yield lambda kind, numbers, step: run.log(
            {f"{kind}/{name}": value for name, value in numbers.items()}, step=step
        )
    finally:
        run.finish()


_LOGGERS: dict[str, Any] = {"tensorboard": _tensorboard, "wandb": _weights_and_biases}
