"""How good a model is: accuracy over several views of every video, in one process or in many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from uniformerv2.data.annotations import Annotation, Damaged, Split, Unreadable
from uniformerv2.data.dataset import VideoDataset, make_loader
from uniformerv2.data.loader import Batch, VideoLoader
from uniformerv2.data.sources import Classes, read_annotations
from uniformerv2.device import fetch_later, model_device, one_late, upload
from uniformerv2.distributed import current_ranks, forward_passes
from uniformerv2.errors import CheckpointError, RecipeError, VideoError
from uniformerv2.inference.optimize import Backend
from uniformerv2.inference.parts import in_parts, over_views
from uniformerv2.inference.precision import InferencePrecision
from uniformerv2.machine import WORKERS
from uniformerv2.measuring.digests import videos_digest, weights_digest
from uniformerv2.measuring.labels import match_labels, order_warning
from uniformerv2.measuring.models import Computing, computing, on_rank_device
from uniformerv2.measuring.published_figures import published_figure
from uniformerv2.measuring.results import TOP, Evaluation, VideoResult
from uniformerv2.measuring.shared_work import Result, SharedWork, packed, unpacked
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.progress import track
from uniformerv2.video.views import Average, Views


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
        several = bool(model.thresholds)
        dataset = VideoDataset(rows, model_labels(model), model.preprocessing, views=self.views, several_labels=several)
        return make_loader(dataset, batch_size=self.videos_at_once, workers=workers, device=model_device(model))

    def score(self, model: UniFormerV2, batch: Batch, rows: Sequence[int], *, first: int = 0) -> Callable[[], Result]:
        """Begin a work item; what is returned waits for its result, of values that JSON keeps bit by bit.

        Args:
            model: in eval mode.
            batch: of a loader, whose rows of the dataset begin at `first`.
            rows: numbers of the annotations that the batch was made of, in order.
            first: row of the dataset where the batch begins.

        What is returned raises CheckpointError where the model computes NaN.
        """
        read = [rows[index - first] for index in batch.indices]
        result: Result = {
            "videos": [],
            "skipped": [[rows[video.row - first], video.reason] for video in batch.unreadable],
            "damaged": [[video.path, video.reason] for video in batch.damaged],
        }
        if not read:
            return lambda: result
        clips, path = upload(batch.clips, model_device(model)), batch.paths[0]
        fetch = fetch_later(average_views(model, clips, batch_size=self.batch_size, average=self.views.average))

        def finish() -> Result:
            scores = fetch()
            if not scores.isfinite().all():
                raise CheckpointError(f"{path}: the model gives NaN, so its weights or its clips are no numbers")
            return result | {"videos": read, "scores": packed(scores)}

        return finish


def model_labels(model: UniFormerV2) -> tuple[str, ...]:
    """Raises CheckpointError where the model has none, or one of them twice."""
    if not model.labels:
        raise CheckpointError(
            "the model has no labels, so no accuracy can be measured; give labels=[...] (--labels FILE)"
        )
    if twice := [label for label, count in Counter(model.labels).items() if count > 1]:
        raise CheckpointError(f"the model calls several classes {twice[0]!r}; load it with labels that differ")
    return model.labels


@torch.inference_mode()
def average_views(model: UniFormerV2, clips: Tensor, *, batch_size: int, average: Average = "probabilities") -> Tensor:
    """Class probabilities of videos over all of their views.

    Args:
        model: in eval mode.
        clips: (videos, views, 3, frames, height, width), on the device of the model.
        batch_size: clips that the model sees at once.
        average: as of `over_views`.

    Returns:
        float32 (videos, classes); rows sum to 1, unless a video may have several labels.
    """
    # (videos, views, ...) -> (videos·views, ...)
    logits = torch.cat(in_parts(lambda some: model(some).float(), clips.flatten(0, 1), batch_size, by=model))
    return over_views(model, logits.unflatten(0, clips.shape[:2]), average)


class Scored(NamedTuple):
    """What the results of all work items add up to, in the order of the annotations."""

    rows: list[int]  # numbers of the annotations that could be read
    scores: np.ndarray  # float32 (videos, classes): theirs
    skipped: tuple[Unreadable, ...]
    damaged: tuple[Damaged, ...]


def collect(annotations: Sequence[Annotation], results: Iterable[Result]) -> Scored:
    """Put results together.

    Args:
        annotations: all rows, each of them in one result.
        results: of `Scoring.score`, in any order.

    Raises:
        VideoError: none of the videos could be read.
    """
    results = list(results)
    read = [row for result in results for row in result["videos"]]
    skipped = tuple(
        Unreadable(str(annotations[row].path), reason, row)
        for row, reason in sorted(video for result in results for video in result["skipped"])
    )
    if not read:
        raise VideoError(f"not one of {len(skipped)} videos to evaluate could be read; the first: {skipped[0].reason}")
    scores = np.concatenate(
        [unpacked(result["scores"], len(result["videos"])) for result in results if result["videos"]]
    )
    damaged = sorted(Damaged(path, reason) for result in results for path, reason in result["damaged"])
    return Scored(sorted(read), scores[np.argsort(read)], skipped, tuple(damaged))


def summarise(
    labels: Sequence[str], annotations: Sequence[Annotation], results: Iterable[Result], views: Views
) -> Evaluation:
    """The evaluation that the results of all work items add up to.

    Args:
        labels: of the model.
        annotations, results: as of `collect`, which may raise.
        views: of each video.
    """
    read, scores, skipped, damaged = collect(annotations, results)
    best, ranked = torch.from_numpy(scores).sort(dim=1, descending=True, stable=True)  # of equal classes, the first
    rows = zip(read, ranked[:, :TOP].tolist(), best[:, :TOP].tolist(), strict=True)
    return Evaluation(
        labels=tuple(labels),
        scores=scores,
        videos=tuple(
            VideoResult(
                path=str(annotations[row].path),
                label=annotations[row].label,
                labels=tuple(labels[number] for number in numbers),
                scores=tuple(probabilities),
                row=row,
            )
            for row, numbers, probabilities in rows
        ),
        views=views,
        skipped=skipped,
        damaged=damaged,
        annotations=tuple(annotations),
    )


def evaluate(
    model: str | Path | nn.Module,
    data: str | Path | Sequence[Annotation],
    *,
    root: str | Path | None = None,
    classes: Classes | None = None,
    split: Split = "held-out",
    views: Views = Views(),
    batch_size: int = 8,
    head: str | None = None,
    precision: InferencePrecision | Literal["auto"] = "fp32",
    backend: Backend | Literal["auto"] = "torch",
    device: str = "auto",
    workers: int = WORKERS,
    journal: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Multi-view accuracy: the probabilities of several views of each video are averaged.

    The processes of a group share the videos, and each returns the whole result. It does not depend on their number.

    Args:
        model: a checkpoint or a model, as of `Predictor`.
        data: as of `read_annotations`; the labels must be among the model's, be it in another spelling.
        root, split: as of `read_annotations`.
        views: clips x crops of each video, and what is averaged over them.
        batch_size: clips that the model sees at once.
        head: as of `resolve_model`.
        precision: "fp32", "bf16", or "auto" for the faster of both here.
        backend: "torch", "compile" or "auto", as of `optimize`.
        device: as of `resolve_model`; each process of a group takes a GPU.
        workers: processes that read videos; 0 reads in this one.
        journal: file that every result is added to, for `resume`.
        resume: continue from the journal; the result has the same bits as without the interruption.
        progress: whether to show a bar.

    Raises:
        AnnotationError: a label that the model does not know, or as `read_annotations`.
        CheckpointError: the model has no labels, or computes NaN; or as `resolve_model`.
        RecipeError: a model that names several labels, for `evaluate_multilabel`; impossible options, or a journal that
            does not fit them or that `resume` was not given for.
        VideoError: none of the videos could be read.
    """
    model = on_rank_device(model, device=device, head=head)
    if model.thresholds:
        raise RecipeError("the model names several labels of a video: evaluate_multilabel measures it")
    rows, renamed = match_labels(read_annotations(data, root=root, classes=classes, split=split), model_labels(model))
    chosen = computing(model, precision=precision, backend=backend)
    options: Any = {"workers": workers, "journal": journal, "resume": resume, "progress": progress}
    result = summarise(model.labels, rows, score_all(model, chosen, rows, Scoring(views, batch_size), **options), views)
    index = {name: number for number, name in enumerate(model.labels)}
    return replace(
        result,
        precision=chosen.precision,
        warning=order_warning(model.labels, [(index[video.labels[0]], video.label) for video in result.videos]),
        renamed=tuple(renamed.items()),
        published=published_figure(model, rows, views=views, precision=chosen.precision, skipped=len(result.skipped)),
    )


