"""Figures of videos that may have several labels, as plain functions of scores and of what is there."""

from __future__ import annotations

import numpy as np

Array = np.ndarray
UNKNOWN_THRESHOLD = 0.5  # of a class that no video shows: no other is known to be better


def average_precision(scores: Array, present: Array) -> float | None:
    """Area under the curve of precision over recall, as the sum over its steps; None where nothing is present.

    The sum of (R_n - R_(n-1)) P_n over the distinct scores from the highest down, where P_n and R_n are precision and
    recall of all that has at least the nth score: equal scores are one step, so that their order does not matter.
    Equal to scikit-learn's `average_precision_score`.

    Args:
        scores: (videos).
        present: bool (videos).
    """
    taken, right, _ = _steps(scores, present)
    if not present.any():
        return None
    gained = np.diff(right, prepend=0) / right[-1]
    return float(gained @ (right / taken))


def best_threshold(scores: Array, present: Array) -> float:
    """The probability from which on the class is named that gives the highest F1; of equals, the highest.

    Halfway between the lowest score that is taken and the highest that is not, or half of the lowest where all are
    taken. `UNKNOWN_THRESHOLD` where nothing is present.

    Args:
        scores: probabilities (videos).
        present: bool (videos).
    """
    if not present.any():
        return UNKNOWN_THRESHOLD
    taken, right, levels = _steps(scores, present)
    best = int(np.argmax(2 * right / (taken + right[-1])))
    return float(levels[best] + np.append(levels, 0.0)[best + 1]) / 2


def _steps(scores: Array, present: Array) -> tuple[Array, Array, Array]:
    """For each distinct score from the highest down: how many have at least that, how many of them are present, it."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each run of equal scores
    return last + 1, np.cumsum(present[order])[last], ranked[last]


def binary_cross_entropy(scores: Array, present: Array) -> float:
    """Sum over the classes of -log of the probability of the truth, on the average of the videos.

    Args:
        scores: probabilities, float32 (videos, classes).
        present: bool (videos, classes).
    """
    of_truth = np.where(present, scores, 1 - scores.astype(np.float64))
    return float(-np.log(of_truth.clip(np.finfo(np.float32).tiny)).sum() / len(scores))
