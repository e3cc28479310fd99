"""The command line: arguments in, calls out; no logic. torch is imported when a command runs, not before."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg, subcommand

from uniformerv2.cli_data import Data
from uniformerv2.errors import RecipeError, UniFormerV2Error
from uniformerv2.train.recipe import (
    START,
    AugmentationOptions,
    ClipRecipe,
    EvaluationRecipe,
    ModelRecipe,
    Optimization,
    Recipe,
    differences,
)

if TYPE_CHECKING:
    from uniformerv2.tasks.evaluation import Evaluation
    from uniformerv2.train.distributed import Ranks
    from uniformerv2.weights.hub import UniFormerV2
    from uniformerv2.weights.zoo import ZooEntry

FAILED = 2  # what the user can mend; also what wrong options end with
INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended


@dataclass(frozen=True)
class Train:
    """Train a classifier on a folder of videos.

    A part of the files is held out and measured after each epoch. The run folder receives the recipe, the split,
    metrics.jsonl and the checkpoints last.safetensors and best.safetensors.
    """

    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """A folder with one folder per class, or a CSV manifest with the columns path,label[,start,end][,split]."""
    output: Path
    """Folder of the run. One that holds something is touched only with --resume or --overwrite."""
    model: ModelRecipe
    clip: ClipRecipe = field(default_factory=ClipRecipe)
    optimization: Optimization = field(default_factory=Optimization)
    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)
    recipe: str | None = None
    """Name of the recipe that gives the defaults of model, clip, optimization, augmentation and evaluation.
    A published one such as b16-k400-8x224, or own-small-clip and its like (docs/recipes.md)."""
    root: Path | None = None
    """What the paths in a manifest are relative to; None: its own folder."""
    holdout: float = 0.2
    """Share of the files of each class that is held out, drawn with --seed."""
    holdout_list: Path | None = None
    """File that says what is held out instead: a path or pattern a line, such as anna_*."""
    resume: FlagCreatePairsOff[bool] = False
    """Continue a run that was stopped; repeat its other options."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace the run in the output folder."""
    workers: int = 2
    """Processes that read videos; 0 reads between the steps."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, ..."""

    def run(self) -> int:
        from rich.console import Console

        from uniformerv2.tasks.classification import train_classifier
        from uniformerv2.train.recipes import find_recipe

        recipe = Recipe(self.model, self.clip, self.optimization, self.augmentation.build(), self.evaluation)
        resolved = recipe.resolved()
        scaled = differences(asdict(recipe), asdict(resolved))
        if self.recipe:
            print(*find_recipe(self.recipe).lines(), sep="\n")
        if scaled:
            print(f"scaled with the batch size: {', '.join(scaled)}")
        result = train_classifier(
            self.data,
            self.output,
            resolved,
            root=self.root,
            holdout=self.holdout,
            holdout_list=self.holdout_list,
            resume=self.resume,
            overwrite=self.overwrite,
            workers=self.workers,
            device=self.device,
            console=Console(),
        )
        evaluation = result.evaluation
        print(f"{result.last}: {evaluation.correct} of {len(evaluation.videos)} held-out videos right")
        return 0


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
        return _in_every_process(self._run)

    def _run(self, ranks: Ranks) -> None:
        from rich.console import Console

        from uniformerv2.atomic import write_text
        from uniformerv2.data.annotations import read_annotations
        from uniformerv2.tasks.evaluation import evaluate, of_split, write_predictions
        from uniformerv2.tasks.ledger import check_targets, journal_beside, remove_journals
        from uniformerv2.train.distributed import rank_device

        output = self.output or self._default_output()
        journal = journal_beside(output)
        check_targets(output, self.predictions)
        model = self._model()
        if ranks.first:
            _note(model.label_note)
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
        return _in_every_process(self._run)

    def _run(self, ranks: Ranks) -> None:
        from rich.console import Console

        from uniformerv2.tasks.features import check_format, extract_features, find_videos
        from uniformerv2.tasks.ledger import check_targets, journal_beside, remove_journals
        from uniformerv2.train.distributed import rank_device
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
    head: Literal["k400", "k600", "k700"] | None = None
    """Only these classes of a Kinetics-710 head."""
    as_json: Annotated[FlagCreatePairsOff[bool], arg(name="json")] = False
    """Print one JSON object a line and nothing else."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, ..."""

    def run(self) -> int:
        if not self.videos or self.top_k < 1:
            raise RecipeError(
                f"need a video and top_k of at least 1, got {len(self.videos)} videos, top_k {self.top_k}"
            )
        from uniformerv2.predict import Predictor

        predictor = Predictor(
            self.checkpoint, device=self.device, num_clips=self.clips, num_crops=self.crops, head=self.head
        )
        _note(predictor.model.label_note)
        failures = []
        for video in self.videos:
            try:
                prediction = predictor.predict(video, top_k=self.top_k)
            except UniFormerV2Error as error:
                failures.append(error)
                continue
            if self.as_json:
                print(json.dumps(asdict(prediction)), flush=True)
                continue
            print(video)
            for label, score in zip(prediction.labels, prediction.scores, strict=True):
                print(f"  {score:6.1%}  {label}", flush=True)
        for failure in failures:
            _complain(failure)
        if failures and len(self.videos) > 1:
            _complain(f"{len(failures)} of {len(self.videos)} videos could not be read")
        return FAILED if failures else 0


