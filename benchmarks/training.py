"""What a training step costs: ours, and the official model with its optimiser.

    python benchmarks/training.py [--reference CHECKOUT] [--clips 2] [--rounds 5] [--only k400-b16 ...] [--json FILE]

Two published experiments: K400-B/16 with 8 frames of 224 pixels (scene layout) and SSv2-B/16 with 16 (temporal layout),
each in fp32 and under bf16 autocast. A step is forward, backward, clipping and AdamW. With --reference, a checkout of
the official code, both models have the same weights, parameter groups, batch and precision, and their first losses are
compared; AdamW is what each project constructs. Dropout and drop path are off, which makes the losses comparable.

Each side has a process of its own, because ours tells the C library to keep freed memory. Time: medians over rounds in
which everything takes its turn. Memory: the peak of a fresh process that does two steps, above what it was before the
model was built; on a GPU, the peak of what tensors took. Limit: a large matrix product in the same precision and run.
Operations are counted as 3 times those of our forward pass, for both sides, so that the share of the limit says how
long a step takes and not how much it computes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from timing import alternate, machine
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW
from training_steps import OPTIMIZATION, Case, Trained, build_model, measured_limit, ours

from uniformerv2 import named_config
from uniformerv2.benchmark.reference import load_reference
from uniformerv2.device import peak_memory_mib, pick_device
from uniformerv2.train.optim import parameter_groups
from uniformerv2.train.recipe import TrainingPrecision

CASES = {
    "k400-b16": Case("K400-B/16 8x224", named_config("B/16"), 8),
    "ssv2-b16": Case("SSv2-B/16 16x224", named_config("B/16", "temporal", num_classes=174), 16),
}
PRECISIONS: tuple[TrainingPrecision, ...] = ("fp32", "bf16")


@dataclass(frozen=True)
class Row:
    """One side in one precision."""

    model: str
    precision: TrainingPrecision
    side: str
    milliseconds: float  # of a step
    clips_per_second: float
    memory_mib: float  # at most
    share_of_limit: float


def main(arguments: argparse.Namespace) -> None:
    device = pick_device(arguments.device)
    print(f"{machine()}; {arguments.clips} clips a step, medians of {arguments.rounds} rounds\n")
    limits = {precision: measured_limit(precision, device) for precision in PRECISIONS}
    for precision, limit in limits.items():
        print(f"matrix product in {precision}: {limit / 1e9:.0f} GFLOP/s")
    rows = [row for name in arguments.only for row in measure(name, limits, device, arguments)]
    print("\n" + "\n".join(table(rows)))
    if arguments.json:
        report = {
            "machine": machine(),
            "clips": arguments.clips,
            "limits": limits,
            "rows": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(
    name: str, limits: dict[TrainingPrecision, float], device: torch.device, arguments: argparse.Namespace
) -> Iterator[Row]:
    """Both sides of a case in both precisions."""
    case, reference = CASES[name], arguments.reference
    sides = ["ours", "official"] if reference else ["ours"]
    turns = [(side, precision) for precision in PRECISIONS for side in sides]
    # first, while this process is small: a new process on Linux inherits the peak of the one that starts it
    memory = {}
    for turn in turns:
        with process() as alone:
            memory[turn] = alone.submit(two_steps, name, *turn, device, reference, arguments.clips).result()
    processes = {side: process() for side in sides}
    losses = [
        one.submit(prepare, name, side, device, reference, arguments.clips).result() for side, one in processes.items()
    ]
    assert max(losses) - min(losses) <= 1e-4 * max(losses), losses  # before anything is learned, they are one function
    functions = {
        f"{side} {precision}": lambda side=side, precision=precision: processes[side].submit(step, precision).result()
        for side, precision in turns
    }
    times = alternate(functions, repeats=arguments.rounds, inner=1)
    for one in processes.values():
        one.shutdown()
    for side, precision in turns:
        seconds = times[f"{side} {precision}"] / 1e3
        share = case.operations(arguments.clips) / seconds / limits[precision]
        yield Row(case.name, precision, side, seconds * 1e3, arguments.clips / seconds, memory[side, precision], share)


def build(side: str, case: Case, device: torch.device, reference: Path) -> Trained:
    if side == "ours":
        return ours(case, device)
    model = load_reference(reference, build_model(case, device), num_frames=case.frames).to(device)
    return Trained(model, AdamW(parameter_groups(model, OPTIMIZATION), lr=OPTIMIZATION.lr, betas=OPTIMIZATION.betas))


def process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


# what a process trains, and on what
PREPARED: list[tuple[Trained, Tensor, Tensor]] = []


def prepare(name: str, side: str, device: torch.device, reference: Path, clips: int) -> float:
    """Build a side in this process; the loss of its model in fp32."""
    case = CASES[name]
    trained, batch = build(side, case, device, reference), case.batch(clips, device)
    PREPARED.append((trained, *batch))
    with torch.no_grad():
        return F.cross_entropy(trained.model(batch[0]), batch[1]).item()


def step(precision: TrainingPrecision) -> None:
    trained, clips, labels = PREPARED[0]
    trained.step(clips, labels, precision)


def two_steps(
    name: str, side: str, precision: TrainingPrecision, device: torch.device, reference: Path, clips: int
) -> float:
    """MiB that two steps in this process take; the optimizer has its state after the first."""
    before = peak_memory_mib(device)
    trained, batch = build(side, CASES[name], device, reference), CASES[name].batch(clips, device)
    for _ in range(2):
        trained.step(*batch, precision)
    return peak_memory_mib(device) - before


def table(rows: list[Row]) -> Iterator[str]:
    """Markdown: each side, and ours against the official code in the same precision and in fp32."""
    by_key = {(row.model, row.precision, row.side): row for row in rows}
    yield "| model | precision | side | step (ms) | clips/s | of the limit | peak memory (GiB) | faster | memory |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        against = by_key.get((row.model, row.precision, "official"))
        compared = ""
        if row.side == "ours" and against is not None:
            compared = f"{against.milliseconds / row.milliseconds:.2f} | {row.memory_mib / against.memory_mib:.2f}"
            narrow, wide = row.precision == "bf16", by_key[row.model, "fp32", "official"]
            compared += f"; {wide.milliseconds / row.milliseconds:.2f} times its fp32" if narrow else ""
        yield (
            f"| {row.model} | {row.precision} | {row.side} | {row.milliseconds:.0f} | {row.clips_per_second:.3f} | "
            f"{row.share_of_limit:.0%} | {row.memory_mib / 2**10:.2f} | {compared or '|'} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="checkout of the official code")
    parser.add_argument("--clips", type=int, default=2, help="clips of a step")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, at least 5")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="experiments")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    main(parser.parse_args())
