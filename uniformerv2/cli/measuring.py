"""`uniformerv2 evaluate`, `features` and `benchmark`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from uniformerv2.cli.localisation import SPAN_OPTIONS, evaluate_spans
from uniformerv2.cli.options import (
    Data,
    Device,
    FeatureCache,
    Head,
    ManyVideos,
    Measuring,
    NumFrames,
    OptionalOutput,
    Output,
    Split,
    StrideSeconds,
    TIoU,
    WindowSeconds,
    refuse_options,
    result_file,
    values,
)
from uniformerv2.cli.output import in_every_process, note, note_checkpoint, print_line, print_table
from uniformerv2.errors import RecipeError
from uniformerv2.text import printable
from uniformerv2.video.views import Views

if TYPE_CHECKING:
    from uniformerv2.distributed import Ranks
    from uniformerv2.measuring.features import VideoFeatures
    from uniformerv2.measuring.metrics import Averages, ClassResult
    from uniformerv2.measuring.multilabel import MultilabelEvaluation
    from uniformerv2.measuring.results import Evaluation
    from uniformerv2.model.uniformerv2 import UniFormerV2


@dataclass(frozen=True, kw_only=True)
class Evaluate(Measuring):
    """Measure a checkpoint: accuracy, confusions and calibration over several views of each video; of a model that
    names several labels of a video, average precision and F1; of a localiser, the spans that it finds in films.

    Several processes share the work, with equal results: torchrun --nproc-per-node 8 -m uniformerv2 evaluate ...
    """

    data: Data
    views: Views = Views()
    head: Head = None
    output: OptionalOutput = None
    """JSON file for the result; None: CHECKPOINT[.HEAD].DATA.CLIPSxCROPS.json beside the checkpoint, or in the
    folder of a run; in the current folder where the checkpoint is no file of yours."""
    predictions: Path | None = None
    """File for a row per video: its label, the five best classes with their scores, or the error (.csv); and the scores
    of all classes (.parquet, .npz). Of a localiser: for the spans that it finds (.json, .csv)."""
    protocol: Literal["activitynet", "thumos", "hacs"] | None = None
    """Of a localiser: whose thresholds of temporal intersection over union; None: 0.3 0.4 0.5 0.6 0.7."""
    tiou: TIoU = ()
    feature_cache: FeatureCache = None
    confusion: Path | None = None
    """CSV or Parquet file for the confusion matrix: a row for each class, a column for what it was taken for."""
    split: Split = "held-out"

    @in_every_process
    def run(self, ranks: Ranks) -> None:
        from uniformerv2.weights.checkpoint import is_localiser

        if is_localiser(self.checkpoint):
            evaluate_spans(self)
        else:
            self._classify(ranks)

    def _classify(self, ranks: Ranks) -> None:
        from uniformerv2.data.tables import TABLE_SUFFIXES, check_suffix
        from uniformerv2.measuring.evaluation import evaluate
        from uniformerv2.measuring.models import on_rank_device
        from uniformerv2.measuring.results import (
            PREDICTION_FORMATS,
            default_output,
            write_confusion,
            write_evaluation,
            write_predictions,
        )
        from uniformerv2.measuring.shared_work import journal_of

        refuse_options(self, *SPAN_OPTIONS, why="is for the checkpoints of localisers, and this is none")
        output = result_file(self.output, default_output(self.checkpoint, self.data, views=self.views, head=self.head))
        for file, formats in ((self.predictions, PREDICTION_FORMATS), (self.confusion, TABLE_SUFFIXES)):
            if file:
                check_suffix(file, formats)
        with journal_of(output, self.predictions, self.confusion) as journal:
            model = on_rank_device(self.checkpoint, device=self.device, head=self.head, **self.loading_options())
            if ranks.first:
                note_checkpoint(self.checkpoint)
                note(model.label_note)
            files = ("output", "predictions", "confusion")
            options = values(self, "checkpoint", "labels", "weights", "head", "limit", "device", *files, *SPAN_OPTIONS)
            if model.thresholds:
                self._several_labels(model, output, options | {"journal": journal}, ranks)
                return
            result = evaluate(model, **options, journal=journal, progress=True)
            if ranks.first:
                if self.predictions:
                    write_predictions(self.predictions, result)
                if self.confusion:
                    write_confusion(self.confusion, result)
                write_evaluation(output, result)
                _print_evaluation(result)
                print_line(
                    "written to "
                    + " and ".join(str(path) for path in (output, self.predictions, self.confusion) if path)
                )

    def _several_labels(self, model: UniFormerV2, output: Path, options: dict[str, Any], ranks: Ranks) -> None:
        from uniformerv2.measuring.multilabel import evaluate_multilabel
        from uniformerv2.measuring.results import write_evaluation

        if self.predictions or self.confusion:
            raise RecipeError(
                "--predictions and --confusion are for models that name one label of a video; of several labels, "
                "`uniformerv2 predict --output` writes what is named"
            )
        result = evaluate_multilabel(model, **options, progress=True)
        if ranks.first:
            write_evaluation(output, result)
            _print_several_labels(result)
            print_line(f"written to {output}")


@dataclass(frozen=True, kw_only=True)
class Features(Measuring):
    """Embed videos, or windows that slide over them, for search, clustering or a classifier of one's own.

    Several processes share the work: torchrun --nproc-per-node 8 -m uniformerv2 features ...
    """

    data: ManyVideos
    output: Output
    """The file to write: .npz or .parquet; docs/evaluation.md says what is in it."""
    window_seconds: WindowSeconds = None
    stride_seconds: StrideSeconds = None
    frame_embeddings: FlagCreatePairsOff[bool] = False
    """Also keep an embedding of each frame of a window."""
    split: Split = "all"

    @in_every_process
    def run(self, ranks: Ranks) -> None:
        from uniformerv2.data.tables import check_suffix
        from uniformerv2.measuring.features import FORMATS, extract_features
        from uniformerv2.measuring.models import on_rank_device
        from uniformerv2.measuring.shared_work import journal_of

        check_suffix(self.output, FORMATS)
        with journal_of(self.output) as journal:
            options = values(self, "checkpoint", "labels", "weights", "output", "limit", "device")
            if ranks.first:
                note_checkpoint(self.checkpoint)
            loading = self.loading_options()
            loading["labels"] = loading["labels"] or ()  # of a head that is not used
            model = on_rank_device(self.checkpoint, device=self.device, **loading)
            result = extract_features(model, **options, journal=journal, progress=True)
            if ranks.first:
                result.save(self.output)
                windows, width = result.embeddings.shape
                print(f"{windows} windows of {len(result.paths) - len(result.skipped)} videos, {width} numbers each")
                _print_left_out(result)
                print_line(f"written to {self.output}")


@dataclass(frozen=True)
class Benchmark:
    """Measure how fast a model runs on this machine, in every backend and precision that is installed.

    Parameters, multiply-adds, latency, throughput, peak memory, and the share of what matrix products could do here.
    Every contender has a process of its own; they take turns.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")] = "B/16"
    """A checkpoint, or a named size with random weights: Ti/16, S/16, B/16, L/14 or L/14@336."""
    layout: Literal["scene", "temporal"] = "scene"
    """Layout of a named size: as for Kinetics, or as for Something-Something."""
    num_frames: NumFrames = 8
    reference: Annotated[Path | None, arg(metavar="CHECKOUT")] = None
    """A checkout of the official code (OpenGVLab/UniFormerV2), to compare with; its model file is run."""
    peers: FlagCreatePairsOff[bool] = False
    """Also VideoMAE, TimeSformer, ViViT and V-JEPA 2 with random weights, where transformers is installed."""
    batch_sizes: tuple[int, ...] = (1, 4)
    """Clips at a time; the first is 1."""
    rounds: int = 5
    """How often each contender is timed; in each round, its second run counts."""
    output: OptionalOutput = None
    """A folder for benchmark.json, benchmark.md and benchmark.svg."""
    device: Device = "auto"

    def run(self) -> int:
        from uniformerv2.benchmark.run import benchmark

        report = benchmark(**values(self, "output"), progress=True)
        print(report.to_markdown(), end="")
        if self.output:
            report.save(self.output)
            print_line(f"written to {self.output}")
        return 0