@dataclass(frozen=True)
class Demo:
    """Draw actions, arm a small image transformer, train it on them, and write a report. Takes a few minutes.

    The actions come in pairs that are each other's time reversal. The same transformer without its temporal parts is
    trained beside it, for comparison.
    """

    output: Path = Path("demo")
    """Folder for the videos, both runs and report.html. One that holds something needs --overwrite."""
    seed: int = 0
    """Decides the videos and both trainings."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace a former demo."""
    workers: int = 1
    """Processes that read videos beside the one that trains."""

    def run(self) -> int:
        from uniformerv2.demo import run_demo

        run_demo(self.output, seed=self.seed, overwrite=self.overwrite, workers=self.workers)
        return 0


@dataclass(frozen=True)
class Info:
    """Show what a checkpoint of any kind is: its architecture, what was recognised and assumed, its labels."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A checkpoint, such as RUN/last.safetensors or a file of the official code or of mmaction2."""

    def run(self) -> int:
        from uniformerv2.weights import checkpoint_info

        info = checkpoint_info(self.checkpoint)
        print("report")
        for line in info.report:
            print(f"  {line}")
        for title, values in (
            ("model", asdict(info.config)),
            ("preprocessing", asdict(info.preprocessing)),
            ("weights", {"format": info.format, "origin": info.origin, "licence": info.licence}),
        ):
            print(title)
            for name, value in values.items():
                print(f"  {name:<20}{value if value != '' else 'not given'}")
        print(f"labels ({len(info.labels)}){f': {info.label_note}' if info.label_note else ''}")
        for number, label in enumerate(info.labels):
            print(f"  {number:<6}{label}")
        return 0


@dataclass(frozen=True)
class Convert:
    """Write a checkpoint in the format of another implementation; nothing is lost on the way back.

    The rows of a head whose labels are known are put into the order that the format's users expect.
    """

    source: Annotated[Positional[Path], arg(metavar="IN")]
    """A checkpoint of this package, of the official code or of mmaction2."""
    target: Annotated[Positional[Path], arg(metavar="OUT")]
    """The file to write; an existing one is replaced."""
    to: Literal["ours", "official", "mmaction2"]
    """Whose format."""
    dataset: str | None = None
    """Whose classes the head has, such as sthv2, where the checkpoint does not tell."""
    heads: int | None = None
    """Attention heads, where the checkpoint does not tell; None: one for each 64 channels."""
    global_after: tuple[int, ...] | None = None
    """Blocks that global stages follow, where the checkpoint does not tell; None: the last ones."""

    def run(self) -> int:
        from uniformerv2.weights.convert import convert

        told: dict[str, Any] = {"heads": self.heads, "global_after": self.global_after}
        options = {name: value for name, value in told.items() if value is not None}
        for line in convert(self.source, self.target, self.to, dataset=self.dataset, **options):
            print(line)
        return 0


