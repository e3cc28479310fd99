"""What a comparison of runs shows, on a page as in a terminal: curves, figures and differences of the recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from uniformerv2.pages.curves import Points, last_epoch
from uniformerv2.runs.folder import Run
from uniformerv2.train.recipe import disagreements

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
    Quantity("held_out_loss", "held-out loss"),
    Quantity("lr", "learning rate"),
)

FIGURES: Mapping[str, Callable[[Run], str]] = {
    "state": lambda run: run.state,
    "epochs": lambda run: f"{run.finished_epochs}/{run.planned_epochs}",
    "loss": lambda run: _number(run.last("loss"), ".3f"),
    "best top-1": lambda run: _share(run.best and run.best[0]),
    "in epoch": lambda run: str(run.best[1]) if run.best else UNKNOWN,
    "last top-1": lambda run: _share(run.last("top1")),
    "top-5": lambda run: _share(run.last("top5")),
    "steps": lambda run: str(run.finished_steps),
    "clips/s": lambda run: _number(run.clips_per_second, ".1f"),
    "waiting": lambda run: _share(run.data_wait),
    "memory": lambda run: _number(run.memory_mib and run.memory_mib / 2**10, ".1f", " GiB"),
    "time": lambda run: UNKNOWN if run.seconds is None else str(timedelta(seconds=round(run.seconds))),
}
FIGURES_NOTE = (
    "Loss: mean of the last epoch. Top-1 and top-5: single views of the held-out videos; of equally good epochs the "
    "later is the best. Clips per second, waiting (for videos) and time: of all training steps, without evaluating "
    "and saving."
)


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


def _share(value: float | None) -> str:
    return _number(value, ".1%")
