"""`uniformerv2 train --task localise` and its rehearsal, and what `evaluate` and `predict --spans` do."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, subcommand

from uniformerv2.cli.implied import given_by, task_of
from uniformerv2.cli.options import (
    Classes,
    Data,
    Device,
    FeatureCache,
    Group,
    Holdout,
    HoldoutList,
    Limit,
    OptionalOutput,
    Overwrite,
    Resume,
    Root,
    Task,
    Workers,
    option_names,
    refuse_options,
    result_file,
    values,
)
from uniformerv2.cli.output import FAILED, in_every_process, note_checkpoint, print_error, print_line, print_table
from uniformerv2.cli.training import BatchSize, Order, OverfitBatch, Train
from uniformerv2.data.annotations import Annotation
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.machine import WORKERS
from uniformerv2.tasks.localisation.recipe import BegunLocaliser, LocaliserRecipe
from uniformerv2.train.choices import SPAN_TASK

if TYPE_CHECKING:
    from uniformerv2.distributed import Ranks


@dataclass(frozen=True, kw_only=True)
class LocaliserSetup:
    """What the training of a localiser and its rehearsal have in common."""

    data: Data
    checkpoint: str | None = None
    """The video model that embeds the windows of films, best trained on clips of the actions: as of `evaluate`."""
    task: Task = SPAN_TASK
    recipe: LocaliserRecipe = field(default_factory=LocaliserRecipe)
    root: Root = None
    classes: Classes = None
    holdout: Holdout = None
    holdout_list: HoldoutList = None
    group: Group = None
    workers: Workers = WORKERS
    limit: Limit = ()
    device: Device = "auto"

    def options(self) -> dict[str, Any]:
        """By their names in `train_localiser`."""
        if self.checkpoint is None:
            raise RecipeError(
                "a localiser needs a trained video model, whose embeddings it reads: give --checkpoint CHECKPOINT"
            )
        return values(self, "checkpoint", "task", "limit") | {"model": self.checkpoint}


@dataclass(frozen=True, kw_only=True)
class TrainLocaliser(LocaliserSetup):
    """Train a model that finds labelled spans in long videos, on the embeddings of a video model.

    The rows of a manifest that name one file with start and end are its spans. A part of the files is held out and
    measured by mean average precision (docs/localisation.md).
    """

    output: OptionalOutput = None
    """Folder of the run; None: a new one in the current folder, VIDEOS-run for the data VIDEOS. One that holds
    something is touched only with --resume, which needs no other option, or --overwrite."""
    resume: Resume = False
    overwrite: Overwrite = False
    save_every_seconds: float = 600.0
    """What a killed run loses at most, whatever the length of an epoch."""
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Programs that show the curves too; each has to be installed. wandb takes project and name of the run from the
    variables WANDB_PROJECT and WANDB_NAME."""
    feature_cache: FeatureCache = None

    @in_every_process
    def run(self, ranks: Ranks) -> None:
        from uniformerv2.cli.training import run_folder
        from uniformerv2.data.manifest import manifest_root
        from uniformerv2.tasks.localisation.training import read_split, train_localiser

        run, options = run_folder(self, ranks), self.options()
        if self.resume and self.data == run.train:
            options |= {"data": read_split(run, root=self.root), "root": self.root or manifest_root(run.train)}
        result = train_localiser(**options | {"output": run.path}, progress=True)
        found = result.evaluation
        print_line(f"{result.last}: {found.summary if found else 'nothing was held out'}")


@dataclass(frozen=True, kw_only=True)
class DryRunLocaliser(LocaliserSetup):
    """Try everything on a few films: embedding, training, evaluation, saving. Reports time and memory."""

    @in_every_process
    def run(self, ranks: Ranks) -> None:
        from uniformerv2.tasks.localisation.rehearsal import dry_run_localiser

        print(*dry_run_localiser(**self.options(), progress=True).lines(), sep="\n")


@dataclass(frozen=True)
class RehearseLocaliser:
    """Before a long training: try everything, overfit one batch, find the batch size, or whether order matters.

    Writes to no folder.
    """

    command: OmitArgPrefixes[
        OmitSubcommandPrefixes[Annotated[DryRunLocaliser, subcommand("dry-run")] | OverfitBatch | BatchSize | Order]
    ]

    def run(self) -> int:
        return self.command.run()