def _print_evaluation(result: Evaluation) -> None:
    views = f"{result.views.clips} clips x {result.views.crops} crops"
    numbers = ("videos", "right", "precision", "recall", "F1")
    averages = (("macro average", result.macro), ("weighted average", result.weighted))
    print_table(
        f"{len(result.videos)} videos, {views}",
        ("class", *numbers),
        [(row.label, row.videos, row.correct, *_shares(row)) for row in result.classes],
        totals=[(title, len(result.videos), result.correct, *_shares(means)) for title, means in averages],
        numbers=numbers,
    )
    print(f"top-1 {result.top1:.1%}   top-5 {result.top5:.1%}   skipped {len(result.skipped)}")
    print(
        f"mean class accuracy {result.mean_class_accuracy:.1%}   macro F1 {result.macro.f1:.1%}   "
        f"loss {result.loss:.3f}   calibration error {result.calibration_error:.1%}"
    )
    for pair in result.confusions:
        print_line(f"confused: {pair.label} taken for {pair.taken_for}, {pair.videos} times")
    if known := result.published:
        top5 = "" if known.top5 is None else f", top-5 {known.top5:.1f}%"
        print_line(f"published: {known.name} on {known.dataset}, {known.views} views: top-1 {known.top1:.1f}%{top5}")
        if known.differences:
            print_line(f"not comparable: {'; '.join(known.differences)}")
    _print_left_out(result)
    for theirs, ours in result.renamed:
        note(f"the label {theirs!r} is taken for the model's {ours!r}")
    if result.warning:
        print(f"warning: {printable(result.warning)}", file=sys.stderr)


def _print_several_labels(result: MultilabelEvaluation) -> None:
    numbers = ("AP", "videos", "right", "threshold", "precision", "recall", "F1")
    print_table(
        f"{len(result.videos)} videos, {result.views.clips} clips x {result.views.crops} crops",
        ("class", *numbers),
        [
            (row.label, _share(row.average_precision), row.videos, row.correct, f"{row.threshold:.3f}", *_shares(row))
            for row in result.classes
        ],
        numbers=numbers,
    )
    print(
        f"mAP {result.mean_average_precision:.1%}   micro AP {result.micro_average_precision:.1%}   "
        f"macro F1 {result.macro_f1:.1%}   micro F1 {result.micro_f1:.1%}   loss {result.loss:.3f}   "
        f"skipped {len(result.skipped)}"
    )
    if unseen := [row.label for row in result.classes if not row.videos]:
        print_line(f"no video shows {', '.join(unseen)}: left out of mAP and macro F1")
    _print_left_out(result)
    for theirs, ours in result.renamed:
        note(f"the label {theirs!r} is taken for the model's {ours!r}")


def _shares(row: ClassResult | Averages) -> list[str]:
    """Precision, recall and F1 as cells."""
    return [_share(share) for share in (row.precision, row.recall, row.f1)]


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _print_left_out(result: Evaluation | MultilabelEvaluation | VideoFeatures) -> None:
    for damaged in result.damaged:
        print_line(f"damaged, but read: {damaged.path}: {damaged.reason}")
    for skipped in result.skipped:
        print_line(f"skipped: {skipped.reason}")
