"""The commands of `uniformerv2 data`: from what the owners of a dataset publish to a manifest that can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand


@dataclass(frozen=True)
class Import:
    """Make a manifest out of the annotations that a dataset's owner publishes and the videos that are there."""

    dataset: Annotated[Positional[str], arg(metavar="DATASET")]
    """Which dataset."""

    def run(self) -> int:
        raise NotImplementedError


@dataclass(frozen=True)
class Kinetics710:
    """Merge Kinetics-400, 600 and 700 into Kinetics-710."""

    output: Annotated[Path, arg(aliases=["-o"])]
    """Folder to write."""

    def run(self) -> int:
        raise NotImplementedError


DataCommand = Annotated[Import, subcommand("import")] | Annotated[Kinetics710, subcommand("kinetics710")]


@dataclass(frozen=True)
class Data:
    """Prepare datasets: import published annotations, check videos, merge Kinetics."""

    command: OmitArgPrefixes[OmitSubcommandPrefixes[DataCommand]]

    def run(self) -> int:
        return self.command.run()
