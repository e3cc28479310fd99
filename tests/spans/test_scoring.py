"""Spans are scored as the benchmarks score them: by hand, and against what their evaluators returned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uniformerv2 import AnnotationError, RecipeError, Span, SpanScores, score_spans
from uniformerv2.spans.matching import Columns, columns, overlapping
from uniformerv2.spans.recall import AverageRecall, average_recall
from uniformerv2.spans.scored_files import read_ground_truth, read_predictions
from uniformerv2.spans.span import Spans

RECORDED = json.loads((Path(__file__).parent / "recorded_scores.json").read_text())
ONE = {"v": [Span(0, 10, "jump")]}


def score(annotations: Spans, predictions: Spans, *tiou: float, opentad: bool = False) -> SpanScores:
    return score_spans(annotations, predictions, tiou=tiou or (0.5,), opentad=opentad)


def jumps(*segments: tuple[float, float]) -> Spans:
    return {"v": [Span(start, end, "jump") for start, end in segments]}


def predicted(*rows: tuple[float, float, float], label: str = "jump") -> Spans:
    return {"v": [Span(start, end, label, sure) for start, end, sure in rows]}


# --- by hand


def test_average_precision_is_the_area_below_falling_precision() -> None:
    # right, wrong, right: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: 1/2 * 1 + 1/2 * 2/3
    scores = score(jumps((0, 10), (20, 30)), predicted((0, 10, 0.9), (50, 60, 0.8), (20, 30, 0.7)))
    assert scores.ap_per_class == {"jump": (0.5 + 1 / 3,)}
    # wrong, right, right: precision 0, 1/2, 2/3 is made to fall: 2/3 at each recall
    scores = score(jumps((0, 10), (20, 30)), predicted((50, 60, 0.9), (0, 10, 0.8), (20, 30, 0.7)))
    assert scores.ap_per_class["jump"] == pytest.approx((2 / 3,), abs=1e-15)


def test_an_overlap_equal_to_the_threshold_is_enough() -> None:
    scores = score(ONE, predicted((0, 5, 0.9)), 0.5, 0.55)
    assert scores.mean_ap == (1, 0)
    assert scores.average_mean_ap == 0.5


def test_a_prediction_whose_best_annotation_is_taken_tries_the_next() -> None:
    # the second prediction overlaps the second annotation by 9 / 11 = 0.82
    scores = score(jumps((0, 10), (1, 11)), predicted((0, 10, 0.9), (0, 10, 0.8)), 0.8, 0.85)
    assert scores.mean_ap == (1, 0.5)


@pytest.mark.parametrize(("order", "ap"), [((0, 1), 1), ((1, 0), 0.5)])
def test_of_equal_overlaps_the_later_annotation_is_taken(order: tuple[int, int], ap: float) -> None:
    segments = [
        (0, 10),
        (5, 15),
    ]  # the first prediction overlaps both by 10 / 15; the second overlaps the latter by 5 / 15
    annotations = jumps(*(segments[number] for number in order))
    assert score(annotations, predicted((0, 15, 0.9), (0, 10, 0.8))).mean_ap == (ap,)


@pytest.mark.parametrize(("order", "ap"), [((0, 1), 0.5), ((1, 0), 1)])
def test_of_equal_scores_the_later_prediction_comes_first(order: tuple[int, int], ap: float) -> None:
    rows = [(0, 10, 0.5), (50, 60, 0.5)]  # the first is right
    assert score(ONE, predicted(*(rows[number] for number in order))).mean_ap == (ap,)


def test_all_videos_of_a_class_are_ranked_together() -> None:
    annotations = {"a": [Span(0, 10, "jump")], "b": [Span(0, 10, "jump")]}
    predictions = {"a": [Span(0, 10, "jump", 0.3)], "b": [Span(40, 50, "jump", 0.9), Span(0, 10, "jump", 0.8)]}
    # wrong, right, right as above
    assert score(annotations, predictions).average_mean_ap == pytest.approx(2 / 3, abs=1e-15)


def test_classes_count_alike_with_predictions_or_without() -> None:
    annotations = {"v": [Span(0, 10, "jump"), Span(20, 30, "throw"), Span(40, 50, "throw")]}
    scores = score(annotations, predicted((0, 10, 0.9)))
    assert scores.ap_per_class == {"jump": (1,), "throw": (0,)}
    assert scores.mean_ap == (0.5,)
    assert score(annotations, {}).average_mean_ap == 0
    assert set(score(annotations, {}).average_recall.average_recall) == {0}


def test_a_prediction_for_a_video_without_annotation_is_wrong() -> None:
    scores = score(ONE, {"elsewhere": [Span(0, 10, "jump", 0.9)], "v": [Span(0, 10, "jump", 0.8)]})
    assert scores.mean_ap == (0.5,)  # wrong, right
    assert scores.counts.predictions_of_unknown_videos == 1


def test_repeated_annotations_count_twice_or_once() -> None:
    annotations = jumps((0, 10), (0.001, 10.0009))  # a millisecond at both ends is nothing to OpenTAD
    official, opentad = (score(annotations, predicted((0, 10, 0.9)), opentad=rules) for rules in (False, True))
    assert official.mean_ap == (0.5,)
    assert opentad.mean_ap == (1,)
    assert official.counts.repeated_annotations == opentad.counts.repeated_annotations == 1
    assert (official.counts.annotations, opentad.counts.annotations) == (2, 1)
    assert score(jumps((0, 10), (0.0011, 10)), {}, opentad=True).counts.annotations == 2
    both = {"v": [Span(0, 10, "jump"), Span(0, 10, "throw")]}
    assert score(both, {}, opentad=True).counts.annotations == 2


def test_annotations_without_length_are_kept_or_dropped() -> None:
    annotations, predictions = jumps((0, 10), (5, 5)), predicted((0, 10, 0.9), (5, 5, 0.8))
    assert score(annotations, predictions).mean_ap == (1,)  # 0 / 0 at one place counts as found
    assert score(annotations, predicted((0, 10, 0.9), (6, 8, 0.8))).mean_ap == (0.5,)  # no other finds it
    opentad = score(annotations, predictions, opentad=True)
    assert opentad.mean_ap == (1,)
    assert (opentad.counts.annotations, opentad.counts.empty_annotations, opentad.counts.empty_predictions) == (1, 1, 1)


def test_a_reversed_prediction_is_found_where_lengths_cancel_out() -> None:
    # the union of 0..10 and 20..10 is 10 - 10 = 0 long: nan; OpenTAD's is at least 1e-8
    assert score(ONE, predicted((20, 10, 0.9))).mean_ap == (1,)
    assert score(ONE, predicted((20, 10, 0.9)), opentad=True).mean_ap == (0,)


def test_a_predicted_class_without_annotation_is_refused_or_left_out() -> None:
    predictions = {"v": [*predicted((0, 10, 0.5))["v"], Span(0, 10, "swim", 0.9)]}
    with pytest.raises(AnnotationError, match=r"^video 'v': the predicted label 'swim' has no annotation .* --opentad"):
        score(ONE, predictions)
    scores = score(ONE, predictions, opentad=True)
    assert scores.mean_ap == (1,)
    assert (scores.counts.predictions, scores.counts.predictions_of_unknown_labels) == (1, 1)


def test_false_positives_by_kind() -> None:
    annotations = {"v": [Span(0, 10, "jump"), Span(20, 30, "throw")]}
    rows = [
        Span(0, 10, "jump", 0.9),  # right
        Span(0, 8, "jump", 0.8),  # overlaps it by 0.8, but it is taken: double
        Span(5, 20, "jump", 0.7),  # by 5 / 20: poor borders
        Span(20, 29, "jump", 0.6),  # a throw by 0.9: wrong class
        Span(25, 45, "jump", 0.5),  # a throw by 5 / 25, no jump: wrong class
        Span(9, 20, "jump", 0.4),  # by 1 / 20: background
        Span(60, 70, "throw", 0.3),  # background
    ]
    (at_half, strict) = score(annotations, {"v": rows}, 0.5, 0.95).mistakes
    assert (at_half.right, at_half.wrong()) == (1, {"double": 1, "wrong_class": 2, "poor_borders": 1, "background": 2})
    assert (strict.right, strict.wrong()) == (1, {"double": 0, "wrong_class": 2, "poor_borders": 2, "background": 2})


def test_recall_grows_with_proposals_whatever_their_class() -> None:
    annotations = {"v": [Span(0, 10, "jump"), Span(20, 30, "throw")]}
    predictions = {"v": [Span(50, 60, "jump", 0.9), Span(0, 10, "throw", 0.8)]}
    curve = _curve(annotations, predictions, 2)
    # a hundredth of two proposals more at each point: at the last alone both are seen, and one of two annotations found
    assert curve.proposals_per_video == pytest.approx(np.arange(1, 101) / 50)
    assert curve.average_recall == (*[0] * 99, 0.5)
    assert curve.area == pytest.approx(0.02 * 0.5 / 2)
    assert curve.area_percent == pytest.approx(100 * 0.02 * 0.5 / 2 / 2)
    assert curve.at(2) == 0.5
    assert score(annotations, predictions).average_recall.proposals_per_video[-1] == 100


def test_recall_of_a_class_by_its_surest_predictions() -> None:
    annotations = {"v": [Span(0, 10, "jump")], "w": [Span(0, 10, "throw")]}
    predictions = {"v": [Span(50, 60, "jump", 0.9), Span(0, 10, "jump", 0.8)]}
    # jump is the second prediction of a video with one annotation; throw is not found
    assert score(annotations, predictions).recall_at == {1: (0,), 5: (0.5,)}


def test_long_spans_of_many_predictions_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    annotations, predictions = _recorded("rand8")
    whole = score(annotations, predictions)
    monkeypatch.setattr("uniformerv2.spans.matching._PAIRS_AT_ONCE", 3)
    assert score(annotations, predictions) == whole


@pytest.mark.parametrize(
    ("protocol", "tiou"),
    [
        ("activitynet", "0.5 0.55 0.6 0.65 0.7 0.75 0.8 0.85 0.9 0.95"),
        ("hacs", "0.5 0.55 0.6 0.65 0.7 0.75 0.8 0.85 0.9 0.95"),
        ("thumos", "0.3 0.4 0.5 0.6 0.7"),
    ],
)
def test_published_thresholds(protocol: Any, tiou: str) -> None:
    result = score_spans(ONE, {}, protocol=protocol).to_json()
    assert list(result["mAP"]) == list(result["ap_per_class"]["jump"]) == tiou.split()


@pytest.mark.parametrize("tiou", [(0.0,), (1.1,), (float("nan"),), (0.5, 0.5)])
def test_thresholds_that_make_no_sense(tiou: tuple[float, ...]) -> None:
    with pytest.raises(RecipeError, match="temporal IoU"):
        score_spans(ONE, {}, tiou=tiou)


def test_nothing_to_score() -> None:
    with pytest.raises(AnnotationError, match="no annotation"):
        score_spans({"v": []}, {})
    with pytest.raises(RecipeError, match="of a ground truth file"):
        score_spans(ONE, {}, subset="validation")


# --- files


def write(folder: Path, name: str, content: object) -> Path:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / name


def database(**subsets: str) -> dict[str, Any]:
    return {
        "database": {
            video: {"subset": subset, "annotations": [{"segment": [0, 10], "label": subset}]}
            for video, subset in subsets.items()
        }
    }


@pytest.mark.parametrize(
    ("subsets", "protocol", "subset", "chosen"),
    [
        ({"a": "training", "b": "validation"}, "activitynet", None, "validation"),
        ({"a": "training", "b": "validation"}, "activitynet", "training", "training"),
        ({"a": "Validation", "b": "Test"}, "thumos", None, "Test"),  # as ActionFormer's file has it
        ({"a": "training", "b": "validation"}, "thumos", None, "validation"),  # as OpenTAD's
        ({"a": "mine"}, "activitynet", None, "mine"),
    ],
)
def test_which_subset_is_scored(
    tmp_path: Path, subsets: dict[str, str], protocol: Any, subset: str | None, chosen: str
) -> None:
    truth = write(tmp_path, "truth.json", database(**subsets))
    scores = score_spans(truth, {}, protocol=protocol, subset=subset)
    assert (scores.subset, scores.counts.videos, list(scores.ap_per_class)) == (chosen, 1, [chosen])


def test_a_subset_that_the_file_lacks(tmp_path: Path) -> None:
    truth = write(tmp_path, "truth.json", database(a="training", b="testing"))
    with pytest.raises(
        AnnotationError, match=r"truth.json: no subset 'validation'; the file has 'training', 'testing'"
    ):
        score_spans(truth, {})
    with pytest.raises(AnnotationError, match="no subset 'val'"):
        score_spans(truth, {}, subset="val")


def entry(**changes: object) -> dict[str, Any]:
    return {"segment": [0, 10], "label": "jump", "score": 0.5} | changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "as JSON: .*line 1 column 2"),
        ("\udcff", "as JSON: .* decode byte"),
        ("[" * 100_000, "as JSON: nested too deeply"),
        ('{"results": {"v1": [], "v1": []}}', "as JSON: 'v1' stands twice in one object"),
        ([], 'no object "results"'),
        ({"database": {}}, 'no object "results"'),
        ({"results": []}, 'no object "results"'),
        ({"results": {"v1": {}}}, "video 'v1', predictions: expected a list, got {}"),
        ({"results": {"v1": [entry(), 5]}}, "video 'v1', prediction 2: expected an object, got 5"),
        ({"results": {"v1": [{"label": "jump", "score": 1}]}}, "video 'v1', prediction 1: \"segment\" .* got nothing"),
        (
            {"results": {"v1": [entry(segment=[1, 2, 3])]}},
            r'"segment" must be \[start, end\] in seconds, got \[1, 2, 3\]',
        ),
        ({"results": {"v1": [entry(segment=["1", 2])]}}, r'"segment" must be .* got \["1", 2\]'),
        ({"results": {"v1": [entry(segment=[True, 2])]}}, r'"segment" must be .* got \[true, 2\]'),
        ({"results": {"v1": [entry(segment=[0, float("nan")])]}}, r'"segment" must be .* got \[0, NaN\]'),
        ({"results": {"v1": [entry(segment=[9.5, 2])]}}, "prediction 1: ends at 2 s, before it starts at 9.5 s"),
        ({"results": {"v1": [entry(label=7)]}}, '"label" must be a name, got 7'),
        ({"results": {"v1": [entry(score="high")]}}, '"score" must be a number, got "high"'),
        ({"results": {"v1": [entry(score=float("inf"))]}}, '"score" must be a number, got Infinity'),
        ({"results": {"v1": [entry(segment=[0, 10**400])]}}, r'"segment" must be .* got \[0, 1000'),
        ({"results": {"v1": [{"segment": [0, 1], "label": "jump"}]}}, '"score" must be a number, got nothing'),
    ],
)
def test_predictions_that_are_none(tmp_path: Path, content: object, message: str) -> None:
    file = tmp_path / "predictions.json"
    file.write_bytes((content if isinstance(content, str) else json.dumps(content)).encode(errors="surrogateescape"))
    with pytest.raises(AnnotationError, match=rf"predictions\.json.*{message}"):
        read_predictions(file)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (5, "expected an object"),
        ({"subset": 1}, '"subset" must be a name, got 1'),
        ({"annotations": None}, "annotations: expected a list, got null"),
        ({"annotations": [{"segment": [3, 1], "label": "jump"}]}, "annotation 1: ends at 1 s, before it starts at 3 s"),
    ],
)
def test_ground_truth_that_is_none(tmp_path: Path, video: object, message: str) -> None:
    file = write(tmp_path, "truth.json", {"database": {"v1": video}})
    with pytest.raises(AnnotationError, match=rf"truth\.json, video 'v1'.*{message}"):
        read_ground_truth(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="cannot be read: No such file"):
        read_predictions(tmp_path / "absent.json")


# --- what the evaluators returned


def _recorded(name: str) -> tuple[Spans, Spans]:
    case = RECORDED["cases"][name]
    annotations, predictions = (
        {video: [Span(*row) for row in rows] for video, rows in case[key].items()}
        for key in ("annotations", "predictions")
    )
    return annotations, predictions


@pytest.mark.parametrize("rules", ["official", "opentad"])
@pytest.mark.parametrize("name", RECORDED["cases"])
def test_scores_are_those_that_the_evaluators_recorded(name: str, rules: str) -> None:
    expected = RECORDED["cases"][name][rules]
    scores = score(*_recorded(name), *RECORDED["tiou"], opentad=rules == "opentad")
    assert {label: list(ap) for label, ap in scores.ap_per_class.items()} == expected["ap"]
    assert list(scores.mean_ap) == expected["mAP"]
    assert scores.average_mean_ap == expected["avg"]
    if rules == "opentad":
        assert [list(recall) for recall in scores.recall_at.values()] == expected["recall"]


@pytest.mark.parametrize("name", RECORDED["cases"])
def test_average_recall_is_that_which_the_evaluator_recorded(name: str) -> None:
    for proposals, (recall, per_video) in RECORDED["cases"][name]["average_recall"].items():
        curve = _curve(*_recorded(name), None if proposals == "None" else float(proposals))
        assert list(curve.average_recall) == recall
        assert list(curve.proposals_per_video) == per_video


def _curve(annotations: Spans, predictions: Spans, proposals: float | None) -> AverageRecall:
    labels = {one.label: 0 for spans in (annotations, predictions) for of in spans.values() for one in of}
    videos = {video: number for number, video in enumerate({**annotations, **predictions})}
    rows: list[Columns] = [columns(spans, videos, labels) for spans in (predictions, annotations)]
    return average_recall(overlapping(*rows, at_least=0.5), *rows, proposals=proposals)


@pytest.fixture
def reference(shared: Path) -> Path:
    folder = shared / "reference" / "tal"
    if not folder.is_dir():
        pytest.skip(f"no recorded localisation scores at {folder}")
    return folder


@pytest.mark.parametrize("rules", ["official", "opentad"])
def test_scores_are_those_of_the_reference(reference: Path, rules: str) -> None:
    expected = json.loads((reference / "expected.json").read_text())
    for name, case in expected["cases"].items():
        files = [reference / name / file for file in ("gt.json", "pred.json")]
        wanted = case[f"expected_{rules}"]

        def run(files: list[Path] = files, case: dict[str, Any] = case) -> SpanScores:
            tiou, subset = expected["tiou_thresholds"], case["subset"]
            return score_spans(*files, tiou=tiou, subset=subset, opentad=rules == "opentad")

        if "error" in wanted:
            _assert_names_the_class(run, wanted["error"])
            continue
        scores = run()
        assert {label: list(ap) for label, ap in scores.ap_per_class.items()} == wanted["ap_per_class"], name
        assert list(scores.mean_ap) == wanted["mAP"], name
        assert scores.average_mean_ap == wanted["average_mAP"], name
        for times, recall in scores.recall_at.items():
            assert list(recall) == wanted.get(f"recall_at_{times}x", list(recall)), name


def _assert_names_the_class(run: Callable[[], SpanScores], key_error: str) -> None:
    with pytest.raises(AnnotationError, match=f"pred.json, .* label {key_error.removeprefix('KeyError: ')} has no"):
        run()


def test_average_recall_is_that_of_the_reference(reference: Path) -> None:
    cases = json.loads((reference / "expected.json").read_text())["cases"]
    compared = 0
    for name, case in cases.items():
        annotations = read_ground_truth(reference / name / "gt.json")[case["subset"]]
        predictions = read_predictions(reference / name / "pred.json")
        for wanted in case.get("proposals_official", []):
            curve = _curve(annotations, predictions, wanted["max_avg_nr_proposals"])
            assert [list(row) for row in curve.recall] == wanted["recall"], name
            assert list(curve.average_recall) == wanted["average_recall"], name
            assert curve.proposals_per_video == pytest.approx(wanted["proposals_per_video"], abs=1e-12)
            assert curve.area == pytest.approx(wanted["auc"], abs=1e-12)
            assert curve.area_percent == pytest.approx(wanted["auc_percent_of_max"], abs=1e-12)
            compared += 1
    assert compared >= 5


def test_the_published_scores_of_mmaction2s_example(reference: Path) -> None:
    files = [reference / "mmaction2_fixture" / file for file in ("gt.json", "pred.json")]
    scores = score_spans(*files)
    expected = [0.714286] * 3 + [0.6875] * 2 + [0.597222] + [0.520833] * 3 + [0.5]
    assert scores.mean_ap == pytest.approx(expected, abs=1e-6)
    assert scores.average_mean_ap == pytest.approx(0.6177579365079365, abs=1e-12)
