"""`uniformerv2 train`, `rehearse`, `recipes`, `runs` and `demo`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg

from uniformerv2.cli.implied import AUTO, Implied, implied_by
from uniformerv2.cli.options import BatchSize as ClipsAtOnce
from uniformerv2.cli.options import (
    Checkpoint,
    Classes,
    Data,
    Device,
    FeatureCache,
    Group,
    Holdout,
    HoldoutList,
    Limit,
    Loading,
    OptionalOutput,
    Output,
    Overwrite,
    Precision,
    Resume,
    Root,
    Split,
    Task,
    Workers,
    values,
)
from uniformerv2.cli.output import FAILED, in_every_process, note, note_checkpoint, print_line
from uniformerv2.errors import RecipeError
from uniformerv2.machine import WORKERS
from uniformerv2.train.recipe import (
    USUAL_TASK,
    AugmentationOptions,
    ClipRecipe,
    ModelRecipe,
    Optimization,
    Recipe,
    differences,
)
from uniformerv2.train.recipes.own import suited_recipe
from uniformerv2.video.views import Views

if TYPE_CHECKING:
    from uniformerv2.distributed import Ranks
    from uniformerv2.train.run_folder import RunFolder

Parallel = Annotated[
    Literal["ddp", "fsdp"],
    arg(
        help="How several processes (torchrun) share the training; ddp: each has the whole model; fsdp: weights, "
        "gradients and the state of the optimizer are sharded."
    ),
]

MEASURED = 1000  # training videos of the largest set on which --motion-first was measured (docs/evidence.md)


@dataclass(frozen=True)
class Setup:
    """What a training and its rehearsals have in common: data, recipe and split."""

    data: Data
    model: ModelRecipe
    task: Task = USUAL_TASK
    clip: ClipRecipe = field(default_factory=ClipRecipe)
    optimization: Optimization = field(default_factory=Optimization)
    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)
    evaluation: Views = Views()
    recipe: str | None = None
    """Name of the recipe that gives the defaults of model, clip, optimization, augmentation and evaluation.
    A published one such as b16-k400-8x224, or own-small-clip and its like (`uniformerv2 recipes`). auto, where no start
    is given either: the own- one for the number of videos."""
    root: Root = None
    classes: Classes = None
    holdout: Holdout = None
    holdout_list: HoldoutList = None
    group: Group = None
    workers: Workers = WORKERS
    limit: Limit = ()
    device: Device = "auto"
    verbose: FlagCreatePairsOff[bool] = False
    """Print the whole recipe, which recipe.json of the run has too."""

    def resolved(self) -> Recipe:
        """The recipe that is run; prints the notes of the named recipe, and what was scaled."""
        from uniformerv2.progress import say
        from uniformerv2.train.recipes import find_recipe

        recipe = Recipe(self.model, self.clip, self.optimization, self.augmentation.build(), self.evaluation)
        resolved = recipe.resolved()
        scaled = differences(asdict(recipe.optimization), asdict(resolved.optimization))
        lines = find_recipe(self.recipe).lines() if self.recipe not in (None, AUTO) else []
        lines += [f"scaled with the batch size: {', '.join(scaled)}"] if scaled else []
        lines += [f"{part}: {values}" for part, values in resolved.lines() if self.verbose]
        if lines:
            say("\n".join(lines))
        return resolved

    def options(self) -> dict[str, Any]:
        """Those that are not in the recipe, by their names in `train_model`."""
        recipe = ("model", "clip", "optimization", "augmentation", "evaluation", "recipe")
        return values(self, *recipe, "limit", "verbose")


@dataclass(frozen=True)
class Train(Setup):
    """Train a model on a folder of videos: a classifier, unless --task names another task.

    A part of the files is held out and measured after each epoch. The run folder receives the recipe, the split,
    metrics.jsonl and the checkpoints last.safetensors and best.safetensors.
    """

    output: OptionalOutput = field(default=None, kw_only=True)
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
    parallel: Parallel = "ddp"

    @in_every_process
    def run(self, ranks: Ranks) -> None:
        from uniformerv2.distributed import restarted
        from uniformerv2.measuring.results import Evaluation
        from uniformerv2.tasks.run import train_model

        run, recipe = run_folder(self, ranks), self.resolved()
        # a process group that torchrun has started again goes on, where it has begun
        again = restarted() and run.recipe.is_file()
        options = self.options() | {"output": run.path, "resume": self.resume or again}
        options["overwrite"] = self.overwrite and not again
        if self.resume:
            begun = run.read_recipe().augmentation
            if self.augmentation == AugmentationOptions.of(begun):  # which has more fields
                recipe = recipe.vary(**asdict(begun))
        result = train_model(recipe=recipe, **options, progress=True)
        found = result.evaluation
        if ranks.first:
            print_line(f"{result.last}: {found.summary if found else 'nothing was held out'}")
            if isinstance(found, Evaluation) and _is_order_worth_a_question(recipe, run, len(found.videos)):
                question = shlex.join(["uniformerv2", "rehearse", "order", str(run.path), str(run.held_out)])
                note(f"does the order of frames count here? {question} tells, and what to try next")


def run_folder(command: Any, ranks: Ranks) -> RunFolder:
    """Of a training: the one that is given, or a new one."""
    from uniformerv2.train.run_folder import RunFolder, new_run_folder

    if command.output is None and (command.resume or command.overwrite or ranks.world > 1):
        raise RecipeError("--resume, --overwrite and several processes need the folder of the run: give --output")
    return RunFolder(command.output or new_run_folder(command.data))


@dataclass(frozen=True)
class DryRun(Setup):
    """Try everything for a few steps: training, evaluation, saving. Reports memory and time; keeps nothing."""

    parallel: Parallel = "ddp"

    @in_every_process
    def run(self, ranks: Ranks) -> None:
        from uniformerv2.tasks.rehearsal import dry_run

        result = dry_run(recipe=self.resolved(), **self.options(), progress=True)
        if ranks.first:
            print(*result.lines(), sep="\n")


@dataclass(frozen=True)
class OverfitBatch(Setup):
    """Train on a single batch, which must work; where it does not, reports what is wrong and ends with status 2."""

    steps: int = 200
    """How many at most."""

    @in_every_process
    def run(self, ranks: Ranks) -> int:
        from uniformerv2.tasks.rehearsal import overfit_batch

        _only_one_process(ranks)
        result = overfit_batch(recipe=self.resolved(), **self.options(), progress=True)
        print(*result.lines(), sep="\n")
        return 0 if result.learned else FAILED


@dataclass(frozen=True)
class BatchSize(Setup):
    """Find out how many clips fit into memory at once, by training steps on random clips."""

    @in_every_process
    def run(self, ranks: Ranks) -> None:
        from uniformerv2.tasks.rehearsal import find_batch_size

        _only_one_process(ranks)
        found = find_batch_size(
            self.data, self.resolved(), root=self.root, classes=self.classes, device=self.device, progress=True
        )
        print(*found.lines(), sep="\n")


@dataclass(frozen=True, kw_only=True)
class Order(Loading):
    """Find out whether a trained model reads the order of frames: its accuracy in order, backwards and shuffled.

    A short training in the temporal layout makes such a model. What is printed says which layout it speaks for.
    """

    checkpoint: Checkpoint
    data: Data
    root: Root = None
    classes: Classes = None
    split: Split = "held-out"
    batch_size: ClipsAtOnce = 8
    workers: Workers = WORKERS
    limit: Limit = ()
    precision: Precision = "fp32"
    device: Device = "auto"

    @in_every_process
    def run(self, ranks: Ranks) -> None:
        from uniformerv2.measuring.frame_order import rehearse_order
        from uniformerv2.weights.loading import resolve_model

        _only_one_process(ranks)
        note_checkpoint(self.checkpoint)
        model = resolve_model(self.checkpoint, device=self.device, **self.loading_options())
        options = values(self, "checkpoint", "labels", "weights", "limit", "device")
        for line in rehearse_order(model, **options, progress=True).lines():
            print_line(line)


def _is_order_worth_a_question(recipe: Recipe, run: RunFolder, held_out: int) -> bool:
    """Whether --motion-first may help that was measured on small sets, and the held-out videos can tell."""
    start = recipe.model
    taught = start.motion_first or start.checkpoint is not None or start.layout == "scene"
    return not taught and held_out >= 10 and run.train.read_bytes().count(b"\n") <= MEASURED


def _only_one_process(ranks: Ranks) -> None:
    if ranks.world > 1:
        raise RecipeError("overfit-batch, batch-size and order are for one process: run them without torchrun")


@dataclass(frozen=True)
class Rehearse:
    """Before a long training: try everything, overfit one batch, find the batch size, or whether order matters.

    Writes to no folder.
    """

    command: OmitArgPrefixes[OmitSubcommandPrefixes[DryRun | OverfitBatch | BatchSize | Order]]

    def run(self) -> int:
        return self.command.run()


REHEARSALS: dict[str, type[Setup]] = {"dry-run": DryRun, "overfit-batch": OverfitBatch, "batch-size": BatchSize}


def with_defaults(arguments: Sequence[str], *, by_videos: str | None = None) -> Train | Rehearse | None:
    """`train` or a rehearsal with the values that its arguments imply; None for other arguments. See `implied_by`."""
    command, *rest = arguments or [""]
    if command == "train":
        return _with_implied(Train, implied_by(rest, by_videos=by_videos))
    if command != "rehearse" or not rest or rest[0] not in REHEARSALS:
        return None
    return Rehearse(_with_implied(REHEARSALS[rest[0]], implied_by(rest[1:], by_videos=by_videos)))


def _with_implied(command: type[Setup], implied: Implied) -> Any:
    return command(
        data=implied.resumed / "train.csv" if implied.resumed else tyro.MISSING,
        task=implied.task,
        recipe=implied.name,
        **values(implied.recipe, "augmentation"),
        augmentation=AugmentationOptions.of(implied.recipe.augmentation),
    )


def recipe_by_videos(command: Any) -> str | None:
    """The recipe that a parsed training needs, if it shall be chosen by the number of its videos. Says so."""
    setup = command.command if isinstance(command, Rehearse) else command
    if not isinstance(setup, Setup) or setup.recipe != AUTO:
        return None
    from uniformerv2.data.sources import read_annotations
    from uniformerv2.tasks.table import find_task

    several_labels = find_task(setup.task).several_labels
    options: Any = {"root": setup.root, "classes": setup.classes, "several_labels": several_labels}
    videos = len(read_annotations(setup.data, **options))
    name = suited_recipe(videos, arm=setup.model.arm, checkpoint=setup.model.checkpoint)
    note(f"recipe {name}, for {videos} videos; `uniformerv2 recipes` lists others")
    return name


@dataclass(frozen=True)
class Recipes:
    """List the named recipes, or show what one of them changes."""

    show: Annotated[str | None, arg(metavar="NAME")] = None
    """Print all that this recipe changes relative to the one that it is derived from."""

    def run(self) -> int:
        from uniformerv2.train.recipes import RECIPES, find_recipe

        if self.show is None:
            print(*(named.lines()[0] for named in RECIPES.values()), sep="\n")
        else:
            print(*find_recipe(self.show).describe(), sep="\n")
        return 0


@dataclass(frozen=True)
class Runs:
    """Compare training runs, finished or not: curves, figures, and what differs between their recipes."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN...")]
    """Folders of runs, as `train --output` names them."""
    html: Path | None = None
    """HTML file for a report that needs no other file and no network, with the accuracy of every class."""

    def run(self) -> int:
        from rich.console import Console

        from uniformerv2.runs.folder import read_runs
        from uniformerv2.runs.report import write_report
        from uniformerv2.runs.terminal import print_runs

        runs = read_runs(self.runs)
        if self.html:  # first: whoever reads the terminal's part may close the pipe
            write_report(self.html, runs)
        print_runs(runs, Console())
        if self.html:
            print_line(f"written to {self.html}")
        return 0


@dataclass(frozen=True)
class Demo:
    """Draw actions, arm a small image transformer, train it on them, and write a report. Takes a few minutes.

    The actions come in pairs that are each other's time reversal. The same transformer without its temporal parts is
    trained beside it, for comparison.
    """

    output: Output = Path("demo")
    """Folder for the videos, both runs and report.html. One that holds something needs --overwrite."""
    seed: int = 0
    """Decides the videos and both trainings."""
    overwrite: Overwrite = False
    workers: Workers = WORKERS

    def run(self) -> int:
        from uniformerv2.demo.run import print_result, run_demo

        print_result(run_demo(**values(self), progress=True))
        return 0
