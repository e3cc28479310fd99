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

from uniformerv2.cli.checkpoints import Convert, Info, Models
from uniformerv2.cli.datasets import Datasets
from uniformerv2.cli.measuring import Benchmark, Evaluate, Features
from uniformerv2.cli.output import FAILED, INTERRUPTED, print_error
from uniformerv2.cli.prediction import Predict, Stream, Timeline
from uniformerv2.cli.training import Demo, Recipes, Rehearse, Runs, Train, by_recipe
from uniformerv2.errors import UniFormerV2Error
from uniformerv2.text import printable

Command = (  # each has the name of its class, but for the last
    (Train | Rehearse | Recipes | Runs | Evaluate | Features | Predict | Timeline | Stream | Demo | Benchmark)
    | (Info | Convert | Models | Annotated[Datasets, subcommand("data")])
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0; 2 for errors that the user can fix, printed as one line on stderr; 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what cannot be shown here becomes an escape, not an error
            stream.reconfigure(errors="backslashreplace")
    before, warnings.formatwarning = warnings.formatwarning, lambda message, *_: f"warning: {printable(message)}\n"
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    finally:
        warnings.formatwarning = before


def _run(arguments: Sequence[str]) -> int:
    try:
        command = tyro.cli(
            _commands(arguments),
            prog="uniformerv2",
            description="Video classification: arm an image transformer, train it, measure it, run it.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
        return command.run()
    except UniFormerV2Error as error:
        print_error(error)
        return FAILED
    except OSError as error:  # a full disk, a folder without permission
        print_error(f"{error.filename or 'file'}: {error.strerror or error}")
        return FAILED
    except KeyboardInterrupt:
        print_error("interrupted")
        return INTERRUPTED


def _commands(arguments: Sequence[str]) -> Any:
    """The commands; where `train` or `rehearse` names a recipe, with the recipe's values as its defaults."""
    default = by_recipe(arguments)
    if default is None:
        return Command
    others = [command for command in get_args(Command) if command is not type(default)]
    return reduce(or_, others, Annotated[type(default), subcommand(arguments[0], default=default)])
