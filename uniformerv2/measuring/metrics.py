"""Figures of classification, as plain functions of the scores of videos and of the numbers of their classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15  # of the calibration error


def top_k_accuracy(scores: Tensor, targets: Tensor, k: int = 1) -> float:
    """Share of the videos whose class is among the k most likely; of equally likely classes, the first come first.

    Args:
        scores: (videos, classes), at least one video.
        targets: int64 (videos): the right classes.
        k: at least 1.
    """
    own, numbers = scores.gather(1, targets[:, None]), torch.arange(scores.shape[1])
    ahead = (scores > own) | ((scores == own) & (numbers < targets[:, None]))
    return int((ahead.sum(1) < k).sum()) / len(scores)


def cross_entropy(scores: Tensor, targets: Tensor) -> float:
    """Mean of -log of the probability of the right class.

    Args:
        scores: probabilities, float32 (videos, classes), at least one video.
        targets: int64 (videos): the right classes.
    """
    own = scores.gather(1, targets[:, None]).clamp_min(torch.finfo(scores.dtype).tiny)[:, 0]
    return math.fsum(own.double().log().neg().tolist()) / len(scores)


def calibration_error(scores: Tensor, targets: Tensor) -> float:
    """Expected calibration error, in [0, 1], of the most likely class (Guo et al., ICML 2017, equation 3).

    The videos are sorted by the probability p of their most likely class into 15 bins of equal width,
    (0, 1/15], (1/15, 2/15] and so on. Each bin counts by its share of the videos; its error is the difference
    between its accuracy and its mean p.

    Args:
        scores: probabilities, (videos, classes), at least one video.
        targets: int64 (videos): the right classes.
    """
    confidences, predicted = scores.max(1)
    excess = [0.0] * BINS  # of the right answers over the probabilities
    for probability, right in zip(confidences.tolist(), (predicted == targets).tolist(), strict=True):
        confidence = min(probability, 1.0)
        excess[max(math.ceil(confidence * BINS) - 1, 0)] += right - confidence
    return math.fsum(map(abs, excess)) / len(scores)


def confusion_matrix(scores: Tensor, targets: Tensor) -> Tensor:
    """How many videos of a class were taken for each class; of equally likely classes, for the first.

    Args:
        scores: (videos, classes).
        targets: int64 (videos): the right classes.

    Returns:
        int64 (right class, predicted class).
    """
    classes = scores.shape[1]
    return torch.bincount(targets * classes + scores.argmax(1), minlength=classes**2).view(classes, classes)


@dataclass(frozen=True)
class ClassResult:
    """How well the videos of a class were told from others. A share of nothing is None."""

    label: str
    videos: int  # of the class
    correct: int  # of them, taken for the class
    predicted: int  # videos of any class that were taken for it

    @property
    def precision(self) -> float | None:
        """Share of the videos taken for the class that are of it; None if there are none."""
        return self.correct / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """Share of the videos of the class that were taken for it, its accuracy; None if there are none."""
        return self.correct / self.videos if self.videos else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall, 2 correct / (videos + predicted); None if there are neither."""
        return 2 * self.correct / (self.videos + self.predicted) if self.videos + self.predicted else None


def class_results(labels: Sequence[str], matrix: Tensor) -> tuple[ClassResult, ...]:
    """Of each class, in the order of the labels, out of a `confusion_matrix`."""
    counts = (matrix.sum(1).tolist(), matrix.diagonal().tolist(), matrix.sum(0).tolist())
    return tuple(ClassResult(*row) for row in zip(labels, *counts, strict=True))


@dataclass(frozen=True)
class Averages:
    """Means over classes, in [0, 1]."""

    precision: float
    recall: float
    f1: float


def averages(classes: Sequence[ClassResult], *, weighted: bool = False) -> Averages:
    """Means over those classes that have videos; the precision of a class that nothing was taken for counts as 0.

    Equal to scikit-learn's averages "macro" and "weighted" over these classes with `zero_division=0`.

    Args:
        classes: at least one of them has videos.
        weighted: by the number of their videos; otherwise they count alike.
    """
    known = [found for found in classes if found.videos]
    weights = [found.videos if weighted else 1 for found in known]

    def mean(shares: Sequence[float | None]) -> float:
        return math.fsum(weight * (share or 0.0) for weight, share in zip(weights, shares, strict=True)) / sum(weights)

    return Averages(*(mean([getattr(found, name) for found in known]) for name in ("precision", "recall", "f1")))
