"""A training that is killed at random moments and resumed, against the same training left alone.

    python benchmarks/kills.py WEIZMANN IMAGE_MODEL [--kills 50] [--seed 0] [--output DIR]

Both are `uniformerv2 train` on the Weizmann clips, with everything that draws random numbers or keeps a state. SIGKILL
goes to the whole process group, the reader of videos included. Moments are drawn in the processor time of the process,
evenly from its first instruction on, so that other work on the machine does not shift them; their mean is what lets the
run end after the last kill. At the end the losses, the weights and the evaluation have to be equal to the last bit;
if anything differs, it is named and the status is 1. Needs the /proc of Linux.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timing import machine

from uniformerv2.train.log import TIMINGS, read_metrics
from uniformerv2.train.run_folder import RunFolder
from uniformerv2.train.state import PARTIAL

OPTIONS = """
    --size 64 --epochs 12 --batch-size 6 --accumulate 2 --ema 0.99 --drop-path 0.1 --head-dropout 0.1 --num-ops 2
    --mixup 0.2 --erasing 0.25 --clips 2 --precision fp32 --save-every-seconds 2 --workers 1 --device cpu
"""
FILES = ("last.safetensors", "best.safetensors", "evaluation.json", "train.csv", "held_out.csv")  # equal byte for byte


@dataclass(frozen=True)
class Kill:
    """Where a kill fell."""

    step: int  # the last that was logged
    phase: str


class Training:
    """Processes that work on one run, one after another."""

    def __init__(self, data: Path, image_model: Path, folder: Path) -> None:
        self.run = RunFolder(folder)
        self.log = folder.with_suffix(".log")
        self.command = [sys.executable, "-m", "uniformerv2", "train", str(data), "--arm", str(image_model)]
        self.command += ["--output", str(folder), *OPTIONS.split()]

    def start(self) -> subprocess.Popen[bytes]:
        """A process that begins the run, or continues it."""
        resume = ["--resume"] if self.run.recipe.is_file() else []
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command + resume,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def check(self, process: subprocess.Popen[bytes]) -> None:
        """The process ended by itself: if not well, so does this one."""
        if process.returncode:
            raise SystemExit(f"status {process.returncode}; {self.log} ends with\n{self.log.read_text()[-3000:]}")

    def records(self) -> list[dict[str, Any]]:
        return read_metrics(self.run.metrics) if self.run.metrics.is_file() else []

    def step(self) -> int:
        """The last that was logged."""
        return max((record["step"] for record in self.records() if record["kind"] == "step"), default=0)

    def partial(self) -> list[Path]:
        """What is written at this moment, or was when a kill came."""
        return [*self.run.path.glob(".*.partial"), *self.run.states.glob(f"*{PARTIAL}")]

    def opened(self) -> int:
        """Another number for each process that has come to train."""
        return self.run.metrics.stat().st_ino if self.run.metrics.is_file() else 0


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """User and system time of a process that was not waited for yet."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Undisturbed:
    """What the run is when it is left alone."""

    steps: int
    steps_per_epoch: int
    starting: float  # CPU seconds of the process until it trains
    cpu: float  # in all


def run_undisturbed(training: Training) -> Undisturbed:
    process = training.start()
    starting = cpu = 0.0
    while process.poll() is None:
        cpu = cpu_seconds(process)
        if not training.opened():
            starting = cpu
        time.sleep(0.02)
    training.check(process)
    steps = training.step()
    return Undisturbed(steps, steps // training.records()[-1]["epoch"], starting, cpu)


def kill_often(training: Training, kills: int, moments: random.Random, whole: Undisturbed) -> list[Kill]:
    """Kill the run so often, and let it end."""
    done: list[Kill] = []
    while len(done) < kills:
        share = (1 - training.step() / whole.steps) / (kills - len(done))  # of the run, until the next kill
        mean = whole.starting + share * (whole.cpu - whole.starting)
        kill = run_and_kill(training, moments.uniform(0, 2 * mean), whole)
        if kill is not None:
            done.append(kill)
            print(f"kill {len(done)}: step {kill.step} of {whole.steps}, {kill.phase}", flush=True)
    process = training.start()
    process.wait()
    training.check(process)
    return done


def run_and_kill(training: Training, moment: float, whole: Undisturbed) -> Kill | None:
    """Let a process have so many CPU seconds; None if it needed fewer and ended well."""
    opened, process = training.opened(), training.start()
    while cpu_seconds(process) < moment:
        if process.poll() is not None:
            training.check(process)
            return None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return Kill(training.step(), phase(training, opened, whole))


def phase(training: Training, opened: int, whole: Undisturbed) -> str:
    """What a process was doing that was just killed; `opened` is from before it started."""
    if training.opened() == opened:
        return "before it trained"
    if training.partial():
        return "while it wrote"
    records, step = training.records(), training.step()
    evaluated = sum(record["kind"] == "epoch" for record in records)
    if step and (step == whole.steps or step == (evaluated + 1) * whole.steps_per_epoch):
        return "in an evaluation"
    return "in training"


def differences(one: Training, other: Training) -> list[str]:
    """Names of what is not equal in two runs."""
    curves = [
        [{name: value for name, value in record.items() if name not in TIMINGS} for record in training.records()]
        for training in (one, other)
    ]
    differing = [] if curves[0] == curves[1] else ["metrics.jsonl"]
    folders = (one.run.path, other.run.path)
    differing += [name for name in FILES if not filecmp.cmp(*(folder / name for folder in folders), shallow=False)]
    return differing + [path.name for path in other.partial()]


def report(kills: Sequence[Kill], steps: int, bins: int = 10) -> None:
    print(f"\n{'steps':>12}  kills")
    for number in range(bins):
        first, last = number * steps // bins, (number + 1) * steps // bins
        count = sum(first <= kill.step < last or kill.step == last == steps for kill in kills)
        print(f"{first:>5} to {last:>3}  {'#' * count} {count}")
    for name, count in Counter(kill.phase for kill in kills).most_common():
        print(f"{count:>3} {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", metavar="WEIZMANN", type=Path)
    parser.add_argument("image_model", metavar="IMAGE_MODEL", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    parser.add_argument("--output", type=Path, default=Path("runs/kills"), help="new folder for both runs")
    arguments = parser.parse_args()

    arguments.output.mkdir(parents=True)
    unbroken, broken = (
        Training(arguments.data, arguments.image_model, arguments.output / name) for name in ("unbroken", "broken")
    )
    start = time.perf_counter()
    whole = run_undisturbed(unbroken)
    print(machine(), flush=True)
    print(f"undisturbed: {whole.steps} steps, {whole.cpu:.0f} CPU s, of which {whole.starting:.1f} before it trains")
    kills = kill_often(broken, arguments.kills, random.Random(arguments.seed), whole)
    report(kills, whole.steps)
    differing = differences(unbroken, broken)
    print(f"\n{len(kills)} kills, {(time.perf_counter() - start) / 60:.0f} minutes with both runs")
    print(f"differing: {', '.join(differing) or 'nothing'}")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
