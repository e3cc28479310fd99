"""Why predictions are wrong: found twice, of another class, with poor borders, or background."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from uniformerv2.spans.matching import Pairs, Real, Truth

POOR_TIOU = 0.1  # an overlap below it is none (Alwassel et al., ECCV 2018; Hoiem et al., ECCV 2012)


@dataclass(frozen=True)
class Mistakes:
    """The predictions at one threshold: each is right or of the first kind that fits."""

    right: int
    double: int  # overlaps an annotation of its class enough, which a surer prediction has taken
    wrong_class: int  # overlaps an annotation of another class enough; or poorly, and none of its own class
    poor_borders: int  # overlaps an annotation of its class, but not enough
    background: int  # overlaps nothing

    def wrong(self) -> dict[str, int]:
        """The false positives by kind."""
        return {kind: count for kind, count in asdict(self).items() if kind != "right"}


def mistakes(same: Pairs, other: Pairs, found: Truth, thresholds: Sequence[float]) -> Iterator[Mistakes]:
    """The predictions by kind, threshold by threshold.

    Args:
        same: pairs of one label, of tIoU 0.1 and more.
        other: pairs of two labels, of tIoU 0.1 and more.
        found: which predictions are right at each threshold.
    """
    own, others = (_most_overlap(pairs, found.shape[1]) for pairs in (same, other))
    for right, threshold in zip(found, thresholds, strict=True):
        poor = min(POOR_TIOU, threshold)
        kinds = np.select(
            [right, own >= threshold, others >= threshold, own >= poor, others >= poor], [0, 1, 2, 3, 2], 4
        )
        yield Mistakes(*np.bincount(kinds, minlength=5).tolist())


def _most_overlap(pairs: Pairs, predictions: int) -> Real:
    """The greatest overlap of each prediction; nan is the greatest, as it passes every threshold."""
    found = np.zeros(predictions)
    np.maximum.at(found, pairs.prediction, np.nan_to_num(pairs.tiou, nan=np.inf))
    return found
