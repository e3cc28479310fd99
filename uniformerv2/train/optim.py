"""Parameter groups and the learning rate of each step."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim import AdamW

from uniformerv2.train.recipe import Optimization


def build_optimizer(model: nn.Module, optimization: Optimization) -> AdamW:
    """AdamW over everything that is trained; parameters of fewer than two dimensions do not decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2]},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(
        groups, lr=optimization.lr, betas=optimization.betas, weight_decay=optimization.weight_decay, fused=True
    )


def learning_rate(step: int, *, steps_per_epoch: int, optimization: Optimization) -> float:
    """Linear warm-up from start_lr to lr, then a half cosine that reaches end_lr at the last step.

    Args:
        step: optimizer step, from 0, counted over the whole run.
        steps_per_epoch: optimizer steps of an epoch.
        optimization: rates and lengths.
    """
    warmup = round(optimization.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return optimization.start_lr + (optimization.lr - optimization.start_lr) * step / warmup
    last = optimization.epochs * steps_per_epoch - 1
    progress = (step - warmup) / max(last - warmup, 1)
    return optimization.end_lr + (optimization.lr - optimization.end_lr) * (1 + math.cos(math.pi * progress)) / 2
