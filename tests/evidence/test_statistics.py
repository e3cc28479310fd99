"""Intervals against what can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from evidence.statistics import Estimate, estimate, paired_difference, verdict


def test_two_videos_of_one_seed_resample_to_all_or_nothing() -> None:
    """The mean of two is 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4: 2.5 % from each end are 0 and 1."""
    assert estimate(np.array([[True, False]])) == Estimate(0.5, 0.0, 1.0)


def test_the_interval_over_videos_is_the_binomial_one() -> None:
    found = estimate(np.array([[1, 0] * 200]))
    half = 1.96 * np.sqrt(0.5 * 0.5 / 400)  # 0.049
    assert [found.low, found.high] == pytest.approx([0.5 - half, 0.5 + half], abs=0.004)


def test_seeds_are_resampled_too() -> None:
    """Videos say nothing here: all are right under one seed and wrong under the other."""
    found = estimate(np.stack([np.ones(50), np.zeros(50)]))
    assert [found.mean, found.low, found.high] == pytest.approx([0.5, 0.0, 1.0])


def test_pairing_takes_away_what_both_find_hard() -> None:
    hard = np.array([[1, 0] * 200])
    better = hard.copy()
    better[0, 1::20] = 1  # 20 more of 400
    difference = paired_difference(better, hard)
    half = 1.96 * np.sqrt(0.05 * 0.95 / 400)
    assert [difference.mean, difference.low, difference.high] == pytest.approx(
        [0.05, 0.05 - half, 0.05 + half], abs=0.004
    )
    assert difference.leaves_zero
    assert not paired_difference(hard, hard).leaves_zero


def test_figures_are_repeatable() -> None:
    values = np.random.default_rng(1).random((3, 40)) < 0.7
    assert estimate(values) == estimate(values.copy())


def test_other_videos_are_not_paired() -> None:
    with pytest.raises(ValueError, match="not paired"):
        paired_difference(np.ones((1, 3)), np.ones((1, 4)))


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (0.01, 0.2, 0.0, "confirmed"),
        (0.0, 0.0, 0.0, "not seen at this scale"),
        (-0.01, 0.2, 0.0, "not seen at this scale"),
        (-0.2, -0.01, 0.0, "contradicted"),
        (-0.02, 0.01, 0.03, "confirmed"),
        (-0.04, 0.01, 0.03, "not seen at this scale"),
        (-0.09, -0.04, 0.03, "contradicted"),
    ],
)
def test_verdicts(low: float, high: float, margin: float, expected: str) -> None:
    assert verdict(Estimate((low + high) / 2, low, high), margin) == expected
