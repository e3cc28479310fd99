"""Before the long run: can the model learn a single batch? If not, model, loss or learning rate is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from uniformerv2.data.batch import Batch
from uniformerv2.data.loader import VideoLoader
from uniformerv2.device import pick_device
from uniformerv2.errors import VideoError
from uniformerv2.progress import track
from uniformerv2.tasks.batches import micro_batch
from uniformerv2.tasks.run import RunComponents, Videos, build_run, split_data
from uniformerv2.train.frozen import train_mode
from uniformerv2.train.recipe import Recipe
from uniformerv2.train.step import TrainingStep
from uniformerv2.video.augmentation import Augmentation

CLOSE = 0.05  # a loss that is near zero
IN_A_ROW = 3  # steps with such a loss, so that it is none by chance
UNCHANGED = Augmentation(num_ops=0, crop_area=(1.0, 1.0), flip=0.0)


@dataclass(frozen=True)
class OverfitBatch:
    """The result of training on one batch."""

    losses: tuple[float, ...]  # of each step
    complaint: str  # why the loss is not near zero; empty where it is

    @property
    def learned(self) -> bool:
        """Whether the loss came near zero."""
        return not self.complaint

    def lines(self) -> list[str]:
        """The same for people."""
        path = f"loss {self.losses[0]:.3f} -> {self.losses[-1]:.3f} after {len(self.losses)} steps on one batch"
        return [path, self.complaint or "the batch is learned: model, loss and optimizer work together"]


def overfit_batch(
    data: Videos,
    recipe: Recipe,
    *,
    root: str | Path | None = None,
    holdout: float = 0.2,
    holdout_list: str | Path | None = None,
    device: str = "auto",
    workers: int = 2,
    progress: bool = False,
    steps: int = 200,
    task: str = "classification",
) -> OverfitBatch:
    """Train on one batch, again and again, without regularisation: the loss has to come near zero.

    Left out are augmentation, mixing, label smoothing, dropout, drop path and the schedule; the learning rate is the
    recipe's.

    Args:
        data, recipe, root, holdout, holdout_list, device, workers: as for `train_classifier`.
        progress: whether to show a bar, and videos that cannot be read.
        steps: how many at most.
        task: name of what is trained for.
    """
    videos = split_data(data, recipe, task=task, root=root, holdout=holdout, holdout_list=holdout_list)
    options: Any = {"task": task, "device": pick_device(device), "workers": workers, "progress": progress}
    parts = build_run(without_regularisation(recipe), videos, **options)
    batch = _readable(parts.loader)
    step = TrainingStep(parts.model, parts.task, parts.recipe.optimization, batch_size=len(batch))
    train_mode(parts.model)
    losses: list[float] = []
    for _ in track(range(steps), "overfitting", progress=progress):
        losses.append(step([batch], lr=parts.recipe.optimization.lr).means["loss"])
        if _is_learned(losses):
            break
    return OverfitBatch(tuple(losses), "" if _is_learned(losses) else _complaint(parts, batch, losses))


def without_regularisation(recipe: Recipe) -> Recipe:
    """The recipe for overfitting one batch: no regularisation, and a constant learning rate."""
    recipe = recipe.resolved()
    rate, batch_size = recipe.optimization.lr, micro_batch(recipe) // recipe.augmentation.repeats
    return recipe.vary(
        **dict.fromkeys(("drop_path", "global_drop_path", "global_dropout", "head_dropout"), 0.0),
        **dict.fromkeys(("warmup_epochs", "label_smoothing", "weight_decay", "ema"), 0.0),
        **{"epochs": 1, "early_stop": 0, "start_lr": rate, "end_lr": rate, "cache_features": "none"},
        **{"batch_size": batch_size, "accumulate": 1, "lr_base_batch": None},
        **asdict(UNCHANGED),
    )


def _readable(loader: VideoLoader) -> Batch:
    """The first batch of several classes, or the first with something in it."""
    found: Batch | None = None
    for batch in loader:
        if len(batch.labels.unique(dim=0)) > 1:
            return batch
        found = found or (batch if len(batch) else None)
    if found is None:
        raise VideoError("not one training video could be read")
    return found


def _is_learned(losses: Sequence[float]) -> bool:
    return len(losses) >= IN_A_ROW and max(losses[-IN_A_ROW:]) < CLOSE


def _complaint(parts: RunComponents, batch: Batch, losses: Sequence[float]) -> str:
    if twins := _same_clips(batch):
        return f"{twins[0]} and {twins[1]} are the same clip with different labels: nothing can tell them apart"
    trained = [parameter for parameter in parts.model.parameters() if parameter.requires_grad]
    still = [parameter for parameter in trained if parameter.grad is None or not parameter.grad.any()]
    if len(still) == len(trained):
        return "nothing has a gradient: the model does not depend on what is trained"
    rate = parts.recipe.optimization.lr
    if losses[-1] > losses[0]:
        return f"the loss grows: take a lower lr than {rate:g}"
    if losses[-1] > 0.5 * losses[0]:
        return f"the loss hardly falls: take a higher lr than {rate:g}, or start from weights that know more"
    return f"the loss falls, but slowly: take more steps or a higher lr than {rate:g}"


def _same_clips(batch: Batch) -> tuple[str, str] | None:
    """Two that are the same file, or equal frames, and have different labels."""
    files = [Path(path).resolve() for path in batch.paths]
    for first, second in combinations(range(len(batch)), 2):
        same = files[first] == files[second] or torch.equal(batch.clips[first], batch.clips[second])
        if same and not torch.equal(batch.labels[first], batch.labels[second]):
            return batch.paths[first], batch.paths[second]
    return None
