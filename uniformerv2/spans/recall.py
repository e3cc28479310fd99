"""How many annotations are found at all: by so many proposals a video, and by a class's surest predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uniformerv2.spans.matching import Columns, Pairs, Real, ranks, ranks_within

RECALL_TIOU = tuple(np.linspace(0.5, 0.95, 10).tolist())  # of the ActivityNet proposal task, whatever the mAP is over
_POINTS = 100  # of the curve


@dataclass(frozen=True)
class AverageRecall:
    """Recall of annotations by predictions of any label, averaged over tIoU 0.5:0.05:0.95.

    The curve grows by a hundredth of the predictions that are kept at each point, in each video the surest first.
    """

    proposals_per_video: tuple[float, ...]  # on average, at each of 100 points
    recall: tuple[tuple[float, ...], ...]  # by threshold, at each point
    average_recall: tuple[float, ...]  # mean over the thresholds, at each point

    @property
    def area(self) -> float:
        """Below the curve of average recall over proposals a video, by trapezoids."""
        x, y = np.array(self.proposals_per_video), np.array(self.average_recall)
        return float((np.diff(x) * (y[1:] + y[:-1]) / 2.0).sum())

    @property
    def area_percent(self) -> float:
        """The area as the proposal task has it: as percent of a recall of 1 everywhere, from 0 proposals on."""
        return 100.0 * self.area / self.proposals_per_video[-1]

    def at(self, proposals: int) -> float:
        """The average recall with so many proposals a video, between the points of the curve."""
        return float(np.interp(proposals, self.proposals_per_video, self.average_recall))


def average_recall(
    pairs: Pairs, predictions: Columns, annotations: Columns, *, proposals: float | None = 100.0
) -> AverageRecall:
    """Average recall over the average number of proposals a video (the ActivityNet proposal task).

    Args:
        pairs: those of tIoU 0.5 and more, whatever their labels.
        predictions: all of them; those of videos without annotations take up places.
        annotations: at least one.
        proposals: how many a video are kept on average; None: all.
    """
    videos, of_annotation = np.unique(annotations.video, return_inverse=True)
    total = len(predictions)
    proposals = total / len(videos) if proposals is None else proposals
    in_video = np.bincount(predictions.video, minlength=int(videos.max()) + 1)[videos]
    # each video keeps the same share of its predictions
    kept = np.minimum((in_video * (proposals * len(videos) / max(total, 1))).astype(np.int64), in_video)
    hundredths = np.arange(1, _POINTS + 1) / 100.0
    if not kept.sum():  # the evaluator divides by zero
        none = (0.0,) * _POINTS
        return AverageRecall(tuple((hundredths * (proposals or 1.0)).tolist()), (none,) * len(RECALL_TIOU), none)
    shares = hundredths * (proposals * len(videos) / kept.sum())
    counted = np.minimum((kept[:, None] * shares).astype(np.int64), kept[:, None])  # (videos, points)

    place = ranks_within(predictions.video, ranks(predictions.score))[pairs.prediction]
    recall = np.empty((len(RECALL_TIOU), _POINTS))
    for row, threshold in zip(recall, RECALL_TIOU, strict=True):
        passing = pairs.tiou >= threshold
        first = np.full(len(annotations), total)  # place of the surest prediction that overlaps enough
        np.minimum.at(first, pairs.annotation[passing], place[passing])
        row[:] = (first[:, None] < counted[of_annotation]).sum(axis=0) / len(annotations)
    return AverageRecall(
        tuple((shares * (kept.sum() / len(videos))).tolist()),
        tuple(tuple(row) for row in recall.tolist()),
        tuple(recall.mean(axis=0).tolist()),
    )


def recall_at(
    pairs: Pairs, predictions: Columns, annotations: Columns, thresholds: Sequence[float], *, times: int
) -> Real:
    """Mean over the labels of the recall by the surest predictions of a video and label, for each threshold.

    Args:
        pairs: of one label each.
        times: so many predictions count as the video has annotations of the label, times this. One prediction may
            find several annotations.
    """
    labels = int(annotations.label.max()) + 1
    group = predictions.video * labels + predictions.label
    place = ranks_within(group, ranks(predictions.score))[pairs.prediction]
    _, of_annotation, sizes = np.unique(
        annotations.video * labels + annotations.label, return_inverse=True, return_counts=True
    )
    counted = place < times * sizes[of_annotation][pairs.annotation]
    by_label = np.empty((len(thresholds), labels))
    for row, threshold in zip(by_label, thresholds, strict=True):
        found = np.zeros(len(annotations), np.bool_)
        found[pairs.annotation[counted & (pairs.tiou >= threshold)]] = True
        row[:] = np.bincount(annotations.label[found], minlength=labels) / np.bincount(annotations.label)
    return np.asarray(by_label.mean(axis=1), np.float64)
