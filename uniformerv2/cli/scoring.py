"""`uniformerv2 score` and `score-labels`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from uniformerv2.cli.options import Json, TIoU, values
from uniformerv2.cli.output import print_line, print_table
from uniformerv2.errors import RecipeError

if TYPE_CHECKING:
    from uniformerv2.spans.label_scoring import LabelScores
    from uniformerv2.spans.scoring import SpanScores


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score predicted spans of time as the benchmarks do: mAP, average recall, and what is wrong with the others.

    Both files are in ActivityNet's form; whose model made the predictions does not matter (docs/localisation.md).
    """

    ground_truth: Annotated[Positional[Path], arg(metavar="GROUND_TRUTH")]
    """JSON with "database": the annotated spans of each video."""
    predictions: Annotated[Positional[Path], arg(metavar="PREDICTIONS")]
    """JSON with "results": the predicted spans of each video, with scores."""
    protocol: Literal["activitynet", "thumos", "hacs"] = "activitynet"
    """Whose thresholds and subset: tIoU 0.5:0.05:0.95 on validation; of thumos 0.3:0.1:0.7 on test."""
    tiou: TIoU = ()
    subset: str | None = None
    """The subset of the ground truth that is scored; None: the protocol's, or the only one."""
    opentad: FlagCreatePairsOff[bool] = False
    """OpenTAD's rules, not ActivityNet's: annotations that repeat or have no length are dropped, and predictions of
    labels that the ground truth lacks."""
    as_json: Annotated[tuple[Path, ...] | None, arg(name="json", metavar="[FILE]")] = None
    """Print JSON and nothing else; with a file, write it there and print the table."""

    def run(self) -> int:
        if self.as_json and len(self.as_json) > 1:
            raise RecipeError(f"--json takes one file, got {' '.join(map(str, self.as_json))}")
        from uniformerv2.atomic import write_text
        from uniformerv2.spans.scoring import score_spans

        scores = score_spans(**values(self, "as_json"))
        text = json.dumps({"protocol": self.protocol, **scores.to_json()}, indent=2)
        if self.as_json == ():
            print(text)
            return 0
        print_scores(scores)
        if self.as_json:
            write_text(self.as_json[0], f"{text}\n")
            print_line(f"written to {self.as_json[0]}")
        return 0


_KINDS = {
    "right": "right",
    "double": "double",
    "wrong_class": "wrong class",
    "poor_borders": "poor borders",
    "background": "background",
}


def print_scores(scores: SpanScores) -> None:
    """The table of mAP and mistakes, and what stands out."""
    counts, recall = scores.counts, scores.average_recall
    print_table(
        f"{scores.subset or 'all spans'}, {'OpenTAD' if scores.opentad else 'official'} rules",
        ("tIoU", "mAP", *_KINDS.values()),
        [
            (f"{threshold:g}", f"{mean:.2%}", *(getattr(one, kind) for kind in _KINDS))
            for threshold, mean, one in zip(scores.tiou, scores.mean_ap, scores.mistakes, strict=True)
        ],
        totals=[("average", f"{scores.average_mean_ap:.2%}", *[""] * len(_KINDS))],
        numbers=("mAP", *_KINDS.values()),
    )
    print_line(
        f"{counts.videos} videos, {counts.annotations} annotations of {len(scores.ap_per_class)} classes, "
        f"{counts.predictions} predictions"
    )
    points = "   ".join(f"AR@{proposals} {recall.at(proposals):.1%}" for proposals in (1, 10, 100))
    print_line(f"{points}   area below the curve {recall.area_percent:.1f}%")
    for what, number, effect in (
        ("repeated annotations", counts.repeated_annotations, "dropped" if scores.opentad else "counted each time"),
        ("annotations without length", counts.empty_annotations, "dropped" if scores.opentad else "counted"),
        ("predictions without length", counts.empty_predictions, "kept"),
        ("predictions for videos without ground truth", counts.predictions_of_unknown_videos, "wrong"),
        ("predictions of labels without ground truth", counts.predictions_of_unknown_labels, "dropped"),
    ):
        if number:
            print_line(f"{what}: {number}, {effect}")


@dataclass(frozen=True, kw_only=True)
class ScoreLabels:
    """Score several labels at a time as Charades and MultiTHUMOS do: mAP over videos, or over all of their frames.

    Whose model gave the scores does not matter (docs/multilabel.md).
    """

    ground_truth: Annotated[Positional[Path], arg(metavar="GROUND_TRUTH")]
    """Charades_v1_test.csv; of MultiTHUMOS, multithumos.json."""
    predictions: Annotated[Positional[Path], arg(metavar="PREDICTIONS")]
    """Scores of every class: .npz with an array for each video, or of Charades a submission, VIDEO [FRAME] SCORE ..."""
    protocol: Literal["charades-classify", "charades-localize", "multithumos"]
    """What is ranked: the videos of Charades, 25 frames of each, or all frames of MultiTHUMOS that have scores."""
    as_json: Json = False

    def run(self) -> int:
        from uniformerv2.spans.label_scoring import score_labels

        scores = score_labels(**values(self, "as_json"))
        if self.as_json:
            print(json.dumps(scores.to_json(), indent=2))
        else:
            _print_label_scores(scores)
        return 0


def _print_label_scores(scores: LabelScores) -> None:
    print_table(
        scores.protocol,
        ("class", "AP", "shown"),
        [
            (name, f"{found:.2%}", scores.counts[name])
            for name, found in scores.ap_per_class.items()
            if found is not None
        ],
        totals=[
            ("mAP", f"{scores.mean_average_precision:.2%}", ""),
            ("weighted", f"{scores.weighted_average_precision:.2%}", ""),
        ],
        numbers=("AP", "shown"),
    )
    print_line(f"{scores.rows} {'videos' if scores.protocol == 'charades-classify' else 'frames'}")
    for what, number in (
        ("classes that nothing shows, left out", sum(found is None for found in scores.ap_per_class.values())),
        ("without scores, ranked last", scores.missing),
        ("videos that the ground truth lacks, left out", scores.unknown),
    ):
        if number:
            print_line(f"{what}: {number}")
