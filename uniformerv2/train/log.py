"""What a run tells: metrics.jsonl for programs, a progress bar or a line per epoch for people."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from uniformerv2.atomic import write_text

TIMINGS = ("clips_per_second",)
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

    def step(self, epoch: int, means: Mapping[str, float], *, clips_per_second: float) -> None:
        """A step is done; `means` are those of the epoch so far."""
        self._finished += 1
        if self._bar and self._task is not None:
            text = f"epoch {epoch}/{self.epochs}  {_values(means)}  {clips_per_second:.1f} clips/s"
            self._bar.update(self._task, advance=1, description=text)

    def epoch(self, epoch: int, means: Mapping[str, float], *, clips_per_second: float) -> None:
        """An epoch is done and evaluated."""
        if self.console is None:
            return
        elapsed = time.perf_counter() - self._start
        left = elapsed / max(self._finished - self._first, 1) * (self._steps - self._finished)
        self.console.print(
            f"epoch {epoch:>{len(str(self.epochs))}}/{self.epochs}  {_values(means)}  {clips_per_second:.1f} clips/s  "
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
