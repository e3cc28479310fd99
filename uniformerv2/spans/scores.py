"""What scoring spans gives: as data and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from uniformerv2.spans.mistakes import Mistakes
from uniformerv2.spans.recall import RECALL_TIOU, AverageRecall


@dataclass(frozen=True)
class SpanCounts:
    """What was scored, and what scores differ by."""

    videos: int  # of the ground truth
    annotations: int  # that count
    predictions: int  # that count
    repeated_annotations: int  # count as often as they stand; with OpenTAD's rules once
    empty_annotations: int  # without length: count and are hardly ever found; dropped with OpenTAD's rules
    empty_predictions: int  # without length: wrong
    predictions_of_unknown_videos: int  # wrong
    predictions_of_unknown_labels: int  # an error; dropped with OpenTAD's rules


@dataclass(frozen=True)
class SpanScores:
    """What `score_spans` found. Figures by threshold are in the order of `tiou`."""

    tiou: tuple[float, ...]
    opentad: bool
    subset: str | None  # of a file
    ap_per_class: dict[str, tuple[float, ...]]  # by threshold; classes in the order of the ground truth
    mean_ap: tuple[float, ...]  # over the classes, by threshold
    average_mean_ap: float  # over the thresholds
    recall_at: dict[int, tuple[float, ...]]  # by so many times a class's annotations in a video; by threshold
    average_recall: AverageRecall
    mistakes: tuple[Mistakes, ...]  # by threshold
    counts: SpanCounts

    def to_json(self) -> dict[str, Any]:
        """For a file: figures by threshold have keys such as "0.5"."""

        def by_tiou(values: Sequence[Any]) -> dict[str, Any]:
            return {f"{threshold:g}": value for threshold, value in zip(self.tiou, values, strict=True)}

        curve = self.average_recall
        return {
            "rules": "opentad" if self.opentad else "official",
            "subset": self.subset,
            "tiou_thresholds": self.tiou,
            "mAP": by_tiou(self.mean_ap),
            "average_mAP": self.average_mean_ap,
            "ap_per_class": {label: by_tiou(values) for label, values in self.ap_per_class.items()},
            **{f"recall_at_{times}x": by_tiou(values) for times, values in self.recall_at.items()},
            "average_recall": {
                "tiou_thresholds": RECALL_TIOU,
                "proposals_per_video": curve.proposals_per_video,
                "average_recall": curve.average_recall,
                "area": curve.area,
                "area_percent": curve.area_percent,
            },
            "right": by_tiou([one.right for one in self.mistakes]),
            "false_positives": by_tiou([one.wrong() for one in self.mistakes]),
            "counts": asdict(self.counts),
        }