@dataclass(frozen=True)
class Models:
    """List the published checkpoints: what they are, what was measured with them, and whether they can be had."""

    dataset: str | None = None
    """Only models of this dataset, such as K400 or ssv2."""
    as_json: Annotated[FlagCreatePairsOff[bool], arg(name="json")] = False
    """Print a JSON array with everything that is known of each model, and nothing else."""

    def run(self) -> int:
        from uniformerv2.weights.zoo import list_models

        entries = list_models(self.dataset)
        if self.as_json:
            print("[" + ",\n ".join(json.dumps(entry.to_json()) for entry in entries) + "]")
        else:
            _print_models(entries)
        return 0


Command = (
    Annotated[Train, subcommand("train")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Features, subcommand("features")]
    | Annotated[Predict, subcommand("predict")]
    | Annotated[Demo, subcommand("demo")]
    | Annotated[Info, subcommand("info")]
    | Annotated[Convert, subcommand("convert")]
    | Annotated[Models, subcommand("models")]
    | Annotated[Data, subcommand("data")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0, 2 for what the user can mend (said in one line on stderr), 130 after Ctrl-C.
    """
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        command = tyro.cli(
            _commands(sys.argv[1:] if arguments is None else arguments),
            prog="uniformerv2",
            description="Video classification: arm an image transformer, train it, measure it, run it.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
        return command.run()
    except UniFormerV2Error as error:
        _complain(error)
        return FAILED
    except OSError as error:  # a full disk, a folder without permission
        _complain(f"{error.filename or 'file'}: {error.strerror or error}")
        return FAILED
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED


def _commands(arguments: Sequence[str]) -> Any:
    """What can be said; where `train` is told a recipe, with the recipe's values as its defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("recipe", *START):
        parser.add_argument(f"--{option}", nargs="?")
    told = vars(parser.parse_known_args(arguments[1:])[0])
    chosen = {option: value for option, value in told.items() if value not in (None, "None")}
    if arguments[:1] != ["train"] or "recipe" not in chosen:
        return Command
    with_recipe = subcommand("train", default=_train_by_recipe(chosen.pop("recipe"), chosen))
    return reduce(or_, get_args(Command)[1:], Annotated[Train, with_recipe])


def _train_by_recipe(name: str, start: dict[str, str]) -> Train:
    """The defaults of `train --recipe NAME`; another start takes the place of the recipe's."""
    from uniformerv2.train.recipes import find_recipe

    recipe = find_recipe(name).recipe.vary(**start)
    required: Any = tyro.MISSING
    return Train(
        required,
        required,
        recipe.model,
        recipe.clip,
        recipe.optimization,
        AugmentationOptions.of(recipe.augmentation),
        recipe.evaluation,
        name,
    )


def _in_every_process(work: Callable[[Ranks], None]) -> int:
    """Do what the processes that torchrun started share; returns the exit status."""
    from uniformerv2.train.distributed import process_group

    with process_group() as ranks:
        try:
            work(ranks)
        except UniFormerV2Error:
            if ranks.first:  # all of them fail alike, and one says why
                raise
            return FAILED
    return 0


def _complain(reason: object) -> None:
    """One line on stderr."""
    print(f"error: {' '.join(str(reason).split())}", file=sys.stderr)


def _note(text: str) -> None:
    """What is not certain, on stderr; nothing where nothing is in doubt."""
    if text:
        print(f"note: {text}", file=sys.stderr)


def _print_models(entries: Sequence[ZooEntry]) -> None:
    from rich.console import Console
    from rich.table import Table

    from uniformerv2.weights.zoo import STATES

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("name", "dataset", "clip", "views", "top-1", "parameters", "multiply-adds", "state"):
        number = title in ("top-1", "parameters", "multiply-adds")
        table.add_column(title, justify="right" if number else "left", no_wrap=title == "name")
    for entry in entries:
        top1 = "-" if entry.top1 is None else f"{entry.top1:.1f}"
        clip = f"{entry.num_frames}x{entry.image_size}"
        counts = (f"{entry.parameters / 1e6:.1f} M", f"{entry.multiply_adds / 1e9:.1f} G")
        table.add_row(entry.name, entry.dataset, clip, entry.views or "-", top1, *counts, entry.state)
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file or a pipe has no width of its own
    console.print(table)
    print("views: frames x crops x clips of the published top-1; multiply-adds: of one view")
    for state, meaning in STATES.items():
        if any(entry.state == state for entry in entries):
            print(f"{state}: {meaning}")


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
        _note(f"the label {theirs!r} is taken for the model's {ours!r}")
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
