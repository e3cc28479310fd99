"""`uniformerv2 evaluate` and `features`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from uniformerv2.cli.options import (
    BatchSize,
    Checkpoint,
    Clips,
    Crops,
    Data,
    Device,
    Head,
    OptionalOutput,
    Output,
    Resume,
    Root,
    Split,
    StrideSeconds,
    WindowSeconds,
    Workers,
)
from uniformerv2.cli.output import in_every_process, note

if TYPE_CHECKING:
    from uniformerv2.distributed import Ranks
    from uniformerv2.measuring.evaluation import Evaluation
    from uniformerv2.model.uniformerv2 import UniFormerV2


@dataclass(frozen=True)
class Evaluate:
    """Measure a checkpoint: accuracy, confusions and calibration over several views of each video.

    Several processes share the work, with equal results: torchrun --nproc-per-node 8 -m uniformerv2 evaluate ...
    """

    checkpoint: Checkpoint
    data: Data
    clips: Clips = 1
    crops: Crops = 1
    average: Literal["probabilities", "logits"] = "probabilities"
    """What is averaged over the views."""
    head: Head = None
    output: OptionalOutput = None
    """JSON file for the result; None: CHECKPOINT[.HEAD].DATA.CLIPSxCROPS.json beside the checkpoint."""
    predictions: Path | None = None
    """CSV or Parquet file for a row per video: its label, the five best classes with their scores, or the error."""
    root: Root = None
    split: Split = "held-out"
    resume: Resume = False
    batch_size: BatchSize = 8
    workers: Workers = 2
    device: Device = "auto"

    def run(self) -> int:
        return in_every_process(self._run)

    def _run(self, ranks: Ranks) -> None:
        from rich.console import Console

        from uniformerv2.atomic import write_text
        from uniformerv2.data.sources import read_annotations
        from uniformerv2.distributed import rank_device
        from uniformerv2.measuring.evaluation import evaluate, of_split, write_predictions
        from uniformerv2.measuring.ledger import check_targets, journal_beside, remove_journals
        from uniformerv2.video.views import Views

        output = self.output or self._default_output()
        journal = journal_beside(output)
        check_targets(output, self.predictions)
        model = self._model()
        if ranks.first:
            note(model.label_note)
        annotations = of_split(read_annotations(self.data, root=self.root), self.split)
        result = evaluate(
            model.to(rank_device(self.device)),
            annotations,
            views=Views(self.clips, self.crops, self.average),
            batch_size=self.batch_size,
            workers=self.workers,
            journal=journal,
            resume=self.resume,
            console=Console(stderr=True) if ranks.first else None,
        )
        if ranks.first:
            if self.predictions:
                write_predictions(self.predictions, result, annotations)
            write_text(output, json.dumps(result.to_json(), indent=2) + "\n")
            _print_evaluation(result)
            print("written to " + " and ".join(str(path) for path in (output, self.predictions) if path))
        ranks.wait()  # no journal goes before everything is written
        remove_journals(journal)

    def _default_output(self) -> Path:
        head = f".{self.head}" if self.head else ""
        return self.checkpoint.with_name(
            f"{self.checkpoint.stem}{head}.{self.data.stem}.{self.clips}x{self.crops}.json"
        )

    def _model(self) -> UniFormerV2:
        from uniformerv2.weights import load_model
        from uniformerv2.weights.labels import map_head

        model = load_model(self.checkpoint)
        return map_head(model, self.head) if self.head else model


@dataclass(frozen=True)
class Features:
    """Embed videos, or windows that slide over them, for search, clustering or a classifier of one's own.

    Several processes share the work: torchrun --nproc-per-node 8 -m uniformerv2 features ...
    """

    checkpoint: Checkpoint
    data: Annotated[Positional[tuple[Path, ...]], arg(metavar="DATA...")]
    """Video files, folders of videos, manifests (CSV or Parquet), or tar shards."""
    output: Output
    """The file to write: .npz or .parquet; docs/evaluation.md says what is in it."""
    window_seconds: WindowSeconds = None
    stride_seconds: StrideSeconds = None
    frame_embeddings: FlagCreatePairsOff[bool] = False
    """Also keep an embedding of each frame of a window."""
    root: Root = None
    split: Split = "all"
    resume: Resume = False
    batch_size: BatchSize = 8
    workers: Workers = 2
    device: Device = "auto"

    def run(self) -> int:
        return in_every_process(self._run)

    def _run(self, ranks: Ranks) -> None:
        from rich.console import Console

        from uniformerv2.distributed import rank_device
        from uniformerv2.measuring.features import check_format, extract_features, find_videos
        from uniformerv2.measuring.ledger import check_targets, journal_beside, remove_journals
        from uniformerv2.weights import load_model

        journal = journal_beside(self.output)
        check_format(self.output)
        check_targets(self.output)
        videos = find_videos(self.data, root=self.root, split=self.split)
        result = extract_features(
            load_model(self.checkpoint).to(rank_device(self.device)),
            videos,
            window=self.window_seconds,
            stride=self.stride_seconds,
            frame_embeddings=self.frame_embeddings,
            batch_size=self.batch_size,
            workers=self.workers,
            journal=journal,
            resume=self.resume,
            console=Console(stderr=True) if ranks.first else None,
        )
        if ranks.first:
            result.save(self.output)
            windows, width = result.embeddings.shape
            print(f"{windows} windows of {len(videos) - len(result.skipped)} videos, {width} numbers each")
            for video in result.damaged:
                print(f"damaged, but read: {video.path}: {video.reason}")
            for one in result.skipped:
                print(f"skipped: {one.reason}")
            print(f"written to {self.output}")
        ranks.wait()  # no journal goes before everything is written
        remove_journals(journal)


def _print_evaluation(result: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    views = f"{result.num_clips} clips x {result.num_crops} crops"
    table = Table(title=f"{len(result.videos)} videos, {views}", title_justify="left")
    table.add_column("class")
    table.add_column("videos", justify="right")
    table.add_column("right", justify="right")
    table.add_column("top-1", justify="right")
    for one in result.classes:
        share = "-" if one.top1 is None else f"{one.top1:.1%}"
        table.add_row(one.label, str(one.videos), str(one.correct), share)
    table.add_section()
    table.add_row("all", str(len(result.videos)), str(result.correct), f"{result.top1:.1%}")
    console = Console()
    console.print(table)
    console.print(f"top-1 {result.top1:.1%}   top-5 {result.top5:.1%}   skipped {len(result.skipped)}", highlight=False)
    for line in _evaluation_lines(result):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for theirs, ours in result.renamed:
        note(f"the label {theirs!r} is taken for the model's {ours!r}")
    if result.warning:
        print(f"warning: {result.warning}", file=sys.stderr)


def _evaluation_lines(result: Evaluation) -> Iterator[str]:
    yield (
        f"mean class accuracy {result.mean_class_accuracy:.1%}   loss {result.loss:.3f}   "
        f"calibration error {result.calibration_error:.1%}"
    )
    for pair in result.confusions:
        yield f"confused: {pair.label} taken for {pair.taken_for}, {pair.videos} times"
    if result.published:
        known = result.published
        top5 = "" if known.top5 is None else f", top-5 {known.top5:.1f}%"
        yield f"published: {known.name} on {known.dataset}, {known.views} views: top-1 {known.top1:.1f}%{top5}"
        if known.differences:
            yield f"not comparable: {'; '.join(known.differences)}"
    for video in result.damaged:
        yield f"damaged, but read: {video.path}: {video.reason}"
    for one in result.skipped:
        yield f"skipped: {one.reason}"