def score_all(
    model: UniFormerV2,
    chosen: Computing,
    rows: Sequence[Annotation],
    scoring: Scoring,
    *,
    workers: int,
    journal: str | Path | None,
    resume: bool,
    progress: bool,
) -> list[Result]:
    """The results of all work items, in every process; arguments and errors as of `evaluate`."""
    scoring.loader(model, rows)  # errors in the rows show before anything is written
    identity = _identity(model, rows, scoring, chosen) if journal else {}
    with SharedWork(journal, identity, resume=resume) as work:
        _score(chosen.model, rows, scoring, work, workers=workers, progress=progress)
        return list(work.collect().values())


def _score(
    model: UniFormerV2, rows: Sequence[Annotation], scoring: Scoring, work: SharedWork, *, workers: int, progress: bool
) -> None:
    """Compute this process's share of the work items that have no result yet."""
    items = scoring.work_items(len(rows))
    numbers = [number for number in work.share(len(items)) if (number,) not in work.done]
    share = [rows[row] for number in numbers for row in items[number]]
    if not share:
        return
    loader = scoring.loader(model, share, workers=workers)
    batches = enumerate(zip(numbers, track(loader, "evaluating", progress=progress), strict=True))
    begun = (
        (number, scoring.score(model, batch, items[number], first=place * scoring.videos_at_once))
        for place, (number, batch) in batches
    )
    for number, result in one_late(begun):
        work.add((number,), result)


