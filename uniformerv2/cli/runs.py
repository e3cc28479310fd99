"""`uniformerv2 runs`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


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
            print(f"written to {self.html}")
        return 0
