"""Which prediction finds which annotation: spans as columns, the pairs that overlap, and their assignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uniformerv2.spans.span import Span

Whole = NDArray[np.int64]
Real = NDArray[np.float64]
Truth = NDArray[np.bool_]

_PAIRS_AT_ONCE = 1 << 22  # some 200 MB while their overlap is computed


@dataclass(frozen=True)
class Columns:
    """Spans as columns, in their order; videos and labels are numbers."""

    video: Whole
    label: Whole
    times: Real  # (spans, 2): start and end in seconds
    score: Real

    def __len__(self) -> int:
        return len(self.video)


@dataclass(frozen=True)
class Pairs:
    """Predictions and annotations of one video that overlap, whatever their labels."""

    prediction: Whole  # row of the prediction
    annotation: Whole  # row of the annotation
    tiou: Real  # temporal intersection over union; nan of two spans without length, and of opposite lengths

    def where(self, rows: Truth | Whole) -> Pairs:
        return Pairs(self.prediction[rows], self.annotation[rows], self.tiou[rows])


def columns(spans: Mapping[str, Sequence[Span]], videos: Mapping[str, int], labels: Mapping[str, int]) -> Columns:
    """The spans as columns, with the numbers of their videos and labels."""
    rows = [(videos[name], labels[one.label], one) for name, of_video in spans.items() for one in of_video]
    return Columns(
        np.array([video for video, _, _ in rows], np.int64),
        np.array([label for _, label, _ in rows], np.int64),
        np.array([(one.start, one.end) for _, _, one in rows], np.float64).reshape(-1, 2),
        np.array([one.score for _, _, one in rows], np.float64),
    )


def ranks(score: Real) -> Whole:
    """The place of each prediction from the surest on, from 0; of equal scores the later comes first."""
    found = np.empty(len(score), np.int64)
    found[np.argsort(score, kind="stable")[::-1]] = np.arange(len(score))
    return found


def ranks_within(groups: Whole, rank: Whole) -> Whole:
    """The place of each prediction among those of its group, from 0."""
    order = np.lexsort((rank, groups))
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    found = np.empty(len(rank), np.int64)
    found[order] = np.arange(len(rank)) - np.repeat(starts, sizes)
    return found


def overlaps(predictions: Real, annotations: Real, *, shortest_union: float | None = None) -> Real:
    """Temporal intersection over union of each prediction (row) with each annotation (column).

    Args:
        predictions: (predictions, 2) start and end.
        annotations: (annotations, 2) start and end.
        shortest_union: unions below it count as so long; None: as they are, so that 0 / 0 is nan.
    """
    starts = np.maximum(predictions[:, None, 0], annotations[None, :, 0])
    ends = np.minimum(predictions[:, None, 1], annotations[None, :, 1])
    both = (ends - starts).clip(0)
    lengths = (predictions[:, 1] - predictions[:, 0], annotations[:, 1] - annotations[:, 0])
    either = lengths[1][None, :] + lengths[0][:, None] - both  # summed in the order of the evaluators
    if shortest_union is not None:
        either = either.clip(shortest_union)
    with np.errstate(invalid="ignore"):
        return np.asarray(both / either, np.float64)


def overlapping(
    predictions: Columns, annotations: Columns, *, at_least: float, shortest_union: float | None = None
) -> Pairs:
    """The pairs in one video whose overlap is not below `at_least`; nan is not below it."""
    predicted = _rows_by(predictions.video)
    parts = [Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for video, labelled in _rows_by(annotations.video).items():
        rows = predicted.get(video, np.empty(0, np.int64))
        for part in np.array_split(rows, len(rows) * len(labelled) // _PAIRS_AT_ONCE + 1):
            tiou = overlaps(predictions.times[part], annotations.times[labelled], shortest_union=shortest_union)
            prediction, annotation = np.nonzero(~(tiou < at_least))
            parts.append(Pairs(part[prediction], labelled[annotation], tiou[prediction, annotation]))
    return Pairs(
        np.concatenate([part.prediction for part in parts]),
        np.concatenate([part.annotation for part in parts]),
        np.concatenate([part.tiou for part in parts]),
    )


def _rows_by(numbers: Whole) -> dict[int, Whole]:
    """The rows that have each number."""
    order = np.argsort(numbers, kind="stable")
    values, starts = np.unique(numbers[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, starts[1:]), strict=False))  # no rows: one part, no number


def found_by(pairs: Pairs, rank: Whole, thresholds: Sequence[float]) -> Truth:
    """Which predictions are right at each threshold: (thresholds, predictions).

    From the surest prediction on, each takes that free annotation which it overlaps most, if that is enough. Of equal
    overlaps the later annotation comes first, as the evaluators have it.

    Args:
        pairs: of one label each.
        rank: the place of each prediction.
    """
    ordered = pairs.where(np.lexsort((-pairs.annotation, -pairs.tiou, rank[pairs.prediction])))
    annotations = int(pairs.annotation.max(initial=-1)) + 1
    found = np.zeros((len(thresholds), len(rank)), np.bool_)
    for row, threshold in zip(found, thresholds, strict=True):
        left, taken = ordered.where(~(ordered.tiou < threshold)), np.zeros(annotations, np.bool_)
        while len(left.prediction):
            # no earlier pair is left that could take either of the two: all such pairs at once
            sure = _firsts(left.prediction, len(rank)) & _firsts(left.annotation, annotations)
            row[left.prediction[sure]] = taken[left.annotation[sure]] = True
            left = left.where(~(row[left.prediction] | taken[left.annotation]))
    return found


def _firsts(values: Whole, count: int) -> Truth:
    """Where each value, of so many possible, stands for the first time."""
    places = np.arange(len(values))
    first = np.full(count, len(values))
    np.minimum.at(first, values, places)
    return np.asarray(first[values] == places, np.bool_)
