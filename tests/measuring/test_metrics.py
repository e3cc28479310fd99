"""Figures against examples that were computed by hand."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from uniformerv2.measuring.metrics import (
    Averages,
    averages,
    calibration_error,
    class_results,
    confusion_matrix,
    top_k_accuracy,
)
from uniformerv2.measuring.results import Evaluation, VideoResult, write_confusion


def error_of(*videos: tuple[float, bool]) -> float:
    """The calibration error of videos of class 0, by the probability of the most likely class and whether it is 0."""
    scores = [[confidence, 0.0] if right else [0.0, confidence] for confidence, right in videos]
    return calibration_error(torch.tensor(scores, dtype=torch.float64), torch.zeros(len(videos), dtype=torch.int64))


def test_calibration_error_is_weighed_by_bins_of_equal_width() -> None:
    # one bin, (13/15, 14/15]: accuracy 1/2, mean confidence 0.9
    assert error_of((0.88, True), (0.92, False)) == pytest.approx(0.4)
    # three bins: 1/4 of the videos err by 0.3, 1/2 by 1/2 (0.5 of confidence, all or nothing right), 1/4 not at all
    assert error_of((0.7, True), (0.5, False), (0.5, False), (1.0, True)) == pytest.approx(0.25 * 0.3 + 0.5 * 0.5)
    # a bin includes its upper end: 0.2 = 3/15 shares none with 0.21
    assert error_of((0.2, True), (0.21, False)) == pytest.approx((0.8 + 0.21) / 2)
    assert error_of((1.0000001, True)) == 0.0


def test_the_right_class_is_counted_among_the_k_most_likely() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.3, 0.3, 0.4], [0.25, 0.25, 0.5]])
    for targets, expected in (([0, 0, 1], (1 / 3, 2 / 3, 1.0)), ([2, 1, 0], (0.0, 1 / 3, 1.0))):
        found = tuple(top_k_accuracy(scores, torch.tensor(targets), k) for k in (1, 2, 3))
        assert found == expected  # of equally likely classes, the first come first


# nine videos of classes a, b, c, d; d has none, and nothing is taken for c
RIGHT, TAKEN = [0, 0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 1, 3, 1, 1, 0, 0, 1]
MATRIX = [[2, 1, 0, 1], [1, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]


def scores_of(taken: list[int]) -> torch.Tensor:
    return 0.1 + 0.6 * torch.eye(4)[taken]


def test_precision_recall_and_f1_of_each_class() -> None:
    matrix = confusion_matrix(scores_of(TAKEN), torch.tensor(RIGHT))
    assert matrix.tolist() == MATRIX
    found = class_results("abcd", matrix)
    assert [(one.label, one.videos, one.predicted, one.correct) for one in found] == [
        *(("a", 4, 4, 2), ("b", 3, 4, 2), ("c", 2, 0, 0), ("d", 0, 1, 0)),
    ]
    assert [(one.precision, one.recall, one.f1) for one in found] == [
        *((2 / 4, 2 / 4, 4 / 8), (2 / 4, 2 / 3, 4 / 7), (None, 0, 0), (0, None, 0)),
    ]
    # over the classes with videos, a precision of nothing counts as 0, as zero_division=0 does in scikit-learn
    macro = Averages((1 / 2 + 1 / 2 + 0) / 3, (1 / 2 + 2 / 3 + 0) / 3, (1 / 2 + 4 / 7 + 0) / 3)
    weighted = Averages((4 / 2 + 3 / 2 + 0) / 9, (2 + 2 + 0) / 9, (4 / 2 + 12 / 7 + 0) / 9)
    assert asdict(averages(found)) == pytest.approx(asdict(macro))
    assert asdict(averages(found, weighted=True)) == pytest.approx(asdict(weighted))


def test_figures_of_an_evaluation(tmp_path: Path) -> None:
    labels = ("a", "b", "c", 'label, "d"')
    videos = tuple(
        VideoResult("x.mp4", labels[right], (labels[said],), (0.7,)) for right, said in zip(RIGHT, TAKEN, strict=True)
    )
    result = Evaluation(labels, scores_of(TAKEN).numpy(), videos)
    assert (result.top1, result.correct, result.mean_class_accuracy) == (4 / 9, 4, pytest.approx((1 / 2 + 2 / 3) / 3))
    assert result.weighted.recall == pytest.approx(result.top1)
    pairs = [(one.label, one.taken_for, one.videos) for one in result.confusions]
    assert pairs == [*(("a", "b", 1), ("a", labels[3], 1), ("b", "a", 1), ("c", "a", 1), ("c", "b", 1))]
    assert result.to_json()["confusions"][0] == {"label": "a", "taken_for": "b", "videos": 1}
    assert result.to_json()["confusion_matrix"] == MATRIX
    write_confusion(tmp_path / "matrix.csv", result)
    lines = (tmp_path / "matrix.csv").read_text().splitlines()
    assert lines[0] == ',a,b,c,"label, ""d"""'
    assert lines[1:3] == ["a,2,1,0,1", "b,1,2,0,0"]
    assert np.array_equal(result.confusion_matrix, MATRIX)