def localiser_defaults(arguments: Sequence[str]) -> TrainLocaliser | RehearseLocaliser | None:
    """`train` or its rehearsal for this task, with the values that its arguments imply; None for other arguments.

    Raises:
        RecipeError: an option that only trainings for another task have, or a run that cannot go on.
    """
    command, *rest = arguments or [""]
    rehearsed = command == "rehearse" and rest[:1] == ["dry-run"]
    if command != "train" and not rehearsed:
        return None
    given, resumed = given_by(rest)
    localise = task_of(given, resumed) == SPAN_TASK
    _refuse_others(rest, localise=localise)
    if not localise:
        return None
    begun = BegunLocaliser(LocaliserRecipe(), None) if resumed is None else BegunLocaliser.read(resumed / "recipe.json")
    recipe = begun.recipe
    with suppress(ValueError):  # the command line names what is wrong with it
        if given.epochs and not given.warmup_epochs:
            recipe = recipe.lasting(int(given.epochs))
    data: Any = tyro.MISSING if resumed is None else resumed / "train.csv"
    values: Any = {"data": data, "recipe": recipe, "checkpoint": begun.checkpoint}
    return RehearseLocaliser(DryRunLocaliser(**values)) if rehearsed else TrainLocaliser(**values)


def _refuse_others(arguments: Sequence[str], *, localise: bool) -> None:
    """Name the first option that a training for this task does not have, or that it alone has."""
    ours, others = option_names(TrainLocaliser), option_names(Train)
    foreign = others - ours if localise else ours - others
    for argument in arguments:
        name = argument.partition("=")[0].removeprefix("--").replace("_", "-")
        if argument.startswith("--") and foreign & {name, name.removeprefix("no-")}:
            raise RecipeError(
                f"--{name} is {'not ' if localise else ''}an option of --task {SPAN_TASK}, whose options "
                f"`uniformerv2 train --task {SPAN_TASK} --help` lists"
            )


SPAN_OPTIONS = ("protocol", "tiou", "feature_cache")  # of `evaluate`, for localisers alone
CLIP_OPTIONS = ("views", "head", "confusion", "labels", "weights", "batch_size", "precision", "backend", "resume")


def evaluate_spans(command: Any) -> None:
    """What `evaluate` does with a localiser.

    Args:
        command: its options.
    """
    from uniformerv2.cli.scoring import print_scores
    from uniformerv2.data.tables import check_target
    from uniformerv2.measuring.results import default_output, write_evaluation
    from uniformerv2.spans.files import format_name, write_spans
    from uniformerv2.tasks.localisation.evaluation import evaluate_localiser

    refuse_options(command, *CLIP_OPTIONS, why="is not for the checkpoints of localisers, and this is one")
    usual = default_output(command.checkpoint, command.data)
    output = result_file(command.output, usual.with_suffix(f".{command.protocol or 'spans'}.json"))
    check_target(output)
    if command.predictions:
        check_target(command.predictions)
        format_name(command.predictions)
    note_checkpoint(command.checkpoint)
    options = values(command, *CLIP_OPTIONS, "checkpoint", "output", "predictions", "limit")
    kept = command.checkpoint / "features"
    options["feature_cache"] = command.feature_cache or (kept if os.access(kept, os.W_OK) else None)
    result = evaluate_localiser(command.checkpoint, **options, progress=True)
    print_table(
        "average precision",
        ("class", *(f"{threshold:g}" for threshold in result.scores.tiou), "average"),
        [
            (label, *(f"{value:.1%}" for value in values), f"{fmean(values):.1%}")
            for label, values in result.scores.ap_per_class.items()
        ],
        numbers=(*(f"{threshold:g}" for threshold in result.scores.tiou), "average"),
    )
    print_scores(result.scores)
    for video in result.skipped:
        print_line(f"skipped: {video.reason}")
    write_evaluation(output, result)
    if command.predictions:
        write_spans(result.predictions, command.predictions)
    print_line("written to " + " and ".join(str(path) for path in (output, command.predictions) if path))


def predict_spans(
    checkpoint: Path,
    rows: Sequence[Annotation],
    target: Path,
    *,
    threshold: float,
    batch_size: int | None,
    device: str,
    workers: int,
    as_json: bool,
) -> int:
    """Find the spans of films, write them to a file, and print them; returns the exit status."""
    from uniformerv2.data.tables import check_target
    from uniformerv2.localise import Localiser
    from uniformerv2.spans.files import format_name, write_spans
    from uniformerv2.spans.formats.table import WRITTEN
    from uniformerv2.spans.span import Spans

    paths = list(dict.fromkeys(row.path for row in rows))
    check_target(target)
    if WRITTEN[format_name(target)].one_video and len(paths) > 1:
        raise RecipeError(f"{target}: such a file holds the spans of one video; give .json or .csv for {len(paths)}")
    localiser = Localiser(checkpoint, batch_size=batch_size or 8, device=device)
    found: Spans = {}
    reasons = []
    for path in paths:
        try:
            spans = localiser.localise(path, threshold=threshold, workers=workers, progress=True)
        except VideoError as error:
            reasons.append(str(error))
            continue
        found[str(path)] = spans
        for span in spans if as_json else ():
            print(json.dumps({"video": str(path), **asdict(span)}))
    for reason in reasons:
        print_error(reason)
    if found:
        files = write_spans(found, target)
        if not as_json:
            count = sum(map(len, found.values()))
            print_line(f"{count} spans of {len(found)} videos, written to {', '.join(map(str, files))}")
    return FAILED if reasons else 0
