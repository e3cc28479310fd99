"""`uniformerv2 evaluate`, `features` and `predict`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from uniformerv2.cli.output import FAILED, complain, in_every_process, note
from uniformerv2.errors import RecipeError, UniFormerV2Error

if TYPE_CHECKING:
    from uniformerv2.distributed import Ranks
    from uniformerv2.measuring.evaluation import Evaluation
    from uniformerv2.model.uniformerv2 import UniFormerV2
    from uniformerv2.predict import Predictor


@dataclass(frozen=True)
class Evaluate:
    """Measure a checkpoint: accuracy, confusions and calibration over several views of each video.

    Several processes share the work, with equal results: torchrun --nproc-per-node 8 -m uniformerv2 evaluate ...
    """

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A checkpoint, such as RUN/last.safetensors."""
    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """A folder with one folder per class, or a CSV manifest, such as RUN/held_out.csv."""
    clips: int = 4
    """Clips spread over each video."""
    crops: Literal[1, 3] = 3
    """1: the centre of each clip; 3: three crops along its longer side."""
    head: Literal["k400", "k600", "k700"] | None = None
    """Only these classes of a Kinetics-710 head."""
    average: Literal["probabilities", "logits"] = "probabilities"
    """What is averaged over the views."""
    output: Path | None = None
    """JSON file for the result; None: CHECKPOINT[.HEAD].DATA.CLIPSxCROPS.json beside the checkpoint."""
    predictions: Path | None = None
    """CSV or Parquet file for a row per video: its label, the five best classes with their scores, or the error."""
    resume: FlagCreatePairsOff[bool] = False
    """Go on from where the same command was stopped; what it had found lies beside the output, in OUTPUT.journal."""
    root: Path | None = None
    """What the paths in a manifest are relative to; None: its own folder."""
    split: Literal["held-out", "train", "val", "test", "all"] = "held-out"
    """Which rows of a manifest that has a split column; held-out: all but train."""
    batch_size: int = 8
    """Clips that the model sees at once."""
    workers: int = 2
    """Processes that read videos; 0 reads between the steps."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, ..."""

    def run(self) -> int:
        return in_every_process(self._run)

    def _run(self, ranks: Ranks) -> None:
        from rich.console import Console

        from uniformerv2.atomic import write_text
        from uniformerv2.data.sources import read_annotations
        from uniformerv2.distributed import rank_device
        from uniformerv2.measuring.evaluation import evaluate, of_split, write_predictions
        from uniformerv2.measuring.ledger import check_targets, journal_beside, remove_journals

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
            num_clips=self.clips,
            num_crops=self.crops,
            average=self.average,
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

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A checkpoint, such as RUN/last.safetensors, or the name of a published one."""
    data: Annotated[Positional[tuple[Path, ...]], arg(metavar="DATA...")]
    """Video files, folders of videos, manifests (CSV or Parquet), or tar shards."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """The file to write: .npz or .parquet; docs/evaluation.md says what is in it."""
    window: float | None = None
    """Seconds of a window; None: each video is one."""
    stride: float | None = None
    """Seconds from the start of a window to that of the next; None: as long as a window."""
    frames: FlagCreatePairsOff[bool] = False
    """Also keep an embedding of each frame of a window."""
    resume: FlagCreatePairsOff[bool] = False
    """Go on from where the same command was stopped; what it had found lies beside the output, in OUTPUT.journal."""
    root: Path | None = None
    """What the paths in manifests are relative to; None: their own folders."""
    split: Literal["held-out", "train", "val", "test", "all"] = "all"
    """Which rows of manifests that have a split column; held-out: all but train."""
    batch_size: int = 8
    """Windows that the model sees at once."""
    workers: int = 2
    """Processes that read videos; 0 reads between the steps."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, ..."""

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
            window=self.window,
            stride=self.stride,
            frame_embeddings=self.frames,
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
            for path, what in result.damaged:
                print(f"damaged, but read: {path}: {what}")
            for one in result.skipped:
                print(f"skipped: {one.reason}")
            print(f"written to {self.output}")
        ranks.wait()  # no journal goes before everything is written
        remove_journals(journal)


