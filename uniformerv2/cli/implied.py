"""What the arguments of a training imply for its other options: a recipe by its name, of a run, or by the videos."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from uniformerv2.train.recipe import START, USUAL_TASK, Recipe
from uniformerv2.train.recipes import find_recipe
from uniformerv2.train.recipes.base import DEFAULTS

if TYPE_CHECKING:
    from uniformerv2.train.run_folder import RunFolder

AUTO = "auto"


class Implied(NamedTuple):
    """Values for the options that are not given."""

    recipe: Recipe
    name: str | None  # of the recipe; `AUTO`: chosen by the number of videos
    resumed: Path | None  # folder of the run that goes on
    task: str = USUAL_TASK


def given_by(arguments: Sequence[str]) -> tuple[argparse.Namespace, Path | None]:
    """The options that decide about others, out of the arguments of `train` or of a rehearsal, without the command.

    Returns:
        Their values as texts, and the folder of the run that goes on.

    Raises:
        RecipeError: a run that cannot go on.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("task", "recipe", "epochs", *START):
        parser.add_argument(f"--{option}", nargs="?")
    parser.add_argument("--warmup-epochs", "--warmup_epochs", nargs="?")
    parser.add_argument("--output", "-o", nargs="?")
    for flag in ("resume", "overwrite"):
        parser.add_argument(f"--{flag}", action="store_true")
    given = parser.parse_known_args(arguments)[0]
    resumed = Path(given.output) if given.resume and given.output else None
    if resumed is not None:
        _run_folder(resumed).check(resume=True, overwrite=given.overwrite)
    return given, resumed


def task_of(given: argparse.Namespace, resumed: Path | None) -> str:
    """The task that is given, else that of the run that goes on. Raises RecipeError."""
    return given.task or (USUAL_TASK if resumed is None else _run_folder(resumed).read_task())


def implied_by(arguments: Sequence[str], *, by_videos: str | None = None) -> Implied:
    """Out of the arguments of `train` or of a rehearsal.

    A recipe's start gives way to one that is given, and its warm-up follows epochs that are given.

    Args:
        arguments: without the command.
        by_videos: the recipe that the number of videos calls for, once it is known.

    Raises:
        RecipeError: no recipe of that name, or a run that cannot be read.
    """
    given, resumed = given_by(arguments)
    start = {name: value for name in START if (value := getattr(given, name)) not in (None, "None")}
    recipe, name = _recipe(given.recipe, start, resumed, by_videos)
    recipe = recipe.starting_from(**start)
    with suppress(ValueError):  # the command line names what is wrong with it
        if given.epochs and not given.warmup_epochs:
            recipe = recipe.lasting(int(given.epochs))
    return Implied(recipe, name, resumed, task_of(given, resumed))


def _recipe(
    name: str | None, start: dict[str, str], resumed: Path | None, by_videos: str | None
) -> tuple[Recipe, str | None]:
    if name not in (None, AUTO):
        return find_recipe(name).recipe, name
    if resumed is not None:
        return _run_folder(resumed).read_recipe(), None
    if name == AUTO or not start:
        return find_recipe(by_videos).recipe if by_videos else DEFAULTS, AUTO
    return DEFAULTS, None


def _run_folder(path: Path) -> RunFolder:
    from uniformerv2.train.run_folder import RunFolder

    return RunFolder(path)
