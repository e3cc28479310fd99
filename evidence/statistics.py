"""Accuracies and their differences with paired bootstrap intervals over videos and seeds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and the interval that holds 95 % of its bootstrap."""

    mean: float
    low: float
    high: float

    @property
    def leaves_zero(self) -> bool:
        """Whether a difference may be claimed."""
        return self.low > 0 or self.high < 0


def estimate(values: Array) -> Estimate:
    """The mean of (seeds, videos) and its interval: seeds and videos are both drawn again with replacement.

    A resample takes the same videos under all its seeds (crossed bootstrap; Owen, Annals of Applied Statistics 2007).
    With one seed only the videos vary. The resamples are the same for equal shapes, so that figures are repeatable.
    """
    seed_weights, video_weights = _weights(*values.shape)
    means = ((seed_weights @ values.astype(float)) * video_weights).sum(1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(values.mean()), float(low), float(high))


@lru_cache(maxsize=8)
def _weights(seeds: int, videos: int) -> tuple[Array, Array]:
    """How often each resample has each seed, (resamples, seeds), and each video, (resamples, videos), as shares."""
    rng = np.random.default_rng(0)
    seed_counts, video_counts = (rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) for n in (seeds, videos))
    return seed_counts / seeds, video_counts / videos


def paired_difference(first: Array, second: Array) -> Estimate:
    """How much more often `first` is right than `second`, both (seeds, videos) of the same seeds and videos."""
    if first.shape != second.shape:
        raise ValueError(f"not paired: {first.shape} and {second.shape}")
    return estimate(first.astype(float) - second.astype(float))


def verdict(difference: Estimate, margin: float = 0.0) -> str:
    """Of the claim that a difference is above -margin: confirmed, contradicted, or not seen at this scale."""
    if difference.low > -margin:
        return "confirmed"
    return "contradicted" if difference.high < -margin else "not seen at this scale"