@dataclass(frozen=True)
class Predict:
    """Say what videos show."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A checkpoint, such as RUN/last.safetensors."""
    videos: Annotated[Positional[tuple[Path, ...]], arg(metavar="VIDEO...")]
    """Video files, or folders of frame images."""
    top_k: int = 5
    """How many classes to name."""
    clips: int = 1
    """Clips spread over each video, averaged."""
    crops: Literal[1, 3] = 1
    """1: the centre of each clip; 3: three crops along its longer side, averaged."""
    batch_size: int | None = None
    """Clips that the model sees at once, of several videos together; None: 1 on a CPU, 8 on a GPU."""
    timeline: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Where to write what windows show that slide over each video: NAME.svg, a picture, and NAME.csv, a table."""
    window: float | None = None
    """Seconds of a window of the timeline; None: 2."""
    stride: float | None = None
    """Seconds from the start of a window to that of the next; None: as long as a window."""
    head: Literal["k400", "k600", "k700"] | None = None
    """Only these classes of a Kinetics-710 head."""
    as_json: Annotated[FlagCreatePairsOff[bool], arg(name="json")] = False
    """Print one JSON object a line and nothing else."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "fp32"
    """auto: the fastest of fp32 and bf16 on this processor. int8 is made with OpenVINO and needs --calibration."""
    backend: Literal["torch", "compile", "openvino", "onnxruntime"] = "torch"
    """What runs the model (docs/inference.md)."""
    reduction: Annotated[str | None, arg(metavar="METHOD:AMOUNT")] = None
    """Compute fewer tokens, nearly the same scores: merge:AMOUNT or unchanged:AMOUNT (docs/inference.md)."""
    calibration: Annotated[tuple[Path, ...], arg(metavar="VIDEO...")] = ()
    """Some dozen videos like those to come: for int8, and to see in any precision what it changes."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, ..."""

    def run(self) -> int:
        if not self.videos or self.top_k < 1:
            raise RecipeError(
                f"need a video and top_k of at least 1, got {len(self.videos)} videos, top_k {self.top_k}"
            )
        self._check_timeline()
        from uniformerv2.inference.reduction import Reduction
        from uniformerv2.inference.sharing import sharing_report
        from uniformerv2.predict import Predictor

        predictor = Predictor(
            self.checkpoint,
            device=self.device,
            num_clips=self.clips,
            num_crops=self.crops,
            head=self.head,
            precision=self.precision,
            backend=self.backend,
            reduction=Reduction.parse(self.reduction) if self.reduction else None,
            calibration=self.calibration,
        )
        for line in (predictor.model.label_note, predictor.optimized.note, predictor.optimized.comparison):
            note(str(line or ""))
        if self.timeline:
            note(sharing_report(predictor.model.config))
        failures = list(self._look_at_windows(predictor) if self.timeline else self._look(predictor))
        for failure in failures:
            complain(failure)
        if failures and len(self.videos) > 1:
            complain(f"{len(failures)} of {len(self.videos)} videos could not be read")
        return FAILED if failures else 0

    def _look(self, predictor: Predictor) -> Iterator[UniFormerV2Error]:
        """Print what each video shows; yields what went wrong."""
        results = predictor.predict_all(self.videos, batch_size=self.batch_size, top_k=self.top_k)
        for result in results:
            if isinstance(result, UniFormerV2Error):
                yield result
            elif self.as_json:
                print(json.dumps(asdict(result)), flush=True)
            else:
                print(result.video)
                for label, score in zip(result.labels, result.scores, strict=True):
                    print(f"  {score:6.1%}  {label}", flush=True)

    def _look_at_windows(self, predictor: Predictor) -> Iterator[UniFormerV2Error]:
        """Write the timeline of each video; yields what went wrong."""
        for video in self.videos:
            try:
                self._write_timeline(predictor, video)
            except UniFormerV2Error as error:
                yield error

    def _write_timeline(self, predictor: Predictor, video: Path) -> None:
        from rich.console import Console

        from uniformerv2.pages.timeline_picture import write_picture
        from uniformerv2.predict import TIMELINE_WINDOW

        window = TIMELINE_WINDOW if self.window is None else self.window
        timeline = predictor.timeline(video, window=window, stride=self.stride, console=Console(stderr=True))
        table, picture = self._targets(video)
        timeline.write_table(table, top_k=self.top_k)
        write_picture(picture, timeline)
        if self.as_json:
            for moment in timeline.moments(self.top_k):
                print(json.dumps({"video": str(video), **moment._asdict()}))
        else:
            print(f"{video}: {len(timeline.start)} windows, written to {table} and {picture}", flush=True)

    def _targets(self, video: Path) -> tuple[Path, Path]:
        assert self.timeline is not None
        return self.timeline / f"{video.stem}.csv", self.timeline / f"{video.stem}.svg"

    def _check_timeline(self) -> None:
        if self.timeline is None:
            if self.window is not None or self.stride is not None:
                raise RecipeError("--window and --stride are for a timeline; give --timeline FOLDER too")
            return
        if self.clips != 1 or self.crops != 1:
            raise RecipeError("a window of a timeline is one clip; leave --clips and --crops out")
        if self.batch_size is not None:
            raise RecipeError("the windows of a timeline come one by one; leave --batch-size out")
        stems = Counter(video.stem for video in self.videos)
        if stems and (most := stems.most_common(1)[0])[1] > 1:
            raise RecipeError(f"{most[1]} videos would be written to {most[0]}.csv; give one at a time")
        self.timeline.mkdir(parents=True, exist_ok=True)


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
    for path, reason in result.damaged:
        yield f"damaged, but read: {path}: {reason}"
    for one in result.skipped:
        yield f"skipped: {one.reason}"
