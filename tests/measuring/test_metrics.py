from __future__ import annotations

import pytest

from uniformerv2.measuring.metrics import Evaluation, VideoResult, class_accuracies
from uniformerv2.video.views import Views


def evaluation_of(results: list[VideoResult], labels: list[str]) -> Evaluation:
    return Evaluation(0.0, 0.0, 0.0, Views(), class_accuracies(labels, results), tuple(results), ())


def test_calibration_error_is_weighed_by_bins_of_equal_width() -> None:
    def video(confidence: float, right: bool) -> VideoResult:
        return VideoResult("a.mp4", "a", ("a" if right else "b",), (confidence,))

    # one bin, (13/15, 14/15]: accuracy 1/2, mean confidence 0.9
    assert evaluation_of([video(0.88, True), video(0.92, False)], ["a", "b"]).calibration_error == pytest.approx(0.4)
    # three bins: 1/4 of the videos err by 0.3, 1/2 by 1/2 (0.5 of confidence, all or nothing right), 1/4 not at all
    some = [video(0.7, True), video(0.5, False), video(0.5, False), video(1.0, True)]
    assert evaluation_of(some, ["a", "b"]).calibration_error == pytest.approx(0.25 * 0.3 + 0.5 * 0.5)
    # a bin includes its upper end: 0.2 = 3/15 shares one with 0.19, not with 0.21
    edge = [video(0.2, True), video(0.21, False)]
    assert evaluation_of(edge, ["a", "b"]).calibration_error == pytest.approx((0.8 + 0.21) / 2)
    assert evaluation_of([video(1.0000001, True)], ["a"]).calibration_error == 0.0


def test_the_most_confused_classes_come_first() -> None:
    pairs = [("a", "b"), ("b", "a"), ("c", "a"), ("c", "a"), ("a", "a"), ("c", "c")]
    result = evaluation_of([VideoResult("x.mp4", right, (said,), (1.0,)) for right, said in pairs], ["a", "b", "c"])
    assert [(one.label, one.taken_for, one.videos) for one in result.confusions] == [
        ("c", "a", 2),
        ("a", "b", 1),
        ("b", "a", 1),
    ]
    assert result.to_json()["confusions"][0] == {"label": "c", "taken_for": "a", "videos": 2}
    assert result.mean_class_accuracy == pytest.approx((1 / 2 + 0 + 1 / 3) / 3)
