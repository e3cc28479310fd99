"""What a run tells: metrics.jsonl for programs, a progress bar or a line per epoch for people."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from uniformerv2.atomic import write_text
from uniformerv2.device import peak_memory_mib

T = TypeVar("T")

TIMINGS = ("clips_per_second", "data_wait", "memory_mib")
"""What differs between records of equal runs."""


class MetricsFile:
    """One JSON object a line: records of `kind` "step" or "epoch", whose `epoch` counts from 1.

    Args:
        path: the file, continued where it exists.
        finished_epochs: what it holds of later epochs is dropped: a killed run wrote it, and they run again.
        finished_steps: but for these steps, counted from the first epoch on.
    """

    def __init__(self, path: Path, *, finished_epochs: int, finished_steps: int = 0) -> None:
        records = read_metrics(path) if path.is_file() else []
        kept = [
            record
            for record in records
            if record["epoch"] <= finished_epochs or record.get("step", finished_steps + 1) <= finished_steps
        ]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))  # whole, whenever a kill comes
        self._file = path.open("a", encoding="utf-8", buffering=1)  # line by line, for whoever watches

    def write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl. A last line that a killed run left half written is no record."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class Speed:
    """How fast training is, and what for it waits.

    Figures are clips_per_second; data_wait, the share of the time that passed waiting for clips; memory_mib, the
    largest use so far: of the GPU's memory by tensors, or of the machine's by this process.
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
    def total(self) -> dict[str, float]:
        """The figures from the start to the last step."""
        return self._figures(self._clips, self._last - self._start, self._waited_before)

    def _figures(self, clips: int, seconds: float, waited: float) -> dict[str, float]:
        seconds = max(seconds, 1e-9)
        figures = (clips / seconds, min(waited / seconds, 1.0), peak_memory_mib(self.device))
        return dict(zip(TIMINGS, figures, strict=True))


class RunDisplay:
    """Shows a run: on a terminal a bar with loss, metrics, clips/s and time left; everywhere a line per epoch.

    Args:
        console: where to; None shows nothing.
        epochs: of the whole run.
        steps: of the whole run.
        finished_steps: where a resumed run starts.
    """

    def __init__(self, console: Console | None, *, epochs: int, steps: int, finished_steps: int = 0) -> None:
        self.console, self.epochs = console, epochs
        self._steps, self._finished, self._start = steps, finished_steps, time.perf_counter()
        self._first = finished_steps
        self._bar = _bar(console)
        self._task = self._bar.add_task("", total=steps, completed=finished_steps) if self._bar else None

    def __enter__(self) -> RunDisplay:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def step(
        self, epoch: int, means: Mapping[str, float], facts: Mapping[str, float], speed: Mapping[str, float]
    ) -> None:
        """A step is done; `means` and `speed` are those of the epoch so far, `facts` of the step."""
        self._finished += 1
        if self._bar and self._task is not None:
            rate = f"lr {facts['lr']:.2e}  " if "lr" in facts else ""
            text = f"epoch {epoch}/{self.epochs}  step {self._finished}  {_values(means)}  {rate}{_speed(speed)}"
            self._bar.update(self._task, advance=1, description=text)

    def epoch(self, epoch: int, means: Mapping[str, float], speed: Mapping[str, float]) -> None:
        """An epoch is done and evaluated."""
        if self.console is None:
            return
        elapsed = time.perf_counter() - self._start
        left = elapsed / max(self._finished - self._first, 1) * (self._steps - self._finished)
        self.console.print(
            f"epoch {epoch:>{len(str(self.epochs))}}/{self.epochs}  {_values(means)}  {_speed(speed)}  "
            f"{timedelta(seconds=round(left))} left",
            highlight=False,
            soft_wrap=True,
        )


def _bar(console: Console | None) -> Progress | None:
    if console is None or not console.is_terminal:
        return None
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("left"),
        console=console, transient=True,
    )  # fmt: skip


def _values(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in values.items())


def _speed(speed: Mapping[str, float]) -> str:
    return (
        f"{speed['clips_per_second']:.1f} clips/s  waiting {speed['data_wait']:.0%}  "
        f"{speed['memory_mib'] / 2**10:.1f} GiB"
    )
