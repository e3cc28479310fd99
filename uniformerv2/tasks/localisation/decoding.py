"""Spans in seconds out of what the head says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from uniformerv2.spans.span import Span
from uniformerv2.tasks.localisation.pyramid import Found, Places

MIN_SCORE = 0.001  # of a span; lower ones change no average precision that matters
MOST_CANDIDATES = 2000  # places and classes that are looked at
SIGMA = 0.5  # of soft non-maximum suppression, as its paper has it
MOST_SPANS = 200  # of a film


@dataclass(frozen=True)
class FilmTimes:
    """How windows lie in the time of a film, at any frame rate: windows are taken by time, not by frames."""

    first: float  # seconds: the middle of the first window
    stride: float  # seconds from a window to the next
    duration: float  # seconds

    def seconds(self, windows: np.ndarray) -> np.ndarray:
        """The time at positions in windows."""
        return self.first + self.stride * windows

    def windows(self, seconds: float) -> float:
        """The position in windows at a time."""
        return (seconds - self.first) / self.stride


@dataclass(frozen=True, eq=False)
class Candidates:
    """What places say of spans; arrays of one length."""

    position: np.ndarray  # float64: of the place, in windows
    kind: np.ndarray  # int64: the class
    ends: np.ndarray  # float64 (candidates, 2): seconds
    score: np.ndarray  # float64

    def where(self, chosen: np.ndarray) -> Candidates:
        """Some of them."""
        return Candidates(self.position[chosen], self.kind[chosen], self.ends[chosen], self.score[chosen])

    def and_others(self, others: Candidates) -> Candidates:
        """These and others behind them."""
        pairs = ((getattr(self, name), getattr(others, name)) for name in ("position", "kind", "ends", "score"))
        return Candidates(*map(np.concatenate, pairs))


def candidates(
    found: Found, places: Places, times: FilmTimes, *, classifier_share: float = 0.0, min_score: float = MIN_SCORE
) -> Candidates:
    """The surest spans that places show, overlapping as they are.

    Args:
        found: of one film alone, a batch of one.
        places: of its windows.
        times: of its windows.
        classifier_share: of `found.in_windows`, averaged over the windows of a span, in its score: a geometric mean.
        min_score: that a candidate needs.
    """
    classes = found.logits.shape[-1]
    scores = found.logits[0].float().sigmoid().masked_fill(~found.valid[0, :, None], 0.0).flatten()
    best, order = scores.topk(min(MOST_CANDIDATES, len(scores)))
    order = order[best >= MIN_SCORE]
    place = order // classes
    middle, reach = places.position[place], found.distances[0, place].float()
    windows = torch.stack([middle - reach[:, 0], middle + reach[:, 1]], dim=1).double().cpu().numpy()
    ends = times.seconds(windows).clip(0.0, times.duration)
    columns = (middle.double(), order % classes, scores[order].double())
    position, kind, score = (column.cpu().numpy() for column in columns)
    if found.in_windows is not None:
        first_window = places.position[0].item()  # of a stream: that of the oldest window which is held
        likely = _means(found.in_windows[0].double().cpu().numpy(), windows - first_window, kind)
        score = score ** (1 - classifier_share) * likely**classifier_share
    return Candidates(position, kind, ends, score).where((ends[:, 1] > ends[:, 0]) & (score >= min_score))


def _means(in_windows: np.ndarray, ends: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Of the values of a class over the windows from one end to the other, at least one: (windows, classes), (n, 2)."""
    first, last = ends.round().clip(0, len(in_windows) - 1).astype(np.int64).T
    sums = np.concatenate([np.zeros((1, in_windows.shape[1])), in_windows.cumsum(axis=0)])
    return (sums[last + 1, kind] - sums[first, kind]).clip(0.0) / (last + 1 - first)


def suppressed(found: Candidates, labels: Sequence[str], *, min_score: float = MIN_SCORE) -> list[Span]:
    """The spans that are left of overlapping ones, class by class; the surest first."""
    spans = []
    for number in np.unique(found.kind):
        of_class = found.where(found.kind == number)
        kept, decayed = soft_suppression(of_class.ends, of_class.score, min_score=min_score)
        rows = zip(of_class.ends[kept].tolist(), decayed.tolist(), strict=True)
        spans += [Span(start, end, labels[number], score) for (start, end), score in rows]
    return sorted(spans, key=lambda span: -span.score)


def decode(
    found: Found, places: Places, times: FilmTimes, labels: Sequence[str], *, classifier_share: float = 0.0
) -> list[Span]:
    """The spans of a film, the surest first.

    Args:
        found, places, times, classifier_share: as of `candidates`.
        labels: of the classes.
    """
    surest = candidates(found, places, times, classifier_share=classifier_share)
    return suppressed(surest, labels)[:MOST_SPANS]


def soft_suppression(
    ends: np.ndarray, scores: np.ndarray, *, sigma: float = SIGMA, min_score: float = MIN_SCORE
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian soft non-maximum suppression (arXiv:1704.04503): a span loses score as it overlaps surer ones.

    Args:
        ends: float64 (spans, 2): start and end, of one class.
        scores: float64 (spans).
        sigma: the score falls to exp(-IoU² / sigma) of itself.
        min_score: what a span needs in the end.

    Returns:
        Which spans are left, the surest first, and their scores.
    """
    scores, left = scores.copy(), np.ones(len(scores), dtype=bool)
    kept, decayed = [], []
    while left.any():
        best = int(np.where(left, scores, -1.0).argmax())
        if scores[best] < min_score:
            break
        kept.append(best)
        decayed.append(scores[best])
        left[best] = False
        common = np.minimum(ends[:, 1], ends[best, 1]) - np.maximum(ends[:, 0], ends[best, 0])
        lengths = ends[:, 1] - ends[:, 0]
        overlap = common.clip(0.0) / np.maximum(lengths + lengths[best] - common.clip(0.0), 1e-12)
        scores[left] *= np.exp(-(overlap[left] ** 2) / sigma)
    return np.array(kept, dtype=np.int64), np.array(decayed, dtype=np.float64)
