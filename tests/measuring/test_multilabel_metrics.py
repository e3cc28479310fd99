"""Figures of several labels, against scikit-learn and against all that could be chosen."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uniformerv2.data.annotations import Annotation
from uniformerv2.measuring.evaluation import Scored
from uniformerv2.measuring.multilabel import summarise_multilabel, what_is_present
from uniformerv2.measuring.multilabel_metrics import average_precision, best_threshold, binary_cross_entropy
from uniformerv2.video.views import Views


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of few values, so that many are equal, and what is present."""
    draw = np.random.default_rng(seed)
    videos, values = draw.integers(1, 40), draw.integers(1, 8)
    scores = (draw.integers(0, values + 1, videos) / values).astype(np.float32)
    return scores, draw.random(videos) < draw.choice([0.05, 0.3, 0.9])


def f1_at(threshold: float, scores: np.ndarray, present: np.ndarray) -> float:
    named = scores >= threshold
    return 2 * int((named & present).sum()) / int(named.sum() + present.sum())


def test_average_precision_is_that_of_scikit_learn() -> None:
    metrics: Any = pytest.importorskip("sklearn.metrics")
    compared = 0
    for seed in range(500):
        scores, present = drawn(seed)
        found = average_precision(scores, present)
        if not present.any():
            assert found is None
            continue
        assert found == pytest.approx(metrics.average_precision_score(present, scores), rel=1e-12)
        compared += 1
    assert compared > 300


def test_average_precision_of_a_ranking_by_hand() -> None:
    """There, not, there, not: precision 1 and 2/3 where the halves of the recall are gained."""
    scores = np.array([0.9, 0.8, 0.7, 0.6], dtype=np.float32)
    assert average_precision(scores, np.array([True, False, True, False])) == pytest.approx((1 + 2 / 3) / 2)
    # all equal: one step, of the precision of chance
    assert average_precision(np.full(4, 0.5, np.float32), np.array([True, False, False, False])) == 0.25


def test_the_threshold_has_the_best_f1_and_is_the_highest_of_equals() -> None:
    for seed in range(300):
        scores, present = drawn(seed)
        found = best_threshold(scores, present)
        if not present.any():
            assert found == 0.5
            continue
        levels = sorted({*scores.tolist()}, reverse=True)
        candidates = [(one + next_one) / 2 for one, next_one in zip(levels, [*levels[1:], 0.0], strict=True)]
        best = max(f1_at(candidate, scores, present) for candidate in candidates)
        assert f1_at(found, scores, present) == best
        higher = [candidate for candidate in candidates if candidate > found]
        assert all(f1_at(candidate, scores, present) < best for candidate in higher)


def test_binary_cross_entropy_is_summed_over_the_classes() -> None:
    scores = np.array([[0.8, 0.1], [0.5, 0.9]], dtype=np.float32)
    present = np.array([[True, False], [False, True]])
    expected = -(math.log(0.8) + math.log(0.9) + math.log(0.5) + math.log(0.9)) / 2
    assert binary_cross_entropy(scores, present) == pytest.approx(expected, rel=1e-6)
    assert math.isfinite(binary_cross_entropy(np.array([[0.0]], dtype=np.float32), np.array([[True]])))


def charades_map(scores: np.ndarray, present: np.ndarray) -> float:
    """The rule of the data set's evaluation: precision at the rank of each video of a class, averaged.

    A class that no video shows is left out.
    """
    found = []
    for column, there in zip(scores.T, present.T, strict=True):
        ranking = there[np.argsort(-column)]
        right = [rank for rank, one in enumerate(ranking, start=1) if one]
        if right:
            found.append(sum((number + 1) / rank for number, rank in enumerate(right)) / len(right))
    return sum(found) / len(found)


def evaluation_of(scores: np.ndarray, present: np.ndarray, thresholds: list[float]) -> Any:
    names = [f"c{number:03}" for number in range(scores.shape[1])]
    rows = []
    for number, shown in enumerate(present):
        label, *others = [names[place] for place in np.flatnonzero(shown)] or [""]
        rows.append(Annotation(Path(f"{number}.mp4"), label, other_labels=tuple(others)))
    assert (what_is_present(names, rows) == present).all()
    return summarise_multilabel(names, thresholds, rows, Scored([*range(len(rows))], scores, (), ()), Views())


def test_mean_average_precision_follows_the_rule_of_charades() -> None:
    draw = np.random.default_rng(0)
    scores = draw.permutation(200 * 157).reshape(200, 157).astype(np.float32) / (200 * 157)
    present = draw.random((200, 157)) < 0.03
    present[:, [3, 77, 156]] = False
    found = evaluation_of(scores, present, [0.5] * 157)
    assert found.mean_average_precision == pytest.approx(charades_map(scores, present), rel=1e-12)
    assert [row.label for row in found.classes if row.average_precision is None] == ["c003", "c077", "c156"]


def test_figures_of_a_small_table_by_hand() -> None:
    scores = np.array([[0.9, 0.2, 0.1], [0.6, 0.8, 0.2], [0.3, 0.4, 0.3]], dtype=np.float32)
    present = np.array([[True, False, False], [False, True, False], [True, False, False]])
    found = evaluation_of(scores, present, [0.5, 0.3, 0.5])
    first, second, third = found.classes
    assert (first.videos, first.correct, first.predicted) == (2, 1, 2)  # named 0.9 and 0.6
    assert (second.videos, second.correct, second.predicted) == (1, 1, 2)
    assert (third.videos, third.average_precision, third.f1) == (0, None, None)
    assert first.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert found.mean_average_precision == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    assert found.macro_f1 == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found.micro_f1 == pytest.approx(2 * 2 / (3 + 4))
    # ranking of all pairs: 0.9 there, 0.8 there, 0.6, 0.4, then 0.3 twice, one of them there
    assert found.micro_average_precision == pytest.approx((1 + 1 + 3 / 6) / 3)
    row = found.to_json()["classes"][1]
    assert (row["label"], row["threshold"], row["f1"]) == ("c001", 0.3, pytest.approx(2 / 3))
