"""The command line: arguments in, calls out; no logic. torch is imported when a command runs, not before it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from functools import reduce
from io import TextIOWrapper
from operator import or_
from typing import Annotated, Any, get_args

import tyro
from tyro.conf import subcommand

from uniformerv2 import __version__
from uniformerv2.cli.checkpoints import Convert, Info, Models
from uniformerv2.cli.datasets import Datasets
from uniformerv2.cli.localisation import RehearseLocaliser, TrainLocaliser, localiser_defaults
from uniformerv2.cli.measuring import Benchmark, Evaluate, Features
from uniformerv2.cli.output import FAILED, INTERRUPTED, print_error, print_line
from uniformerv2.cli.prediction import Predict, Stream, Timeline
from uniformerv2.cli.probing import Probe
from uniformerv2.cli.scoring import Score, ScoreLabels
from uniformerv2.cli.training import Demo, Recipes, Rehearse, Runs, Train, recipe_by_videos, with_defaults
from uniformerv2.errors import UniFormerV2Error
from uniformerv2.machine import prepare_threads
from uniformerv2.text import printable
from uniformerv2.video.limits import limits_set

Command = (  # each has the name of its class, but for the last
    (
        Train
        | Probe
        | Rehearse
        | Recipes
        | Runs
        | Evaluate
        | Score
        | ScoreLabels
        | Features
        | Predict
        | Timeline
        | Stream
        | Demo
        | Benchmark
    )
    | (Info | Convert | Models | Annotated[Datasets, subcommand("data")])
)
# in the place of others of their names, where their arguments are of --task localise
LOCALISER_COMMANDS = (
    Annotated[TrainLocaliser, subcommand("train")],
    Annotated[RehearseLocaliser, subcommand("rehearse")],
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0; 2 for errors that the user can fix, printed as one line on stderr; 130 after Ctrl-C.
    """
    prepare_threads()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what cannot be shown here becomes an escape, not an error
            stream.reconfigure(errors="backslashreplace")
    before, warnings.formatwarning = warnings.formatwarning, lambda message, *_: f"warning: {printable(message)}\n"
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    finally:
        warnings.formatwarning = before


def _run(arguments: Sequence[str]) -> int:
    if list(arguments) == ["--version"]:
        print_line(f"uniformerv2 {__version__}")
        return 0
    try:
        command = _parse(arguments)
        if (recipe := recipe_by_videos(command)) is not None:
            command = _parse(arguments, by_videos=recipe)
        chosen = getattr(command, "command", command)  # of a group of commands
        with limits_set(getattr(chosen, "limit", ())):
            return command.run()
    except UniFormerV2Error as error:
        print_error(error)
        return FAILED
    except OSError as error:  # a full disk, a folder without permission
        print_error(f"{error.filename or 'file'}: {error.strerror or error}")
        return FAILED
    except KeyboardInterrupt as interrupt:
        print_error(interrupt if interrupt.args else "interrupted")
        return INTERRUPTED


def _parse(arguments: Sequence[str], *, by_videos: str | None = None) -> Any:
    """The command with its options."""
    return tyro.cli(
        _commands(arguments, by_videos),
        prog="uniformerv2",
        description="Video classification: arm an image transformer, train it, measure it, run it. "
        "--version prints the version.",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )


def _commands(arguments: Sequence[str], by_videos: str | None) -> Any:
    """The commands; `train` and `rehearse` with the values of a recipe as their defaults."""
    default = localiser_defaults(arguments) or with_defaults(arguments, by_videos=by_videos)
    if default is None:
        return Command
    replaced = {"train": Train, "rehearse": Rehearse}[arguments[0]]
    others = [command for command in get_args(Command) if command is not replaced]
    return reduce(or_, others, Annotated[type(default), subcommand(arguments[0], default=default)])
