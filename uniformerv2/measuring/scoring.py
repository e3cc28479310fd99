"""Class probabilities of videos over several views, as results of work items, and the evaluation they add up to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from uniformerv2.data.annotations import Annotation, Damaged, Unreadable
from uniformerv2.data.batch import Batch
from uniformerv2.data.dataset import VideoDataset, make_loader
from uniformerv2.device import model_device
from uniformerv2.errors import CheckpointError, RecipeError, VideoError
from uniformerv2.measuring.metrics import TOP, Evaluation, VideoResult, class_accuracies
from uniformerv2.measuring.shared_work import Result
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.video.views import Average, Views

if TYPE_CHECKING:
    from uniformerv2.data.loader import VideoLoader


@dataclass(frozen=True)
class Scoring:
    """How videos are scored: a fixed number of consecutive rows together, so that no result depends on other rows."""

    views: Views = Views()
    batch_size: int = 8  # clips that the model sees at once

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise RecipeError(f"the batch size must be at least 1, got {self.batch_size}")

    @property
    def videos_at_once(self) -> int:
        """Videos of a work item."""
        return max(1, self.batch_size // len(self.views))

    def work_items(self, rows: int) -> list[range]:
        """The numbers of the rows of each work item."""
        numbers = range(rows)
        return [numbers[first : first + self.videos_at_once] for first in numbers[:: self.videos_at_once]]

    def loader(self, model: UniFormerV2, rows: Sequence[Annotation], *, workers: int = 0) -> VideoLoader:
        """The views of the rows, in batches of `videos_at_once`.

        Raises:
            AnnotationError: no rows, or a label that is not among the model's.
            CheckpointError: the model has no labels.
        """
        dataset = VideoDataset(rows, model_labels(model), model.preprocessing, views=self.views, threads=1)
        return make_loader(dataset, batch_size=self.videos_at_once, workers=workers)

    def score(self, model: UniFormerV2, batch: Batch, rows: Sequence[int], *, first: int = 0) -> Result:
        """The result of a work item, of values that JSON keeps bit by bit.

        Args:
            model: in eval mode.
            batch: of a loader, whose rows of the dataset begin at `first`.
            rows: numbers of the annotations that the batch was made of, in order.
            first: row of the dataset where the batch begins.

        Raises:
            CheckpointError: the model computes NaN.
        """
        read = [rows[index - first] for index in batch.indices]
        result: Result = {
            "videos": [],
            "skipped": [[rows[video.row - first], video.reason] for video in batch.unreadable],
            "damaged": [[video.path, video.reason] for video in batch.damaged],
        }
        if not read:
            return result
        clips = batch.clips.to(model_device(model), non_blocking=True)
        scores = average_views(model, clips, batch_size=self.batch_size, average=self.views.average).cpu()
        if not scores.isfinite().all():
            raise CheckpointError(f"{batch.paths[0]}: the model gives NaN, so its weights or its clips are no numbers")
        own = scores.gather(1, batch.labels[:, None]).clamp_min(torch.finfo(scores.dtype).tiny)
        best, ranked = scores.sort(dim=1, descending=True, stable=True)  # of equal classes, the first
        columns = (read, ranked[:, :TOP].tolist(), best[:, :TOP].tolist(), own[:, 0].double().log().neg().tolist())
        result["videos"] = [list(video) for video in zip(*columns, strict=True)]
        return result


def model_labels(model: UniFormerV2) -> tuple[str, ...]:
    """Raises CheckpointError where the model has none."""
    if not model.labels:
        raise CheckpointError("the model has no labels, so no accuracy can be measured; load it with its own labels")
    return model.labels


@torch.inference_mode()
def average_views(model: UniFormerV2, clips: Tensor, *, batch_size: int, average: Average = "probabilities") -> Tensor:
    """Class probabilities of videos over all of their views.

    Args:
        model: in eval mode.
        clips: (videos, views, 3, frames, height, width), on the device of the model.
        batch_size: clips that the model sees at once.
        average: the mean of the views' probabilities, or the probabilities of the mean of their logits.

    Returns:
        float32 (videos, classes); rows sum to 1.
    """
    # (videos, views, ...) -> (videos·views, ...)
    logits = torch.cat([model(some).float() for some in clips.flatten(0, 1).split(batch_size)])
    logits = logits.unflatten(0, clips.shape[:2])
    return logits.mean(1).softmax(-1) if average == "logits" else logits.softmax(-1).mean(1)


def summarise(
    labels: Sequence[str], annotations: Sequence[Annotation], results: Iterable[Result], views: Views
) -> Evaluation:
    """The evaluation that the results of all work items add up to.

    Args:
        labels: of the model.
        annotations: all rows, each of them in one result.
        results: of `Scoring.score`, in any order.
        views: of each video.

    Raises:
        VideoError: none of the videos could be read.
    """
    results = list(results)
    found = sorted(video for result in results for video in result["videos"])
    skipped = tuple(
        Unreadable(str(annotations[row].path), reason, row)
        for row, reason in sorted(video for result in results for video in result["skipped"])
    )
    if not found:
        raise VideoError(f"not one of {len(skipped)} videos to evaluate could be read; the first: {skipped[0].reason}")
    videos = tuple(
        VideoResult(
            path=str(annotations[row].path),
            label=annotations[row].label,
            labels=tuple(labels[number] for number in ranked),
            scores=tuple(scores),
            row=row,
        )
        for row, ranked, scores, _ in found
    )
    return Evaluation(
        top1=sum(video.label == video.labels[0] for video in videos) / len(videos),
        top5=sum(video.label in video.labels for video in videos) / len(videos),
        loss=math.fsum(loss for *_, loss in found) / len(videos),
        views=views,
        classes=class_accuracies(labels, videos),
        videos=videos,
        skipped=skipped,
        damaged=tuple(sorted(Damaged(path, reason) for result in results for path, reason in result["damaged"])),
        annotations=tuple(annotations),
    )
