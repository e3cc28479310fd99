"""`uniformerv2 benchmark`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

if TYPE_CHECKING:
    from uniformerv2.model.uniformerv2 import UniFormerV2


@dataclass(frozen=True)
class Benchmark:
    """How fast a model runs on this machine, in every backend and precision that is installed.

    Parameters, multiply-adds, latency, throughput, peak memory, and the share of what matrix products could do here.
    Every contender has a process of its own; they take turns.
    """

    checkpoint: Annotated[Positional[Path | None], arg(metavar="CHECKPOINT")] = None
    """A checkpoint; None: a named size with random weights."""
    model: Literal["Ti/16", "S/16", "B/16", "L/14", "L/14@336"] = "B/16"
    """The named size, without a checkpoint."""
    layout: Literal["scene", "temporal"] = "scene"
    """Its layout: as for Kinetics, or as for Something-Something."""
    num_frames: int = 8
    """Frames of a clip, without a checkpoint."""
    reference: Annotated[Path | None, arg(metavar="CHECKOUT")] = None
    """A checkout of the official code (OpenGVLab/UniFormerV2), to compare with; its model file is run."""
    peers: FlagCreatePairsOff[bool] = False
    """Also VideoMAE, TimeSformer, ViViT and V-JEPA 2 with random weights, where transformers is installed."""
    batch_sizes: tuple[int, ...] = (1, 4)
    """Clips at a time; the first is 1."""
    repeats: int = 5
    """Turns of each contender; in a turn it runs twice, and the second run counts."""
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """A folder for benchmark.json, benchmark.md and benchmark.svg."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, ..."""

    def run(self) -> int:
        from uniformerv2.atomic import write_text
        from uniformerv2.benchmark.run import benchmark

        report = benchmark(
            self.checkpoint or self._drawn(),
            title="" if self.checkpoint else f"{self.model} {self.layout}",
            reference=self.reference,
            peers=self.peers,
            batch_sizes=self.batch_sizes,
            repeats=self.repeats,
            device=self.device,
            progress=True,
        )
        print(report.to_markdown(), end="")
        if self.output:
            self.output.mkdir(parents=True, exist_ok=True)
            write_text(self.output / "benchmark.json", json.dumps(report.to_json(), indent=2) + "\n")
            write_text(self.output / "benchmark.md", report.to_markdown())
            write_text(self.output / "benchmark.svg", report.to_svg())
            print(f"written to {self.output}")
        return 0

    def _drawn(self) -> UniFormerV2:
        from uniformerv2.model.config import Preprocessing, named_config
        from uniformerv2.model.uniformerv2 import UniFormerV2

        config = named_config(self.model, self.layout)
        return UniFormerV2(config, Preprocessing(num_frames=self.num_frames, size=config.image_size))
