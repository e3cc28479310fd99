"""`uniformerv2 train` and `demo`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from uniformerv2.cli.output import FAILED, in_every_process
from uniformerv2.errors import RecipeError
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
    from rich.console import Console

    from uniformerv2.distributed import Ranks


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
    save_every: float = 600.0
    """Seconds after which a killed run has lost nothing, whatever the length of an epoch."""
    log_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Programs that show the curves too; each has to be installed."""
    feature_cache: Path | None = None
    """Folder for what --cache-features keeps, which runs can share; None: features in the folder of the run."""
    dry_run: FlagCreatePairsOff[bool] = False
    """Only try it: a few steps, an evaluation, saving; tells memory and time. The output folder is not touched."""
    overfit_batch: FlagCreatePairsOff[bool] = False
    """Only learn one batch by heart, which must work; says what is wrong where it does not."""
    find_batch_size: FlagCreatePairsOff[bool] = False
    """Only find out how many clips fit into memory at once."""

    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes (torchrun) share the training; ddp: each has the whole model; fsdp: weights, gradients and
    the state of the optimizer are divided among them."""

    def run(self) -> int:
        return in_every_process(self._run)

    def _run(self, ranks: Ranks) -> int:
        from rich.console import Console

        from uniformerv2.distributed import restarted
        from uniformerv2.tasks.classification.training import train_classifier
        from uniformerv2.train.recipes import find_recipe

        console = Console() if ranks.first else None
        recipe = Recipe(self.model, self.clip, self.optimization, self.augmentation.build(), self.evaluation)
        resolved = recipe.resolved()
        scaled = differences(asdict(recipe), asdict(resolved))
        if self.recipe and ranks.first:
            print(*find_recipe(self.recipe).lines(), sep="\n")
        if scaled and ranks.first:
            print(f"scaled with the batch size: {', '.join(scaled)}")
        if self.dry_run or self.overfit_batch or self.find_batch_size:
            return self._rehearse(resolved, ranks, console)
        # a process group that torchrun has started again goes on, where it has begun
        again = restarted() and (self.output / "recipe.json").is_file()
        result = train_classifier(
            self.data,
            self.output,
            resolved,
            root=self.root,
            holdout=self.holdout,
            holdout_list=self.holdout_list,
            resume=self.resume or again,
            overwrite=self.overwrite and not again,
            workers=self.workers,
            device=self.device,
            console=console,
            save_every=self.save_every,
            programs=self.log_to,
            parallel=self.parallel,
            feature_cache=self.feature_cache,
        )
        evaluation = result.evaluation
        if ranks.first:
            print(f"{result.last}: {evaluation.correct} of {len(evaluation.videos)} held-out videos right")
        return 0

    def _rehearse(self, recipe: Recipe, ranks: Ranks, console: Console | None) -> int:
        """What was asked for before the long run; the exit status."""
        from uniformerv2.data.annotations import class_names
        from uniformerv2.data.sources import read_annotations
        from uniformerv2.tasks.batch_size import find_batch_size
        from uniformerv2.tasks.rehearsal import dry_run, overfit_batch

        if ranks.world > 1 and (self.overfit_batch or self.find_batch_size):
            raise RecipeError("--overfit-batch and --find-batch-size are for one process: run them without torchrun")
        status = 0
        split: Any = {"root": self.root, "holdout": self.holdout, "holdout_list": self.holdout_list}
        if self.find_batch_size:
            classes = class_names(read_annotations(self.data, root=self.root), minimum=2)
            find_batch_size(recipe, len(classes), device=self.device, console=console)
        if self.overfit_batch:
            learned = overfit_batch(self.data, recipe, device=self.device, console=console, **split).learned
            status = 0 if learned else FAILED
        if self.dry_run:
            options: Any = {"workers": self.workers, "device": self.device, "parallel": self.parallel}
            dry_run(self.data, recipe, console=console, **options, **split)
        return status


def train_by_recipe(arguments: Sequence[str]) -> Train | None:
    """The defaults of `train --recipe NAME ...`; another start takes the place of the recipe's. None without one."""
    from uniformerv2.train.recipes import find_recipe

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("recipe", *START):
        parser.add_argument(f"--{option}", nargs="?")
    told = vars(parser.parse_known_args(arguments)[0])
    start = {option: value for option, value in told.items() if value not in (None, "None")}
    if "recipe" not in start:
        return None
    name = start.pop("recipe")
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
    workers: int = 2
    """Processes that read videos beside the one that trains."""

    def run(self) -> int:
        from uniformerv2.demo.run import print_result, run_demo

        print_result(
            run_demo(self.output, seed=self.seed, overwrite=self.overwrite, workers=self.workers, progress=True)
        )
        return 0
