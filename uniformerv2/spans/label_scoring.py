"""score_labels: scores of all classes against labels, several at a time, as Charades and MultiTHUMOS are measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from uniformerv2.errors import AnnotationError
from uniformerv2.spans.label_files import (
    AnnotatedVideo,
    Array,
    read_arrays,
    read_charades,
    read_multithumos,
    read_submission,
)

LabelProtocol: TypeAlias = Literal["charades-classify", "charades-localize", "multithumos"]
CHARADES_CLASSES, CHARADES_FRAMES, MULTITHUMOS_CLASSES = 157, 25, 65


@dataclass(frozen=True)
class LabelScores:
    """What `score_labels` found."""

    protocol: LabelProtocol
    ap_per_class: dict[str, float | None]  # None: nothing shows it
    counts: dict[str, int]  # frames, or videos, that show each class
    rows: int  # frames, or videos, that were ranked
    missing: int  # of them without a score: ranked last
    unknown: int  # videos with scores that are not in the ground truth: left out

    @property
    def mean_average_precision(self) -> float:
        """mAP, in [0, 1]: the mean over the classes that something shows."""
        found = [value for value in self.ap_per_class.values() if value is not None]
        return math.fsum(found) / len(found)

    @property
    def weighted_average_precision(self) -> float:
        """In [0, 1]: the mean weighted by how many frames, or videos, show a class."""
        weighted = [value * self.counts[name] for name, value in self.ap_per_class.items() if value is not None]
        return math.fsum(weighted) / sum(self.counts.values())

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return {
            "protocol": self.protocol,
            "mAP": self.mean_average_precision,
            "weighted_mAP": self.weighted_average_precision,
            "ap_per_class": self.ap_per_class,
            "counts": {"rows": self.rows, "missing": self.missing, "unknown_videos": self.unknown, **self.counts},
        }


def score_labels(
    ground_truth: str | Path, predictions: str | Path | Mapping[str, Array], *, protocol: LabelProtocol
) -> LabelScores:
    """Average precision of each class over all videos, or all of their frames (docs/multilabel.md).

    Args:
        ground_truth: Charades_v1_test.csv; of MultiTHUMOS, multithumos.json.
        predictions: by the name of a video, scores of its frames (frames, classes), or (classes) of it as a whole;
            or a file .npz of such arrays, or of Charades a submission as its scripts take it.
        protocol: charades-classify: videos; charades-localize: 25 frames of each; multithumos: as many frames of each
            as it has scores.

    Raises:
        AnnotationError: a file of another form, scores of another shape or that are no numbers, or a video of
            MultiTHUMOS without scores.
    """
    classes = MULTITHUMOS_CLASSES if protocol == "multithumos" else CHARADES_CLASSES
    read = read_multithumos if protocol == "multithumos" else read_charades
    videos, found = read(Path(ground_truth), classes=classes), _predicted(predictions, protocol, classes)
    without = [video.name for video in videos if video.name not in found]
    if protocol == "multithumos" and without:
        raise AnnotationError(
            f"{ground_truth}: {len(without)} of {len(videos)} videos have no scores, such as {without[0]}, and say how "
            "many frames count; score them, or take them out of the ground truth"
        )
    scores, present = zip(*(_rows(video, found.get(video.name), protocol) for video in videos), strict=True)
    if not any(shown.any() for shown in present):
        raise AnnotationError(f"{ground_truth}: no frame or video that counts shows a class: nothing to score")
    unknown = len(found.keys() - {video.name for video in videos})
    return _scores(protocol, np.concatenate(scores), np.concatenate(present), unknown)


def _predicted(
    predictions: str | Path | Mapping[str, Array], protocol: LabelProtocol, classes: int
) -> Mapping[str, Array]:
    """Scores of all classes by video, of frames or, as a single row, of the whole."""
    where, frames = "", 0 if protocol == "charades-classify" else CHARADES_FRAMES
    if isinstance(predictions, str | Path):
        path, where = Path(predictions), f"{predictions}, "
        arrays = protocol == "multithumos" or path.suffix.lower() == ".npz"
        found = read_arrays(path) if arrays else read_submission(path, classes=classes, frames=frames)
    else:
        found = {video: np.atleast_2d(scores) for video, scores in predictions.items()}
    for video, scores in found.items():
        if scores.ndim != 2 or scores.shape[1] != classes or not (frames or len(scores) == 1):
            expected = f"(frames, {classes})" if frames else f"({classes})"
            raise AnnotationError(f"{where}video {video!r}: scores of shape {scores.shape}; expected {expected}")
        if np.isnan(scores).any() or (scores == np.inf).any():
            raise AnnotationError(f"{where}video {video!r}: a score that is NaN or infinite; expected numbers")
    return found


def _rows(video: AnnotatedVideo, scores: Array | None, protocol: LabelProtocol) -> tuple[Array, Array]:
    """What is ranked of a video: float64 (rows, classes), and bool of the same shape, what each row shows."""
    if protocol == "charades-classify":
        present = np.zeros((1, CHARADES_CLASSES), dtype=bool)
        present[0, [number for number, *_ in video.actions]] = True
        if scores is None or not video.actions:  # the official script does not look up videos without actions
            scores = np.full(present.shape, -np.inf)
        return scores, present
    if protocol == "multithumos":
        assert scores is not None
        times = np.arange(len(scores)) / (len(scores) / video.seconds)
        inside = [(number, (times > start) & (times < end)) for number, start, end in video.actions]
    else:
        times = np.arange(CHARADES_FRAMES) / CHARADES_FRAMES * video.seconds
        inside = [(number, (start <= times) & (times <= end)) for number, start, end in video.actions]
        given = np.empty((0, CHARADES_CLASSES)) if scores is None else scores[:CHARADES_FRAMES]
        scores = np.full((CHARADES_FRAMES, CHARADES_CLASSES), -np.inf)
        scores[: len(given)] = given
    present = np.zeros((len(scores), scores.shape[1]), dtype=bool)
    for number, shown in inside:
        present[:, number] |= shown
    return scores, present


def _scores(protocol: LabelProtocol, scores: Array, present: Array, unknown: int) -> LabelScores:
    classes = range(scores.shape[1])
    names = [f"{number + 1}" if protocol == "multithumos" else f"c{number:03}" for number in classes]  # as the files do
    found = [ranked_average_precision(*columns) for columns in zip(scores.T, present.T, strict=True)]
    counts = dict(zip(names, present.sum(0).tolist(), strict=True))
    missing = int(np.isneginf(scores).all(1).sum())
    return LabelScores(protocol, dict(zip(names, found, strict=True)), counts, len(scores), missing, unknown)


def ranked_average_precision(scores: Sequence[float] | Array, present: Sequence[bool] | Array) -> float | None:
    """The mean of the precision at the rank of each row that is present; of equal scores the earlier row is first.

    As Charades' scripts have it. Without equal scores it is the `average_precision` of `evaluate`.

    Args:
        scores: of the rows.
        present: which of them show the class; None is returned where none does.
    """
    ranking = np.asarray(present, dtype=bool)[np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")]
    ranks = np.flatnonzero(ranking) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).mean()) if len(ranks) else None
