"""Does the order of frames matter? A model on held-out clips in order, backwards, and with their frames shuffled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from uniformerv2.data.annotations import Annotation, Split, Unreadable
from uniformerv2.data.loader import Batch
from uniformerv2.data.sources import Classes, read_annotations
from uniformerv2.device import model_device, upload
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.inference.precision import InferencePrecision
from uniformerv2.machine import WORKERS
from uniformerv2.measuring.evaluation import Scoring, average_views, model_labels
from uniformerv2.measuring.labels import match_labels
from uniformerv2.measuring.models import computing, on_rank_device
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.progress import track
from uniformerv2.video.views import Views

RESAMPLES = 10_000  # of the bootstrap
INTERVAL = (2.5, 97.5)  # percentiles: 95 % of the resamples lie between

MATTERS = (
    "this model reads the order of the frames here: train in the temporal layout, and show it no clips {how}; flips "
    "keep the order, so they may stay (--flip-labels, where classes tell left from right); next to try: "
    "--motion-first, and --reverse-labels where a class is another one played backwards (docs/evidence.md)"
)
UNSEEN = (
    "it is not seen that this model reads the order of the frames here: the scene layout may do as well at lower cost, "
    "and no augmentation is ruled out; but few clips seldom teach order, and a model of the temporal layout with "
    "--motion-first, or more clips, may still show that it matters (docs/evidence.md)"
)


@dataclass(frozen=True)
class Difference:
    """Accuracy in order less that in another order."""

    mean: float  # in [-1, 1]
    low: float  # the interval that holds 95 % of the bootstrap over videos
    high: float

    @property
    def lost(self) -> bool:
        """Whether another order costs accuracy: the whole interval is above zero."""
        return self.low > 0

    def __str__(self) -> str:
        leaves = "" if self.low > 0 or self.high < 0 else ", which does not leave zero"
        mean, low, high = (f"{100 * value:+.1f}" for value in (self.mean, self.low, self.high))
        return f"{mean} points in order, 95 % interval {low} to {high}{leaves}"


@dataclass(frozen=True)
class FrameOrder:
    """What the order of frames is worth to a model."""

    videos: int  # files of the clips
    in_order: tuple[bool, ...]  # whether each clip that could be read was classified right
    backwards: tuple[bool, ...]
    shuffled: tuple[bool, ...]
    without_direction: Difference  # of backwards
    without_order: Difference  # of shuffled
    skipped: tuple[Unreadable, ...] = ()

    @property
    def meaning(self) -> str:
        """One sentence, on the layout and on augmentation."""
        lost = {"backwards": self.without_direction.lost, "with shuffled frames": self.without_order.lost}
        how = " or ".join(name for name, matters in lost.items() if matters)
        return MATTERS.format(how=how) if how else UNSEEN

    def lines(self) -> list[str]:
        """The same for people."""
        clips = len(self.in_order)
        shown = [("in order", self.in_order, ""), ("backwards", self.backwards, f"; {self.without_direction}")]
        shown += [("shuffled", self.shuffled, f"; {self.without_order}")]
        rows = [f"{name:<9} {sum(right) / clips:6.1%} of {clips} clips right{note}" for name, right, note in shown]
        if self.skipped:
            rows.append(f"{len(self.skipped)} more could not be read; the first: {self.skipped[0].reason}")
        return [*rows, f"{self.videos} videos; {self.meaning}"]


def rehearse_order(
    model: str | Path | nn.Module,
    data: str | Path | Sequence[Annotation],
    *,
    root: str | Path | None = None,
    classes: Classes | None = None,
    split: Split = "held-out",
    batch_size: int = 8,
    precision: InferencePrecision | Literal["auto"] = "fp32",
    device: str = "auto",
    workers: int = WORKERS,
    progress: bool = False,
) -> FrameOrder:
    """Classify one clip of each row in order, backwards, and with its frames in a random order, always the same one.

    Differences are paired; their intervals are of a bootstrap over videos, the rows of a file together.

    Args:
        model, data, root, classes, split, batch_size, precision, device, workers, progress: as of `evaluate`.

    Raises:
        RecipeError: clips of a single frame, or as `evaluate`.
        UniFormerV2Error: as `evaluate`.
    """
    model = on_rank_device(model, device=device)
    rows, _ = match_labels(read_annotations(data, root=root, classes=classes, split=split), model_labels(model))
    if model.preprocessing.num_frames == 1:
        raise RecipeError("the model sees clips of one frame, which have no order; take a model of several frames")
    loader = Scoring(Views(), batch_size).loader(model, rows, workers=workers)
    computer = computing(model, precision=precision, backend="torch").model
    right: list[list[bool]] = []  # of each clip: in order, backwards, shuffled
    files: list[str] = []
    for batch in track(loader, "evaluating", progress=progress):
        if len(batch):
            right += _right(computer, batch, batch_size).tolist()
            files += batch.paths
    skipped = tuple(loader.unreadable.values())
    if not right:
        raise VideoError(f"not one of {len(skipped)} videos could be read; the first: {skipped[0].reason}")
    in_order, backwards, shuffled = zip(*right, strict=True)
    without_direction, without_order = (paired_difference(in_order, other, files) for other in (backwards, shuffled))
    return FrameOrder(len(set(files)), in_order, backwards, shuffled, without_direction, without_order, skipped)


def _right(model: UniFormerV2, batch: Batch, batch_size: int) -> Tensor:
    """Whether the clips are classified right: bool (clips, 3), in order, backwards and shuffled by their rows."""
    frames, device = batch.clips.shape[3], model_device(model)
    drawn = [torch.randperm(frames, generator=torch.Generator().manual_seed(row)) for row in batch.indices]
    # (clips, 1, 3, frames, height, width)
    shuffled = torch.stack([clip[:, :, order] for clip, order in zip(batch.clips, drawn, strict=True)])
    scores = [
        average_views(model, upload(clips, device), batch_size=batch_size)
        for clips in (batch.clips, batch.clips.flip(3), shuffled)
    ]
    return torch.stack(scores, 1).argmax(2).cpu() == batch.labels.cpu()[:, None]


def paired_difference(right: Sequence[bool], other: Sequence[bool], files: Sequence[str]) -> Difference:
    """The mean of right - other over clips; the percentile interval of a bootstrap over their files (Efron 1979)."""
    _, number = np.unique(files, return_inverse=True)
    gains = np.bincount(number, np.asarray(right, dtype=float) - np.asarray(other, dtype=float))
    clips = np.bincount(number)
    generator = np.random.default_rng(0)
    drawn = (generator.integers(len(clips), size=len(clips)) for _ in range(RESAMPLES))
    means = [gains[some].sum() / clips[some].sum() for some in drawn]
    low, high = np.percentile(means, INTERVAL)
    return Difference(float(gains.sum() / clips.sum()), float(low), float(high))
