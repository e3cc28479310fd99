"""Files that are drawn, damaged by chance and read: no file may end, mislead or burden a run.

    python benchmarks/fuzz_media.py [--minutes 2] [--seed 0] [--corpus fuzzed] [--mutants N]
    python benchmarks/fuzz_media.py --drawn 300 --retimed 200 --mutants 0  # undamaged files alone
    python benchmarks/fuzz_media.py --seed 0 --only "mutant 17"  # one of them again

First files are drawn, of every container and codec that PyAV writes here; then the packets of some get times that
make no sense; of both kinds every frame has to be that of a plain decode. Then files are damaged: mutant K of a seed is
always the same, with the same version of PyAV and as many files drawn. A worker process, whose processor time and
address space are limited, reads each in many ways; `media_properties.py` has what must hold. What fails is written to
the corpus's folder, the first of a kind made smaller, and the status is 1. It ends after so many mutants, or minutes.
Linux only.
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import count
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import av
from media_properties import Case, Verdict, check
from mutations import mutate, shrink
from timing import machine

from media import CANNOT, TIMES, decode, drawing, ordered, pairs, retimed
from uniformerv2.data.processes import Crash, Worker

SILENT_SECONDS = 60  # without an answer, after which a process counts as one that hangs
ADDRESS_SPACE = 16 << 30  # bytes; beyond, nothing is allocated
SUFFIXES = {"matroska": "mkv", "mpegts": "ts", "asf": "wmv", "asf_stream": "wmv", "mpeg": "mpg", "yuv4mpegpipe": "y4m"}
IMAGES = {"png": "png", "mjpeg": "jpg", "bmp": "bmp", "libwebp": "webp"}  # by encoder
ATTEMPTS = 20  # at a file that a plain decode still reads after its times were changed


@dataclass(frozen=True)
class Task:
    """A file to make and to check; or one that is there, to check."""

    kind: str  # "drawn", "retimed", "mutant"; or "there"
    number: int = 0
    case: Case | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"


@dataclass
class Made:
    """The file of a task."""

    case: Case
    kinds: list[str]  # of what was done to it
    origin: Path  # the drawn file that it was made of


@dataclass
class Result:
    """What came of a task."""

    task: Task
    made: Made | None = None
    question: str = ""  # the last one that was asked
    verdict: Verdict | None = None

    @property
    def failures(self) -> list[str]:
        return self.verdict.failures if self.verdict else []


class Forge:
    """Makes files in a folder, by a seed. All of it is done in worker processes: encoders may crash, too."""

    def __init__(self, folder: Path, seed: int, of: list[tuple[str, str, int, int]] | None = None) -> None:
        self.folder, self.seed = folder, seed
        self.pairs = of or []

    def work(self, task: Task) -> Iterator[Any]:
        """Yields `Made`, the questions and the `Verdict`; only `Made` where nothing is to be checked."""
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        av.logging.set_level(None)
        made = Made(task.case, [], Path()) if task.case else self.make(task)
        if made:
            yield made
            yield from check(made.case)

    def drawn(self) -> list[Path]:
        """Files that were drawn, in their order."""
        return sorted(self.folder.glob(f"drawn/{self.seed}-*"))

    def make(self, task: Task) -> Made | None:
        """None where that cannot be made."""
        dice = random.Random(f"{self.seed}/{task}")
        if task.kind == "drawn":
            return self._draw(task.number, dice)
        if task.kind == "retimed":
            return self._retime(task.number, dice)
        return self._mutate(task.number, dice)

    def _draw(self, number: int, dice: random.Random) -> Made | None:
        container, codec, width, height = self.pairs[number % len(self.pairs)]
        try:
            how, content = drawing(container, codec, width, height, dice)
        except CANNOT:  # so many frames in it
            return None
        suffix = IMAGES.get(codec, "img") if container == "image2pipe" else SUFFIXES.get(container, container)
        path = self.folder / "drawn" / f"{self.seed}-{number:04} {how.quarter_turns} {container} {codec}.{suffix}"
        path.write_bytes(content)
        return Made(Case(path, sound=True, timed=True, quarter_turns=how.quarter_turns), [str(how)], path)

    def _retime(self, number: int, dice: random.Random) -> Made | None:
        for _ in range(ATTEMPTS):
            origin = dice.choice(self.drawn())
            turns, container = origin.name.split()[1:3]
            kind = dice.choice(["appended", *TIMES])
            path = self.folder / f"{self.seed}-retimed {number}{origin.suffix}"
            try:
                path.write_bytes(retimed(origin.read_bytes(), container, kind, dice))
                if turns == "0" and len(decode(path.read_bytes()).images) > 1:
                    return Made(Case(path, sound=True), [kind], origin)
            except CANNOT:
                pass
            path.unlink(missing_ok=True)
        return None

    def _mutate(self, number: int, dice: random.Random) -> Made:
        origin, other = dice.choice(self.drawn()), dice.choice(self.drawn())
        content, kinds = mutate(origin.read_bytes(), other.read_bytes(), dice)
        path = self.folder / f"{self.seed}-mutant {number}{origin.suffix}"
        path.write_bytes(content)
        return Made(Case(path), kinds, origin)


def results(forge: Forge, tasks: Iterable[Task], workers: int, until: float) -> Iterator[Result]:
    """Of the tasks, as they are done, until the clock stands at `until`."""
    coming = iter(tasks)
    running: dict[Any, tuple[Worker[Task], Result]] = {}
    idle: list[Worker[Task]] = []
    try:
        while True:
            while len(running) < workers and time.monotonic() < until and (task := next(coming, None)):
                worker = idle.pop() if idle else Worker(forge.work)
                running[worker.connection] = (worker, Result(task))
                worker.give(task)
            if not running:
                return
            ready = wait(list(running), SILENT_SECONDS)
            for connection in ready or list(running):
                worker, result = running[connection]
                for _, item in worker.receive() if ready else [(None, Crash(f"silence for {SILENT_SECONDS} s"))]:
                    _note(result, item)
                if not ready or not worker.tasks or not worker.alive:
                    del running[connection]
                    if ready and worker.alive:
                        idle.append(worker)
                    else:
                        worker.stop()
                    yield result
    finally:
        for worker in [*idle, *(worker for worker, _ in running.values())]:
            worker.stop()


def _note(result: Result, item: Any) -> None:
    """Take what a worker process sent, or how it ended."""
    if isinstance(item, str):
        result.question = item
    elif isinstance(item, Made):
        result.made = item
    elif isinstance(item, Verdict):
        result.verdict = item
    elif result.made:
        result.verdict = Verdict("crash", failures=[f"crash, {item.cause}: {result.question}"])
    else:
        print(f"{result.task}: FFmpeg ended or hung when it wrote the file ({item.cause})", flush=True)


def kind_of(result: Result, failure: str) -> str:
    """The property that does not hold, of which kind of file, without what differs from file to file."""
    return f"{result.task.kind}: {failure.partition(': ')[0]}"


@dataclass
class Report:
    """What was found so far."""

    folder: Path
    command: str  # that repeats one of them
    done: Counter[str] = field(default_factory=Counter)  # tasks by kind
    kinds: Counter[str] = field(default_factory=Counter)  # of mutations
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")  # seconds of the processor
    largest: tuple[int, str] = (0, "")  # bytes
    failures: dict[str, list[str]] = field(default_factory=dict)  # by kind

    def add(self, forge: Forge, result: Result) -> None:
        """Count a result, and write down what fails."""
        made, verdict, name = result.made, result.verdict, str(result.task)
        if made and verdict and verdict.outcome == "crash" and made.case.sound:  # an encoder may have left it broken
            verdict = result.verdict = checked_alone(forge, made.case).verdict
        if not made or not verdict:
            self.done["not written"] += 1
            return
        self.done[result.task.kind] += 1
        self.kinds.update(made.kinds if result.task.kind != "drawn" else [])
        self.outcomes[f"{result.task.kind}: {verdict.outcome}"] += 1
        self.slowest = max(self.slowest, (verdict.seconds, name))
        self.largest = max(self.largest, (verdict.bytes, name))
        for failure in dict.fromkeys(kind_of(result, text) for text in verdict.failures):
            first = failure not in self.failures
            self.failures.setdefault(failure, []).append(name)
            if first:
                self._write_down(forge, made, failure, result)
        if result.task.kind != "drawn":
            made.case.path.unlink(missing_ok=True)

    def _write_down(self, forge: Forge, made: Made, failure: str, result: Result) -> None:
        path = self.folder / f"{re.sub('[^a-zA-Z0-9]+', '_', failure)[:60]} {made.case.path.name}".replace(" ", "-")
        content = made.case.path.read_bytes()
        if not made.case.sound:
            content = shrink(content, made.origin.read_bytes(), partial(fails, forge, path, failure.partition(": ")[2]))
        path.write_bytes(content)
        lines = [f"{self.command} --only {str(result.task)!r}", f"{made.origin.name}: {', '.join(made.kinds)}"]
        path.with_suffix(".txt").write_text("\n".join([*lines, *result.failures, ""]), encoding="utf-8")
        print(f"{result.task}: {failure}\n    {path.name}, {len(content)} bytes, {lines[1]}", flush=True)
        for line in result.failures[:3]:
            print(f"    {line[:300]}", flush=True)

    def print(self) -> None:
        for title, counts in (("files", self.done), ("changes", self.kinds), ("outcomes", self.outcomes)):
            print(f"{title}: " + ", ".join(f"{number} {name}" for name, number in sorted(counts.items())))
        print(f"slowest question: {self.slowest[0]:.1f} s of the processor ({self.slowest[1]})")
        print(f"most memory: {self.largest[0] / 1e6:.0f} MB for the whole process ({self.largest[1]})")
        print(f"failures: {sum(map(len, self.failures.values())) or 'none'}")
        for failure, names in sorted(self.failures.items(), key=lambda item: -len(item[1])):
            print(f"{len(names):>6} {failure} ({', '.join(names[:4])}{', ...' * (len(names) > 4)})")


def checked_alone(forge: Forge, case: Case) -> Result:
    """What comes of a file in a process of its own."""
    [result] = results(forge, [Task("there", case=case)], 1, float("inf"))
    return result


def fails(forge: Forge, path: Path, failure: str, content: bytes) -> bool:
    """Whether a content fails in this way."""
    path.write_bytes(content)
    result = checked_alone(forge, Case(path))
    return failure in {text.partition(": ")[0] for text in result.failures}


def known_pairs(folder: Path) -> list[tuple[str, str, int, int]]:
    worker: Worker[Path] = Worker(_pairs)
    worker.give(folder)
    try:
        while not (found := worker.receive()):
            pass
    finally:
        worker.stop()
    return found[0][1]


def _pairs(folder: Path) -> list[tuple[str, str, int, int]]:
    av.logging.set_level(None)
    return pairs()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2, help="after which it ends")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, default=Path("fuzzed"), help="folder for what is drawn and what fails")
    parser.add_argument("--drawn", type=int, default=150, help="files that are drawn")
    parser.add_argument("--retimed", type=int, default=50, help="files whose times make no sense")
    parser.add_argument("--mutants", type=int, help="damaged files; without it, until the time is over")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--only", metavar="'mutant K'", help="one of them; drawn files have to be in the folder")
    given = parser.parse_args()

    start = time.monotonic()
    (given.corpus / "drawn").mkdir(parents=True, exist_ok=True)
    print(f"{machine()}, av {version('av')}, seed {given.seed}", flush=True)
    forge = Forge(given.corpus, given.seed, ordered(known_pairs(given.corpus), random.Random(given.seed)))
    report = Report(given.corpus, f"python benchmarks/fuzz_media.py --seed {given.seed} --drawn {given.drawn}")
    numbers = {"drawn": range(given.drawn), "retimed": range(given.retimed)}
    numbers["mutant"] = range(given.mutants) if given.mutants is not None else count()
    if given.only:
        kind, number = given.only.split()
        numbers = {kind: [int(number)]}
    for kind, of_kind in numbers.items():  # one after the other: all files are drawn before one is changed
        tasks = (Task(kind, number) for number in of_kind)
        for result in results(forge, tasks, given.workers, start + 60 * given.minutes):
            report.add(forge, result)
    print(f"{(time.monotonic() - start) / 60:.1f} minutes")
    report.print()
    sys.exit(bool(report.failures))


if __name__ == "__main__":
    main()
