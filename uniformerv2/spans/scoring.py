"""score_spans: predicted spans against annotated ones, as the evaluators of the benchmarks have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, TypeAlias

import numpy as np

from uniformerv2.errors import AnnotationError, RecipeError
from uniformerv2.spans.matching import Columns, Real, Truth, columns, found_by, overlapping, ranks
from uniformerv2.spans.mistakes import POOR_TIOU, mistakes
from uniformerv2.spans.recall import average_recall, recall_at
from uniformerv2.spans.scored_files import read_ground_truth, read_predictions
from uniformerv2.spans.scores import SpanCounts, SpanScores
from uniformerv2.spans.span import Span

ProtocolName: TypeAlias = Literal["activitynet", "thumos", "hacs"]
SpansByVideo: TypeAlias = Mapping[str, Sequence[Span]]
Source: TypeAlias = SpansByVideo | str | Path


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is scored."""

    tiou: tuple[float, ...]
    subsets: tuple[str, ...]  # what is scored of a file that has several: the first that it has


_HALF_TO_95 = tuple(np.linspace(0.5, 0.95, 10).tolist())  # as the evaluators compute them: the ninth is below 0.9
PROTOCOLS: dict[ProtocolName, Protocol] = {
    "activitynet": Protocol(_HALF_TO_95, ("validation",)),
    "thumos": Protocol((0.3, 0.4, 0.5, 0.6, 0.7), ("test", "validation")),  # some files name the test so
    "hacs": Protocol(_HALF_TO_95, ("validation",)),
}

_SAME_TIME = 1e-3  # seconds: annotations of one label whose borders differ by no more are one (OpenTAD)
_SHORTEST_UNION = 1e-8  # seconds (OpenTAD)


def score_spans(
    ground_truth: Source,
    predictions: Source,
    *,
    protocol: ProtocolName = "activitynet",
    tiou: Sequence[float] = (),
    subset: str | None = None,
    opentad: bool = False,
) -> SpanScores:
    """Score predicted spans by the rules of ActivityNet's evaluator, or of OpenTAD's (docs/localisation.md).

    Args:
        ground_truth: the spans of each video that is scored, or a file in ActivityNet's form.
        predictions: spans with scores, or a file in ActivityNet's form.
        protocol: the benchmark whose thresholds and subset are taken.
        tiou: other thresholds of temporal intersection over union, in (0, 1].
        subset: the subset of a ground truth file; None: the protocol's, or the only one.
        opentad: drop repeated and empty annotations, and predictions of labels that the ground truth lacks.

    Raises:
        AnnotationError: a file that cannot be read, or has no such subset; no annotation; with the official rules, a
            predicted label that the ground truth lacks.
        RecipeError: a threshold outside (0, 1], or a subset of spans that come from no file.
    """
    thresholds = check_tiou(tuple(tiou) or PROTOCOLS[protocol].tiou)
    annotated, chosen = _annotated(ground_truth, protocol, subset)
    predicted = read_predictions(predictions) if isinstance(predictions, str | Path) else predictions
    once = {video: _without_repeats(spans) for video, spans in annotated.items()}
    scored = once if opentad else annotated
    labels = {label: number for number, label in enumerate(_labels(scored))}
    if not labels:
        where = f" in the subset {chosen!r} of {ground_truth}" if chosen is not None else ""
        raise AnnotationError(f"no annotation{where}: nothing to score")
    known = {video: [one for one in spans if one.label in labels] for video, spans in predicted.items()}
    if not opentad and _total(known) < _total(predicted):
        _refuse_unknown(predictions, predicted, labels)

    videos = {video: number for number, video in enumerate(dict.fromkeys([*scored, *known]))}
    return _scores(
        columns(scored, videos, labels),
        columns(known, videos, labels),
        labels=list(labels),
        thresholds=thresholds,
        opentad=opentad,
        subset=chosen,
        counts=SpanCounts(
            videos=len(scored),
            annotations=_total(scored),
            predictions=_total(known),
            repeated_annotations=_total(annotated) - _empty(annotated) - _total(once),
            empty_annotations=_empty(annotated),
            empty_predictions=_empty(known),
            predictions_of_unknown_videos=sum(len(spans) for video, spans in known.items() if video not in scored),
            predictions_of_unknown_labels=_total(predicted) - _total(known),
        ),
    )


