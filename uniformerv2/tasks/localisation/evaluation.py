"""How good a trained localiser is on films with known spans."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from uniformerv2.data.annotations import Annotation, Split
from uniformerv2.data.sources import Classes, find_videos
from uniformerv2.device import pick_device
from uniformerv2.errors import AnnotationError
from uniformerv2.machine import WORKERS
from uniformerv2.measuring.labels import match_labels
from uniformerv2.progress import say
from uniformerv2.spans.scoring import PROTOCOLS, ProtocolName, check_tiou
from uniformerv2.tasks.localisation.checkpoint import load_localiser
from uniformerv2.tasks.localisation.films import EmbeddingCache, films_of, strange_spans
from uniformerv2.tasks.localisation.task import TIOU, LocalisationResult, measure_films
from uniformerv2.tasks.localisation.training import one_process


def evaluate_localiser(
    model: str | Path,
    data: str | Path | Sequence[Annotation],
    *,
    root: str | Path | None = None,
    classes: Classes | None = None,
    split: Split = "held-out",
    device: str = "auto",
    workers: int = WORKERS,
    progress: bool = False,
    feature_cache: str | Path | None = None,
    protocol: ProtocolName | None = None,
    tiou: Sequence[float] = (),
) -> LocalisationResult:
    """Mean average precision of a localiser, by OpenTAD's rules; average recall, and false positives by kind.

    Args:
        model: as of `Localiser`.
        data: films and their spans, as of `train_localiser`.
        root, classes, split, device, workers, progress: as of `evaluate`.
        feature_cache: folder for the embeddings of films, as of `train_localiser`: what it holds is not computed again;
            None: they are not kept.
        protocol: the benchmark whose thresholds of temporal intersection over union are taken, as of `score_spans`;
            None: 0.3, 0.4, ... 0.7, which trainings are measured at.
        tiou: other thresholds, in (0, 1].

    Raises:
        AnnotationError: no span, a label that the localiser does not know; or as `train_localiser`.
        RecipeError: a threshold outside (0, 1].
        CheckpointError, VideoError: as `Localiser` and `train_localiser`.
    """
    one_process()
    thresholds = check_tiou(tuple(tiou) or (TIOU if protocol is None else PROTOCOLS[protocol].tiou))
    target = pick_device(device)
    found = load_localiser(model)
    films = films_of(_matched(find_videos(data, root=root, classes=classes, split=split), found.labels))
    if not any(film.spans for film in films):
        raise AnnotationError(f"none of {len(films)} films has a labelled span: no annotation to score by")
    with ExitStack() as stack:
        folder = feature_cache or stack.enter_context(tempfile.TemporaryDirectory())
        cache = EmbeddingCache(found.video.to(target), found.recipe, Path(folder))
        embedded = cache.fill(films, workers=workers, progress=progress)
        strange = strange_spans(films, embedded)
        say("\n".join(strange), progress=progress and bool(strange))
        result = measure_films(found.head.to(target), embedded, found.labels, tiou=thresholds)
    return replace(result, skipped=tuple(cache.skipped.values()), protocol=None if tiou else protocol)


def _matched(rows: Sequence[Annotation], labels: Sequence[str]) -> list[Annotation]:
    """The rows under the localiser's labels; those without a label stay as they are. See `match_labels`."""
    labelled = [row for row in rows if row.labels]
    renamed = iter(match_labels(labelled, labels)[0])
    return [next(renamed) if row.labels else row for row in rows]
