"""`uniformerv2 benchmark`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from uniformerv2.cli.options import Device, NumFrames, OptionalOutput, values


@dataclass(frozen=True)
class Benchmark:
    """Measure how fast a model runs on this machine, in every backend and precision that is installed.

    Parameters, multiply-adds, latency, throughput, peak memory, and the share of what matrix products could do here.
    Every contender has a process of its own; they take turns.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")] = "B/16"
    """A checkpoint, or a named size with random weights: Ti/16, S/16, B/16, L/14 or L/14@336."""
    layout: Literal["scene", "temporal"] = "scene"
    """Layout of a named size: as for Kinetics, or as for Something-Something."""
    num_frames: NumFrames = 8
    reference: Annotated[Path | None, arg(metavar="CHECKOUT")] = None
    """A checkout of the official code (OpenGVLab/UniFormerV2), to compare with; its model file is run."""
    peers: FlagCreatePairsOff[bool] = False
    """Also VideoMAE, TimeSformer, ViViT and V-JEPA 2 with random weights, where transformers is installed."""
    batch_sizes: tuple[int, ...] = (1, 4)
    """Clips at a time; the first is 1."""
    rounds: int = 5
    """How often each contender is timed; in each round, its second run counts."""
    output: OptionalOutput = None
    """A folder for benchmark.json, benchmark.md and benchmark.svg."""
    device: Device = "auto"

    def run(self) -> int:
        from uniformerv2.benchmark.run import benchmark

        report = benchmark(**values(self, "output"), progress=True)
        print(report.to_markdown(), end="")
        if self.output:
            report.save(self.output)
            print(f"written to {self.output}")
        return 0
