"""The report of a benchmark, as JSON, as a Markdown table and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from uniformerv2.atomic import write_text
from uniformerv2.benchmark.contenders import Contender
from uniformerv2.benchmark.measuring import Measured

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