def _scores(
    annotations: Columns,
    predictions: Columns,
    *,
    labels: Sequence[str],
    thresholds: tuple[float, ...],
    opentad: bool,
    subset: str | None,
    counts: SpanCounts,
) -> SpanScores:
    pairs = overlapping(
        predictions,
        annotations,
        at_least=min(POOR_TIOU, *thresholds),
        shortest_union=_SHORTEST_UNION if opentad else None,
    )
    of_one_label = predictions.label[pairs.prediction] == annotations.label[pairs.annotation]
    same, other = pairs.where(of_one_label), pairs.where(~of_one_label)
    rank = ranks(predictions.score)
    found = found_by(same, rank, thresholds)
    ap = np.zeros((len(thresholds), len(labels)))
    for label in range(len(labels)):
        rows = np.flatnonzero(predictions.label == label)
        by_rank = rows[np.argsort(rank[rows])]
        ap[:, label] = _average_precision(found[:, by_rank], int((annotations.label == label).sum()))
    mean_ap = ap.mean(axis=1)
    return SpanScores(
        tiou=thresholds,
        opentad=opentad,
        subset=subset,
        ap_per_class={label: tuple(values) for label, values in zip(labels, ap.T.tolist(), strict=True)},
        mean_ap=tuple(mean_ap.tolist()),
        average_mean_ap=float(mean_ap.mean()),
        recall_at={
            times: tuple(recall_at(same, predictions, annotations, thresholds, times=times).tolist())
            for times in (1, 5)
        },
        average_recall=average_recall(pairs, predictions, annotations),
        mistakes=tuple(mistakes(same, other, found, thresholds)),
        counts=counts,
    )


def _average_precision(found: Truth, annotations: int) -> Real:
    """Area below precision over recall, precision made to fall (PASCAL VOC 2011), for each threshold.

    Args:
        found: (thresholds, predictions of a class): which are right, from the surest on.
        annotations: how many the class has.
    """
    right = found.cumsum(axis=1)
    ends = np.zeros((len(found), 1))
    recall = np.hstack([ends, right / annotations, ends + 1])
    precision = np.hstack([right / np.arange(1, found.shape[1] + 1), ends])
    falling = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    rises = np.diff(recall, axis=1)
    # steps alone are summed, as the evaluators do it: zeros among them would change the last digit
    return np.array([(rise * height)[rise != 0].sum() for rise, height in zip(rises, falling, strict=True)])


def check_tiou(tiou: Sequence[float]) -> tuple[float, ...]:
    """The thresholds as numbers. Raises RecipeError for one outside (0, 1], or twice."""
    for threshold in tiou:
        if not 0 < threshold <= 1:
            raise RecipeError(f"a threshold of temporal IoU must be in (0, 1], got {threshold}")
    if len({f"{threshold:g}" for threshold in tiou}) != len(tiou):
        raise RecipeError(f"thresholds of temporal IoU must differ, got {' '.join(map(str, tiou))}")
    return tuple(float(threshold) for threshold in tiou)


def _annotated(source: Source, protocol: ProtocolName, subset: str | None) -> tuple[SpansByVideo, str | None]:
    """The spans that are scored, and the name of their subset in a file. Letters' case does not tell subsets apart."""
    if not isinstance(source, str | Path):
        if subset is not None:
            raise RecipeError(f"subset={subset!r} is of a ground truth file; give the spans of the subset alone")
        return source, None
    subsets = read_ground_truth(source)
    names = {name.casefold(): name for name in subsets}
    wanted = PROTOCOLS[protocol].subsets if subset is None else (subset,)
    chosen = next((names[one.casefold()] for one in wanted if one.casefold() in names), None)
    if chosen is None and subset is None and len(subsets) == 1:
        chosen = next(iter(subsets))
    if chosen is None:
        there = ", ".join(map(repr, subsets)) or "none"
        raise AnnotationError(
            f"{source}: no subset {' or '.join(map(repr, wanted))}; the file has {there}: choose one with --subset"
        )
    return subsets[chosen], chosen


def _labels(spans: SpansByVideo) -> list[str]:
    return list(dict.fromkeys(one.label for of_video in spans.values() for one in of_video))


def _total(spans: SpansByVideo) -> int:
    return sum(map(len, spans.values()))


def _empty(spans: SpansByVideo) -> int:
    """How many have no length."""
    return sum(one.end <= one.start for of_video in spans.values() for one in of_video)


def _without_repeats(spans: Sequence[Span]) -> list[Span]:
    """The annotations of a video without those that have no length or repeat one that is kept (OpenTAD)."""
    kept: list[Span] = []
    for one in spans:
        if one.end > one.start and not any(_are_one(one, other) for other in kept):
            kept.append(one)
    return kept


def _are_one(one: Span, other: Span) -> bool:
    near = abs(one.start - other.start) <= _SAME_TIME and abs(one.end - other.end) <= _SAME_TIME
    return near and one.label == other.label


def _refuse_unknown(source: Source, predicted: SpansByVideo, labels: Mapping[str, int]) -> NoReturn:
    unknown = [(video, one.label) for video, spans in predicted.items() for one in spans if one.label not in labels]
    video, label = unknown[0]
    others = len({label for _, label in unknown}) - 1
    raise AnnotationError(
        f"{f'{source}, ' if isinstance(source, str | Path) else ''}video {video!r}: the predicted label {label!r} "
        f"{f'(and {others} others) has' if others else 'has'} no annotation in the ground truth, where the official "
        "evaluator stops; leave such predictions out, or do so with --opentad (opentad=True)"
    )
