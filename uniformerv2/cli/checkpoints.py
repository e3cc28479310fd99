"""`uniformerv2 models`, `info` and `convert`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from uniformerv2.cli.options import Json, Loading
from uniformerv2.cli.output import print_line

if TYPE_CHECKING:
    from uniformerv2.weights.zoo import ZooEntry


@dataclass(frozen=True)
class Models:
    """List the published checkpoints: models, published accuracies, and whether they are available."""

    dataset: str | None = None
    """Only models of this dataset, such as K400 or ssv2."""
    as_json: Json = False

    def run(self) -> int:
        from uniformerv2.weights.zoo import list_models

        entries = list_models(dataset=self.dataset)
        if self.as_json:
            print("[" + ",\n ".join(json.dumps(entry.to_json()) for entry in entries) + "]")
        else:
            _print_models(entries)
        return 0


@dataclass(frozen=True, kw_only=True)
class Info(Loading):
    """Show the architecture of a checkpoint, what was recognised and assumed, and its labels."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A checkpoint, such as a run's folder or a file of the official code or of mmaction2."""

    def run(self) -> int:
        from uniformerv2.weights.checkpoint import checkpoint_info

        info = checkpoint_info(self.checkpoint, **self.loading_options())
        print("report")
        for line in info.report:
            print_line(f"  {line}")
        for title, values in (
            ("model", asdict(info.config)),
            ("preprocessing", asdict(info.preprocessing)),
            ("weights", {"format": info.format, "origin": info.origin, "licence": info.licence}),
        ):
            print(title)
            for name, value in values.items():
                print_line(f"  {name:<20}{value if value != '' else 'not given'}")
        print(f"labels ({len(info.labels)}){f': {info.label_note}' if info.label_note else ''}")
        for number, label in enumerate(info.labels):
            threshold = f"  from {info.thresholds[number]:.3f} on" if info.thresholds else ""
            print_line(f"  {number:<6}{label}{threshold}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Convert(Loading):
    """Write a checkpoint in the format of another implementation, and back without loss.

    The rows of a head whose labels are known are put into the order that the format's users expect.
    """

    source: Annotated[Positional[Path], arg(metavar="IN")]
    """A checkpoint of this package, of the official code or of mmaction2."""
    path: Annotated[Positional[Path], arg(metavar="OUT")]
    """The file to write; an existing one is replaced."""
    to: Literal["ours", "official", "mmaction2"]
    """The format to write."""
    dataset: str | None = None
    """Whose classes the head has, such as sthv2, where the checkpoint does not state it."""
    heads: int | None = None
    """Attention heads, where the checkpoint does not state them; None: one for each 64 channels."""
    global_after: tuple[int, ...] | None = None
    """Blocks that global stages follow, where the checkpoint does not state them; None: the last ones."""

    def run(self) -> int:
        from uniformerv2.weights.convert import convert

        given: dict[str, Any] = {"heads": self.heads, "global_after": self.global_after}
        options = {name: value for name, value in given.items() if value is not None}
        for line in convert(
            self.source, self.path, to=self.to, dataset=self.dataset, **options, **self.loading_options()
        ):
            print_line(line)
        return 0


def _print_models(entries: Sequence[ZooEntry]) -> None:
    from rich.console import Console
    from rich.table import Table

    from uniformerv2.weights.zoo import AVAILABILITY

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("name", "dataset", "clip", "views", "top-1", "parameters", "multiply-adds", "availability"):
        number = title in ("top-1", "parameters", "multiply-adds")
        table.add_column(title, justify="right" if number else "left", no_wrap=title == "name")
    for entry in entries:
        top1 = "-" if entry.top1 is None else f"{entry.top1:.1f}"
        clip = f"{entry.num_frames}x{entry.image_size}"
        counts = (f"{entry.parameters / 1e6:.1f} M", f"{entry.multiply_adds / 1e9:.1f} G")
        table.add_row(entry.name, entry.dataset, clip, entry.views or "-", top1, *counts, entry.availability)
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file or a pipe has no width of its own
    console.print(table)
    print("views: frames x crops x clips of the published top-1; multiply-adds: of one view")
    for availability, meaning in AVAILABILITY.items():
        if any(entry.availability == availability for entry in entries):
            print(f"{availability}: {meaning}")