def _identity(model: UniFormerV2, rows: Sequence[Annotation], scoring: Scoring, chosen: Computing) -> dict[str, str]:
    """What decides the results."""
    return {
        "weights": weights_digest(model),
        "videos": videos_digest(rows),
        "views": f"{scoring.views.clips} clips x {scoring.views.crops} crops",
        "average": scoring.views.average,
        "batch size": str(scoring.batch_size),
        **chosen.identity,
    }


class HeldOut:
    """Videos on which a model is measured repeatedly, each time as `evaluate` does.

    Args:
        model: its labels and its preprocessing count.
        annotations: the videos, under the model's labels.
        views, batch_size, workers: as of `evaluate`.

    Raises:
        AnnotationError, CheckpointError: as `evaluate`.
    """

    def __init__(
        self,
        model: UniFormerV2,
        annotations: Sequence[Annotation],
        *,
        views: Views = Views(),
        batch_size: int = 8,
        workers: int = WORKERS,
    ) -> None:
        self.annotations, self._scoring, self._ranks = annotations, Scoring(views, batch_size), current_ranks()
        self._items = self._scoring.work_items(len(annotations))[self._ranks.rank :: self._ranks.world]
        self._rows = [annotations[row] for item in self._items for row in item]
        # without a share of its own a process still checks all rows, so that their errors show in every process
        self._loader = self._scoring.loader(model, self._rows or annotations, workers=workers)

    def evaluate(self, model: UniFormerV2) -> Evaluation:
        """The result, in every process. Raises CheckpointError and VideoError, as `evaluate`."""
        return summarise(model.labels, self.annotations, self.score(model), self._scoring.views)

    def score(self, model: UniFormerV2) -> list[Result]:
        """The results of all work items, in every process."""
        model.eval()
        batches = self._loader if self._rows else ()

        def results() -> list[Result]:
            begun = (
                (place, self._scoring.score(model, batch, item, first=place * self._scoring.videos_at_once))
                for place, (item, batch) in enumerate(zip(self._items, batches, strict=True))
            )
            with forward_passes(model):
                return [result for _, result in one_late(begun)]

        return [result for some in self._ranks.on_all_ranks(results) for result in some]
