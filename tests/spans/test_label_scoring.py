"""Several labels at a time are scored as for Charades and MultiTHUMOS: by hand, and against scikit-learn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import Run, assert_refused
from uniformerv2 import AnnotationError, score_labels
from uniformerv2.spans.label_scoring import ranked_average_precision

CHARADES = """id,subject,length,actions
A,P1,25.0,c001 3.00 5.00;c002 0.00 1.50
B,P2,50.0,
C,P3,10.0,c001 0.00 10.00
"""


@pytest.fixture
def charades(tmp_path: Path) -> Path:
    (tmp_path / "Charades_v1_test.csv").write_text(CHARADES)
    return tmp_path / "Charades_v1_test.csv"


def row(first: float = 0.0, second: float = 0.0) -> np.ndarray:
    """Scores of c001 and c002, zero for all others."""
    scores = np.zeros(157)
    scores[1:3] = first, second
    return scores


def submission(path: Path, lines: Sequence[tuple[object, ...]]) -> Path:
    """The last of each are the scores."""
    text = [" ".join(map(str, [*names, *scores.tolist()])) for *names, scores in lines]
    path.write_text("\n".join(text) + "\n")
    return path


# --- average precision


def test_each_row_that_is_present_counts_with_the_precision_at_its_rank() -> None:
    # there, not, there, not: precision 1 and 2/3
    assert ranked_average_precision([0.9, 0.8, 0.7, 0.6], [True, False, True, False]) == (1 + 2 / 3) / 2
    assert ranked_average_precision([0.9, 0.8], [False, False]) is None
    # rows without a score come last, in their order: ranks 1 and 3
    assert ranked_average_precision([-np.inf, -np.inf, 0.1], [False, True, True]) == (1 + 2 / 3) / 2


def test_of_equal_scores_the_earlier_row_is_first() -> None:
    """As a stable sort has it; scikit-learn takes them as one step."""
    assert ranked_average_precision([0.5] * 4, [True, False, False, True]) == (1 + 2 / 4) / 2
    assert ranked_average_precision([0.5] * 4, [False, False, True, True]) == (1 / 3 + 2 / 4) / 2
    # more rows than an unstable sort leaves in order by chance
    assert ranked_average_precision([0.5] * 1000, [True] + [False] * 999) == 1


def test_without_equal_scores_it_is_that_of_scikit_learn() -> None:
    metrics: Any = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    for _ in range(100):
        rows = int(draw.integers(2, 60))
        scores, present = draw.permutation(rows) / rows, draw.random(rows) < 0.3
        present[draw.integers(rows)] = True
        expected = metrics.average_precision_score(present, scores)
        assert ranked_average_precision(scores, present) == pytest.approx(expected, rel=1e-12)


# --- Charades, videos


def test_videos_of_charades(charades: Path, tmp_path: Path) -> None:
    """c001 is in A and C; B, which has no actions, comes last whatever its score."""
    lines = [("A", row(0.2, 0.1)), ("B", row(0.9, 0.9)), ("C", row(0.8, 0.5)), ("Z", row(1.0))]
    found = score_labels(charades, submission(tmp_path / "scores.txt", lines), protocol="charades-classify")
    assert {name: value for name, value in found.ap_per_class.items() if value is not None} == {
        "c001": 1,
        "c002": 1 / 2,
    }
    assert found.mean_average_precision == 3 / 4
    assert found.weighted_average_precision == pytest.approx((2 * 1 + 1 / 2) / 3)
    assert (found.rows, found.missing, found.unknown) == (3, 1, 1)


def test_a_video_that_is_missing_comes_last(charades: Path) -> None:
    found = score_labels(charades, {"A": row(0.2, 0.1)}, protocol="charades-classify")
    # c001: A, then B, which shows nothing, then C
    assert found.ap_per_class["c001"] == (1 + 2 / 3) / 2
    assert (found.missing, found.unknown) == (2, 0)


# --- Charades, frames


def test_frames_of_charades_are_those_at_25ths_of_the_length(charades: Path) -> None:
    """A has a frame a second: c001 in those of 3, 4 and 5 s, ends included, c002 in 0 and 1; C has c001 in all 25."""
    found = score_labels(charades, {}, protocol="charades-localize")
    assert {name: count for name, count in found.counts.items() if count} == {"c001": 3 + 25, "c002": 2}
    assert (found.rows, found.missing) == (75, 75)


def test_frames_of_charades_are_ranked_together(charades: Path, tmp_path: Path) -> None:
    """c002 is shown in frames 1 and 2 of A, which are ranked second and fourth; the other frames below."""
    surest = {("B", 7): 0.9, ("A", 1): 0.8, ("C", 25): 0.7, ("A", 2): 0.6}
    frames = [(video, frame) for video in "ABC" for frame in range(1, 26)]
    lines = [(video, frame, row(0, surest.get((video, frame), 0.0))) for video, frame in frames]
    file = submission(tmp_path / "scores.txt", lines)
    found = score_labels(charades, file, protocol="charades-localize")
    assert found.ap_per_class["c002"] == (1 / 2 + 2 / 4) / 2
    # c001 has no score of its own, so that the order of the frames decides: ranks 4, 5, 6 and 51 to 75
    ranks = [4, 5, 6, *range(51, 76)]
    assert found.ap_per_class["c001"] == pytest.approx(sum((n + 1) / rank for n, rank in enumerate(ranks)) / 28)
    assert (found.rows, found.missing) == (75, 0)
    from_zero = submission(tmp_path / "zero.txt", [(video, frame - 1, scores) for video, frame, scores in lines])
    assert score_labels(charades, from_zero, protocol="charades-localize") == found
    np.savez(
        tmp_path / "scores.npz", **{video: np.stack([x for name, _, x in lines if name == video]) for video in "ABC"}
    )
    assert score_labels(charades, tmp_path / "scores.npz", protocol="charades-localize") == found
    fewer = score_labels(charades, submission(tmp_path / "few.txt", lines[:60]), protocol="charades-localize")
    assert (fewer.rows, fewer.missing) == (75, 15)
    assert fewer.ap_per_class["c002"] == (1 / 2 + 2 / 3) / 2


# --- MultiTHUMOS


@pytest.fixture
def multithumos(tmp_path: Path) -> Path:
    videos = {
        "video_test_1": {"subset": "testing", "duration": 4.0, "actions": [[1, 1.0, 3.0], [65, 0.5, 2.5]]},
        "video_test_2": {"subset": "testing", "duration": 1.0, "actions": []},
        "video_validation_1": {"subset": "training", "duration": 9.0, "actions": [[8, 0.0, 9.0]]},
    }
    (tmp_path / "multithumos.json").write_text(json.dumps(videos))
    return tmp_path / "multithumos.json"


def of_classes(first: Sequence[float], last: Sequence[float]) -> np.ndarray:
    """Scores of the first and the last class for each frame, zero for all others."""
    scores = np.zeros((len(first), 65))
    scores[:, 0], scores[:, 64] = first, last
    return scores


def test_frames_of_multithumos_are_those_that_have_scores(multithumos: Path, tmp_path: Path) -> None:
    """Eight frames, of 0, 0.5, ... s: class 1 in 1.5, 2 and 2.5, without the ends; class 65 in 1, 1.5 and 2."""
    first = [0.1, 0.2, 0.3, 0.9, 0.8, 0.4, 0.0, 0.5]
    last = [0.9, 0.1, 0.8, 0.7, 0.6, 0.2, 0.3, 0.4]
    scores = {"video_test_1": of_classes(first, last), "video_test_2": of_classes([0.85, 0.0], [0.0, 0.0])}
    np.savez(tmp_path / "scores.npz", **scores)
    found = score_labels(multithumos, tmp_path / "scores.npz", protocol="multithumos")
    # class 1: right 0.9, wrong 0.85, right 0.8, wrong 0.5, right 0.4; class 65: wrong 0.9, then three that are right
    expected = (1 + 2 / 3 + 3 / 5) / 3, (1 / 2 + 2 / 3 + 3 / 4) / 3
    assert (found.ap_per_class["1"], found.ap_per_class["65"]) == pytest.approx(expected, rel=1e-12)
    assert found.mean_average_precision == pytest.approx(sum(expected) / 2, rel=1e-12)
    assert {name: count for name, count in found.counts.items() if count} == {"1": 3, "65": 3}
    assert (found.rows, found.missing, found.unknown) == (10, 0, 0)
    (tmp_path / "zero.json").write_text(multithumos.read_text().replace("[[1,", "[[0,"))
    with pytest.raises(AnnotationError, match=r"zero.json, video 'video_test_1': .* with classes from 1 to 65, got"):
        score_labels(tmp_path / "zero.json", scores, protocol="multithumos")
    with pytest.raises(AnnotationError, match=r"multithumos.json: 1 of 2 videos have no scores, such as video_test_2"):
        score_labels(multithumos, {"video_test_1": scores["video_test_1"]}, protocol="multithumos")


# --- what is refused, and the command line


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("A 1", ["line 1: 1 values after 'A'; expected VIDEO FRAME and 157 scores"]),
        ("A 1 x" + " 0" * 156, ["line 1", "expected VIDEO FRAME and 157 scores"]),
        ("A 1" + " 0" * 157 + "\nA 1" + " 0" * 157, ["line 2: frame 1 of 'A'", "twice"]),
        ("A 1 nan" + " 0" * 156, ["video 'A'", "NaN"]),
    ],
)
def test_scores_that_are_none_are_told_by_line(
    uniformerv2: Run, charades: Path, tmp_path: Path, text: str, parts: list[str]
) -> None:
    (tmp_path / "scores.txt").write_text(text)
    ended = uniformerv2("score-labels", charades, tmp_path / "scores.txt", "--protocol", "charades-localize")
    assert_refused(ended, tmp_path / "scores.txt", *parts)


def test_ground_truth_of_another_form_is_told(charades: Path, tmp_path: Path) -> None:
    (tmp_path / "spans.csv").write_text("id,start,end\nA,0,1\n")
    with pytest.raises(
        AnnotationError, match=r"spans.csv, line 1: no column actions, length; expected Charades_v1_test"
    ):
        score_labels(tmp_path / "spans.csv", {}, protocol="charades-classify")
    with pytest.raises(AnnotationError, match=r"cannot be read as JSON"):
        score_labels(charades, {}, protocol="multithumos")
    charades.write_text("id,length,actions\nA,20,c157 0 1\n")
    with pytest.raises(AnnotationError, match=r"line 2: 'c157 0 1'; expected CLASS START END with c000 to c156"):
        score_labels(charades, {}, protocol="charades-classify")
    charades.write_text("id,length,actions\nA,20,\n")
    with pytest.raises(AnnotationError, match=r"test.csv: no frame or video that counts shows a class"):
        score_labels(charades, {}, protocol="charades-classify")
    (tmp_path / "scores.npz").write_text("no archive")
    with pytest.raises(AnnotationError, match=r"scores.npz: cannot be read as .npz"):
        score_labels(charades, tmp_path / "scores.npz", protocol="charades-classify")
    with pytest.raises(AnnotationError, match=r"video 'A': scores of shape \(2, 157\); expected \(157\)"):
        score_labels(charades, {"A": np.zeros((2, 157))}, protocol="charades-classify")


def test_the_command_prints_a_table_or_json(uniformerv2: Run, charades: Path, tmp_path: Path) -> None:
    file = submission(tmp_path / "scores.txt", [("A", row(0.2, 0.1)), ("C", row(0.8, 0.5))])
    command = "score-labels", charades, file, "--protocol", "charades-classify"
    status, printed, errors = uniformerv2(*command)
    assert (status, errors) == (0, "")
    lines = [line.replace("│", "").split() for line in printed.splitlines()]
    for line in (["c001", "100.00%", "2"], ["c002", "50.00%", "1"], ["mAP", "75.00%"], ["weighted", "83.33%"]):
        assert line in lines
    assert "classes that nothing shows, left out: 155" in printed
    content = json.loads(uniformerv2(*command, "--json")[1])
    assert (content["mAP"], content["ap_per_class"]["c002"], content["ap_per_class"]["c000"]) == (0.75, 0.5, None)
    assert content["counts"]["rows"] == 3
