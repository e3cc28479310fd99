"""Records and folders of runs, written by hand so that every figure is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WriteRun = Callable[..., Path]

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
        {"label": "jump", "videos": 2, "correct": 2, "predicted": 3, "precision": 2 / 3, "recall": 1.0, "f1": 0.8},
        {"label": "walk", "videos": 2, "correct": 1, "predicted": 1, "precision": 1.0, "recall": 0.5, "f1": 2 / 3},
        {"label": "fly", "videos": 0, "correct": 0, "predicted": 0, "precision": None, "recall": None, "f1": None},
    ],
    "confusion_matrix": [[2, 0, 0], [1, 1, 0], [0, 0, 0]],
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
