"""Spans in seconds, and which of many that overlap are left."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from uniformerv2.tasks.localisation.decoding import FilmTimes, decode, soft_suppression
from uniformerv2.tasks.localisation.pyramid import Found, places
from uniformerv2.tasks.localisation.recipe import PyramidConfig

CONFIG = PyramidConfig(levels=2)
TIMES = FilmTimes(first=1.0, stride=0.5, duration=5.5)  # windows of 2 s, every half second


def found(windows: int, said: dict[int, tuple[float, float, float, float]]) -> Found:
    """At some places the scores of two classes and both distances."""
    count = len(places(windows, CONFIG).position)
    logits, distances = torch.full((1, count, 2), -20.0), torch.ones(1, count, 2)
    for place, (first, second, before, after) in said.items():
        logits[0, place] = torch.tensor([first, second]).logit()
        distances[0, place] = torch.tensor([before, after])
    return Found(logits, distances, torch.ones(1, count, dtype=torch.bool))


def test_distances_become_seconds() -> None:
    # window 4 has its middle at 3 s; place 10 is that of window 4 in the second level, behind 8 windows
    said = found(8, {4: (0.9, 0.0, 2.0, 3.0), 10: (0.0, 0.6, 3.0, 20.0)})
    first, second = decode(said, places(8, CONFIG), TIMES, ("run", "jump"))
    assert (first.label, first.start, first.end, first.score) == ("run", 2.0, 4.5, pytest.approx(0.9))
    assert (second.label, second.start, second.end) == ("jump", 1.5, 5.5)  # no later than the film ends
    assert decode(found(8, {}), places(8, CONFIG), TIMES, ("run", "jump")) == []


def test_spans_of_different_classes_may_overlap() -> None:
    said = found(8, {4: (0.9, 0.8, 2.0, 2.0), 5: (0.7, 0.0, 3.0, 1.0)})
    spans = decode(said, places(8, CONFIG), TIMES, ("run", "jump"))
    assert [(span.label, span.start, span.end) for span in spans] == [
        ("run", 2.0, 4.0),
        ("jump", 2.0, 4.0),
        ("run", 2.0, 4.0),
    ]
    assert [span.score for span in spans] == pytest.approx([0.9, 0.8, 0.7 * math.exp(-1 / 0.5)])


def test_soft_suppression_lowers_scores_by_overlap_and_changes_the_order() -> None:
    ends = np.array([[0.0, 10.0], [0.0, 5.0], [20.0, 30.0], [40.0, 41.0]])
    kept, scores = soft_suppression(ends, np.array([0.9, 0.8, 0.7, 0.0005]))
    assert kept.tolist() == [0, 2, 1]  # half of the first overlaps the second
    assert scores.tolist() == pytest.approx([0.9, 0.7, 0.8 * math.exp(-(0.5**2) / 0.5)])
    assert soft_suppression(np.empty((0, 2)), np.empty(0))[0].tolist() == []


def test_the_classifier_has_its_share_in_the_score_of_a_span() -> None:
    """Place 3 shows a run over windows 2 to 4 with 0.64, of which the classifier thinks 0.1, 0.2 and 0.6."""
    said = found(8, {3: (0.64, 0.0, 1.0, 1.0)})
    in_windows = torch.zeros(1, 8, 2)
    in_windows[0, 1:6, 0] = torch.tensor([0.9, 0.1, 0.2, 0.6, 0.9])
    where = places(8, CONFIG)
    alone, together = (
        decode(said._replace(in_windows=some), where, TIMES, ("run", "jump"), classifier_share=0.5)
        for some in (None, in_windows)
    )
    assert [span.score for span in alone] == [pytest.approx(0.64)]
    assert [span.score for span in together] == [pytest.approx((0.64 * 0.3) ** 0.5)]
    assert (together[0].start, together[0].end) == (alone[0].start, alone[0].end)
