"""How fast a model is in every backend and precision, and beside others; as JSON, as a Markdown table and a picture."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uniformerv2.atomic import write_text
from uniformerv2.benchmark.measuring import Case, Contender, Measured, contenders, machine, measure, product_limit
from uniformerv2.device import model_device, pick_device
from uniformerv2.errors import CheckpointError
from uniformerv2.inference.precision import has_bf16
from uniformerv2.model.config import MODEL_SIZES, Layout, Preprocessing, named_config
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.progress import say
from uniformerv2.weights.checkpoint import save_model
from uniformerv2.weights.convert import convert
from uniformerv2.weights.loading import resolve_model

OFFICIAL = Contender("official", "fp32")  # what all are compared with; without it, the plain model
PLAIN = Contender("plain", "fp32")


@dataclass(frozen=True)
class Report:
    """One benchmark."""

    machine: str
    what: str  # the model and its clips, in a line
    limits: Mapping[str, float]  # operations per second of large matrix products, by precision
    measured: Sequence[Measured]
    left_out: Sequence[str]  # with the reason

    @property
    def baseline(self) -> Measured | None:
        """The official model in fp32 where it was measured, else our plain one."""
        found = {row.contender: row for row in self.measured}
        return found.get(OFFICIAL) or found.get(PLAIN)

    def speedup(self, row: Measured) -> float | None:
        """How many times as fast as the baseline, one clip at a time."""
        return None if self.baseline is None else self.baseline.latency / row.latency

    def share_of_limit(self, row: Measured) -> float | None:
        """Of the operations that matrix products of its precision could do in the same time; None where unmeasured."""
        limit = self.limits.get(row.contender.precision)
        return None if limit is None else 2 * row.multiply_adds / row.latency / limit

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                "name": row.contender.name,
                "speedup": self.speedup(row),
                "limit_share": self.share_of_limit(row),
                **asdict(row),
            }
            for row in self.measured
        ]
        return vars(self) | {"limits": dict(self.limits), "measured": rows, "left_out": list(self.left_out)}

    def save(self, folder: Path) -> None:
        """Write benchmark.json, benchmark.md and benchmark.svg."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "benchmark.json", json.dumps(self.to_json(), indent=2) + "\n")
        write_text(folder / "benchmark.md", self.to_markdown())
        write_text(folder / "benchmark.svg", self.to_svg())

    def to_markdown(self) -> str:
        limits = ", ".join(f"{limit / 1e9:.0f} GFLOP/s in {precision}" for precision, limit in self.limits.items())
        baseline = self.baseline.contender.name if self.baseline else "nothing"
        lines = [
            f"{self.what}. {self.machine}. Large matrix products reach {limits}.",
            "",
            "| model | parameters | multiply-adds | latency, 1 clip | times as fast as " + baseline + " | "
            "best throughput | peak memory | share of the limit |",
            "|---|---|---|---|---|---|---|---|",
            *(self._cells(row) for row in self.measured),
        ]
        if self.left_out:
            lines += ["", "Left out:", *(f"- {line}" for line in self.left_out)]
        return "\n".join(lines) + "\n"

    def _cells(self, row: Measured) -> str:
        best, speedup, share = row.throughput, self.speedup(row), self.share_of_limit(row)
        cells = [
            row.contender.name,
            f"{row.parameters / 1e6:.1f} M",
            f"{row.multiply_adds / 1e9:.1f} G",
            f"{row.latency * 1e3:.0f} ms ± {row.times[0].spread:.1%}",
            "-" if speedup is None else f"{speedup:.2f}",
            f"{best.batch / best.median:.2f} clips/s at {best.batch}",
            f"{row.memory_mib:.0f} MiB",
            "-" if share is None else f"{share:.0%}",
        ]
        return f"| {' | '.join(cells)} |"

    def to_svg(self) -> str:
        """Bars of the latencies, the fastest first."""
        rows = sorted(self.measured, key=lambda row: row.latency)
        longest = max(row.latency for row in rows)
        height, label, bar = 24, 200, 420
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{label + bar + 120}" height="{height * (len(rows) + 1)}" '
            'font-family="sans-serif" font-size="13">',
            f'<text x="4" y="16">{escape(self.what)}: milliseconds for one clip</text>',
        ]
        for number, row in enumerate(rows, start=1):
            length, top = bar * row.latency / longest, height * number
            colour = "#4c78a8" if row.contender.model == "ours" else "#b0b0b0"
            parts += [
                f'<text x="4" y="{top + 16}">{escape(row.contender.name)}</text>',
                f'<rect x="{label}" y="{top + 3}" width="{length:.1f}" height="{height - 6}" fill="{colour}"/>',
                f'<text x="{label + length + 6:.1f}" y="{top + 16}">{row.latency * 1e3:.0f}</text>',
            ]
        return "\n".join([*parts, "</svg>"]) + "\n"


MEASURED_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def benchmark(
    model: str | Path | UniFormerV2,
    *,
    title: str = "",
    layout: Layout = "scene",
    num_frames: int = 8,
    reference: Path | None = None,
    peers: bool = False,
    only: Callable[[Contender], bool] = lambda contender: True,
    batch_sizes: Sequence[int] = (1, 4),
    rounds: int = 5,
    device: str = "auto",
    progress: bool = False,
) -> Report:
    """Measure a model in every backend and precision that is installed, and others beside it.

    Args:
        model: a checkpoint, a model, or a named size such as "B/16", which gets random weights.
        title: what it is called in the report; default: `model`.
        layout, num_frames: of a named size.
        reference: a checkout of the official code, which runs the same weights.
        peers: also other models, from transformers.
        only: which contenders.
        batch_sizes, rounds: as of `measure`.
        device: that computes, see `resolve_model`.
        progress: print a line about each step.

    Raises:
        RecipeError: impossible batch sizes or rounds, a device that is not here, or `reference` has no model file.
        CheckpointError: the checkpoint cannot be read.
    """
    title = title or ("model" if isinstance(model, nn.Module) else str(model))
    if str(model) in MODEL_SIZES:
        config = named_config(str(model), layout)
        preprocessing = Preprocessing(num_frames=num_frames, size=config.image_size)
        model = UniFormerV2(config, preprocessing).to(pick_device(device))
    model = resolve_model(model, device=device, labels=())
    place, preprocessing = model_device(model), model.preprocessing
    with tempfile.TemporaryDirectory() as folder:
        ours = Path(folder) / "ours.safetensors"
        save_model(model, ours)
        case = Case(ours, None, None, preprocessing.num_frames, preprocessing.size)
        left_out: list[str] = []
        if reference is not None:
            try:
                convert(ours, official := ours.with_name("official.pyth"), to="official")
                case = Case(ours, official, reference, case.num_frames, case.size)
            except CheckpointError as error:
                left_out.append(f"the official model: {error}")
        found, missing = contenders(case, place, peers=peers)
        chosen = [contender for contender in found if only(contender)]
        measured, failed = measure(chosen, case, place, batch_sizes=batch_sizes, rounds=rounds, progress=progress)
    say("measuring matrix products", progress=progress)
    dtypes = MEASURED_DTYPES if has_bf16(place) else {"fp32": torch.float32}
    limits = {precision: product_limit(dtype, place) for precision, dtype in dtypes.items()}
    height, width = preprocessing.size
    what = f"{title}, {preprocessing.num_frames} frames of {height}x{width}"
    return Report(machine(), what, limits, measured, [*left_out, *missing, *failed])
