"""What a recipe may choose by name, of which each task has some."""

from __future__ import annotations

from typing import Literal

Loss = Literal["cross-entropy", "focal", "asymmetric"]
Monitor = Literal["auto", "top1", "mean-class-accuracy", "macro-f1", "loss", "map", "micro-map"]
MONITORED: dict[Monitor, str] = {  # their names in metrics.jsonl
    "top1": "top1",
    "mean-class-accuracy": "mean_class_accuracy",
    "macro-f1": "macro_f1",
    "loss": "held_out_loss",
    "map": "mean_average_precision",
    "micro-map": "micro_average_precision",
}

SPAN_TASK = "localise"  # in recipe.json of what `train_localiser` has begun, which has a recipe of its own
