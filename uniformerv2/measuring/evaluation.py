"""How good a model is: accuracy over several views of every video, in one process or in many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from uniformerv2.data.annotations import Annotation
from uniformerv2.data.sources import read_annotations
from uniformerv2.data.split import Split
from uniformerv2.distributed import current_ranks, forward_passes
from uniformerv2.inference.precision import InferencePrecision
from uniformerv2.measuring.class_order import order_warning
from uniformerv2.measuring.digests import videos_digest, weights_digest
from uniformerv2.measuring.label_matching import match_labels
from uniformerv2.measuring.metrics import Evaluation
from uniformerv2.measuring.models import in_precision, on_rank_device
from uniformerv2.measuring.published_figures import published_figure
from uniformerv2.measuring.scoring import Scoring, model_labels, summarise
from uniformerv2.measuring.shared_work import Result, SharedWork
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.progress import track
from uniformerv2.video.views import Views


def evaluate(
    model: str | Path | UniFormerV2,
    data: str | Path | Sequence[Annotation],
    *,
    root: str | Path | None = None,
    split: Split = "held-out",
    views: Views = Views(),
    batch_size: int = 8,
    head: str | None = None,
    precision: InferencePrecision | Literal["auto"] = "fp32",
    device: str = "auto",
    workers: int = 2,
    journal: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Multi-view accuracy: the probabilities of several views of each video are averaged.

    The processes of a group share the videos, and each returns the whole result. It does not depend on their number.

    Args:
        model: a checkpoint or a model, which is left in eval mode.
        data: as of `read_annotations`; the labels must be among the model's, be it in another spelling.
        root, split: as of `read_annotations`.
        views: clips x crops of each video, and what is averaged over them.
        batch_size: clips that the model sees at once.
        head: as of `resolve_model`.
        precision: "fp32", "bf16", or "auto" for the faster of both here.
        device: as of `resolve_model`; each process of a group takes a GPU.
        workers: processes that read videos; 0 reads in this one.
        journal: file that every result is added to, for `resume`.
        resume: continue from the journal; the result has the same bits as without the interruption.
        progress: whether to show a bar.

    Raises:
        AnnotationError: a label that the model does not know, or as `read_annotations`.
        CheckpointError: the model has no labels, or computes NaN; or as `resolve_model`.
        RecipeError: impossible options, or a journal that does not fit them or that `resume` was not given for.
        VideoError: none of the videos could be read.
    """
    scoring = Scoring(views, batch_size)
    model = on_rank_device(model, device=device, head=head)
    rows, renamed = match_labels(read_annotations(data, root=root, split=split), model_labels(model))
    scoring.loader(model, rows)  # errors in the rows show before anything is written
    computing, chosen = in_precision(model, precision)
    identity = _identity(model, rows, scoring, chosen) if journal else {}
    with SharedWork(journal, identity, resume=resume) as work:
        _score(computing, rows, scoring, work, workers=workers, progress=progress)
        results = work.collect()
    result = summarise(model.labels, rows, results.values(), views)
    index = {name: number for number, name in enumerate(model.labels)}
    return replace(
        result,
        precision=chosen,
        warning=order_warning(model.labels, [(index[video.labels[0]], video.label) for video in result.videos]),
        renamed=tuple(renamed.items()),
        published=published_figure(model, rows, views=views, precision=chosen, skipped=len(result.skipped)),
    )


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
    for place, (number, batch) in enumerate(zip(numbers, track(loader, "evaluating", progress=progress), strict=True)):
        first = place * scoring.videos_at_once
        work.add((number,), scoring.score(model, batch, items[number], first=first))


def _identity(
    model: UniFormerV2, rows: Sequence[Annotation], scoring: Scoring, precision: InferencePrecision
) -> dict[str, str]:
    """What decides the results."""
    return {
        "weights": weights_digest(model),
        "videos": videos_digest(rows),
        "views": f"{scoring.views.clips} clips x {scoring.views.crops} crops",
        "average": scoring.views.average,
        "batch size": str(scoring.batch_size),
        "precision": precision,
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
        workers: int = 2,
    ) -> None:
        self.annotations, self._scoring, self._ranks = annotations, Scoring(views, batch_size), current_ranks()
        self._items = self._scoring.work_items(len(annotations))[self._ranks.rank :: self._ranks.world]
        self._rows = [annotations[row] for item in self._items for row in item]
        # without a share of its own a process still checks all rows, so that their errors show in every process
        self._loader = self._scoring.loader(model, self._rows or annotations, workers=workers)

    def evaluate(self, model: UniFormerV2) -> Evaluation:
        """The result, in every process. Raises CheckpointError and VideoError, as `evaluate`."""
        model.eval()
        batches = self._loader if self._rows else ()

        def results() -> list[Result]:
            with forward_passes(model):
                return [
                    self._scoring.score(model, batch, item, first=place * self._scoring.videos_at_once)
                    for place, (item, batch) in enumerate(zip(self._items, batches, strict=True))
                ]

        of_all = [result for some in self._ranks.on_all_ranks(results) for result in some]
        return summarise(model.labels, self.annotations, of_all, self._scoring.views)
