"""What has to hold for the reading of any file, checked in the process that reads it."""

from __future__ import annotations

import ctypes
import math
import random
import resource
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from media import CANNOT, Decoded, decode
from uniformerv2.errors import VideoError
from uniformerv2.video import groups
from uniformerv2.video.decoding import ROUNDING
from uniformerv2.video.reader import VideoReader, VideoWarning
from uniformerv2.video.suffixes import IMAGE_SUFFIXES

SECONDS = 10  # of the processor, for one question
BYTES = 600_000_000  # of memory, for the whole process
WAITING_SECONDS = 20  # by the clock, for one question
SMALL = 1920 * 1080  # pixels of a frame, up to which these two have to hold
ENDED_SECONDS = 60  # of the processor, after which a question ends the process
PIXELS = 40_000_000  # that one question asks for at most
M_PERTURB = -6  # of malloc.h
DIFFERING = "depends on the question, frames differ"
CONTENT = "the content, at once"
MOMENTS = (0.0, 0.3, 0.5, 0.9, 1.1)  # shares of the duration


@dataclass(frozen=True)
class Case:
    """A file to read."""

    path: Path
    sound: bool = False  # nothing in it is damaged: its frames are those of a plain decode
    timed: bool = False  # and so are its times
    quarter_turns: int = 0  # to the left, that make its frames upright


@dataclass
class Verdict:
    """What came of a file."""

    outcome: str = "refused"  # or "read", "read with damage", "crash", or what FFmpeg does
    reason: str = ""  # of a refusal
    failures: list[str] = field(default_factory=list)  # "property: what broke it"
    frames: int = 0
    seconds: float = 0.0  # of the processor, for the slowest question
    bytes: int = 0  # of memory, at the peak of the whole process


@dataclass
class Answer:
    """What a new reader said to one question."""

    refused: str = ""
    before: tuple[Any, ...] = ()  # facts of the video, before its frames were read, and after
    after: tuple[Any, ...] = ()
    images: dict[int, bytes] = field(default_factory=dict)  # digests, by frame
    differing: set[int] = field(default_factory=set)  # frames that differ within the answer
    damage: str = ""
    warned: list[str] = field(default_factory=list)  # of another kind than damage


Ask = Callable[[VideoReader, Sequence[int]], Iterator[tuple[int, np.ndarray]]]


def at_once(reader: VideoReader, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    return zip(indices, reader.frames_at(indices).numpy(), strict=True)


def twice(reader: VideoReader, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    yield from at_once(reader, indices)
    yield from at_once(reader, indices)


def one_by_one(reader: VideoReader, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    for index, image in reader.iter_frames(indices):
        yield index, image.numpy()


def check(case: Case) -> Iterator[str | Verdict]:
    """Ask for the frames of a file in many ways.

    Yields:
        The name of each question before it is asked, so that it is known where the process ends; then the verdict.
    """
    verdict = Verdict()
    _forget_peak()
    try:
        yield from _questions(case, verdict)
    except Exception as error:
        verdict.failures.append(f"foreign exception {type(error).__name__} in {_innermost(error)}: {error}"[:300])
    verdict.bytes = _peak()
    yield verdict


def _questions(case: Case, verdict: Verdict) -> Iterator[str]:
    yield (name := "all frames, one by one")
    whole = _answer(verdict, name, partial(read, case.path, one_by_one, affordable))
    verdict.outcome = "refused" if whole.refused else "read with damage" if whole.damage else "read"
    verdict.reason, verdict.frames = whole.refused, whole.before[0] if whole.before else 0
    known, dice = sorted(whole.images) or [0], random.Random(0)
    some = sorted(dice.sample(known, min(6, len(known))))
    content = case.path.read_bytes()
    others: dict[str, Callable[[], Answer]] = {
        CONTENT: partial(read, content, at_once, known),
        "automatic threads": partial(read, case.path, at_once, known, threads=0),
        "two threads, packets read again": partial(read, case.path, at_once, some, threads=2, kept=False),
        "reversed with repeats": partial(read, case.path, at_once, [*some[::-1], some[0], some[-1]]),
        "twice in a row, packets read again": partial(read, case.path, twice, some, kept=False),
        "one frame": partial(read, case.path, at_once, [dice.choice(some)]),
        "the last frame, packets read again": partial(read, case.path, at_once, known[-1:], kept=False),
        "another frame, packets read again": partial(read, case.path, at_once, [dice.choice(known)], kept=False),
    }
    for name, question in others.items():
        yield name
        _compare(whole, _answer(verdict, name, question), name, verdict)
    if case.path.suffix in IMAGE_SUFFIXES:
        yield (name := "a folder of two of it")
        with TemporaryDirectory() as folder:
            for copy in "01":
                shutil.copy(case.path, Path(folder, copy + case.path.suffix))
            _answer(verdict, name, partial(read, Path(folder), at_once, [0, 1]))
    differing = [text for text in verdict.failures if text.startswith(DIFFERING)]
    if differing and not case.sound and verdict.frames * math.prod(whole.before[3:5]) <= PIXELS:
        yield "plain decodes"
        if not is_repeatable(content):
            verdict.failures = [text for text in verdict.failures if text not in differing]
            verdict.outcome = "read, but FFmpeg itself gives other frames each time"
    if _peak() > BYTES and math.prod(whole.before[3:5]) <= SMALL:
        verdict.failures.append("memory: over 600 MB")
    if case.sound:
        yield "a plain decode"
        decoded = decode(content, quarter_turns=case.quarter_turns)
        found = differences(whole, decoded, timed=case.timed)
        verdict.failures += [f"not as a plain decode, {text}" for text in found]


def is_repeatable(content: bytes) -> bool:
    """Whether plain decodes give the same frames each time; of damaged files some decoders leave memory unwritten."""
    found = set()
    fill = ctypes.CDLL(None).mallopt
    for value in (1, 85, 170):
        fill(M_PERTURB, value)  # what is allocated has other bytes each time
        try:
            images = decode(content).images
        except CANNOT:  # a file that a plain decode does not open
            images = []
        found.add(blake2b(b"".join(image.tobytes() for image in images)).digest())
    fill(M_PERTURB, 0)
    return len(found) == 1


def read(
    source: Path | bytes,
    ask: Ask,
    indices: Sequence[int] | Callable[[VideoReader], Sequence[int]],
    *,
    threads: int = 1,
    kept: bool = True,
) -> Answer:
    """Ask a new reader for frames; `kept`: it may keep the packets of a short video. Raises what is no `VideoError`."""
    answer = Answer()
    with (
        warnings.catch_warnings(record=True) as caught,
        patch.object(groups, "KEPT_BYTES", groups.KEPT_BYTES if kept else 0),
        patch.object(groups, "WORTH_A_THREAD", 0),
    ):
        warnings.simplefilter("always")
        try:
            with VideoReader(source, threads=threads, name="THE FILE") as reader:
                answer.before = facts(reader)
                for index, image in ask(reader, indices(reader) if callable(indices) else indices):
                    found = blake2b(np.ascontiguousarray(image), digest_size=16).digest()
                    if ask is not one_by_one and answer.images.get(index, found) != found:
                        answer.differing.add(index)
                    answer.images[index] = found  # of those that come one by one, later ones count
                answer.after, answer.damage = facts(reader), reader.damage
        except VideoError as error:
            answer.refused = str(error)
    answer.warned = [str(warning.message) for warning in caught if warning.category is not VideoWarning]
    return answer


def facts(reader: VideoReader) -> tuple[Any, ...]:
    """What a video is, whatever was read of it: length, rate, duration, height, width, frames at some moments."""
    moments = [reader.index_at(reader.duration * share) for share in MOMENTS]
    return len(reader), reader.rate, reader.duration, reader.height, reader.width, *moments


def affordable(reader: VideoReader) -> Sequence[int]:
    """All frames, or as many as one question may ask for, evenly spread."""
    count = max(PIXELS // (reader.width * reader.height), 2)
    if len(reader) <= count:
        return range(len(reader))
    return sorted({i * (len(reader) - 1) // (count - 1) for i in range(count)})


def _answer(verdict: Verdict, name: str, question: Callable[[], Answer]) -> Answer:
    """Ask, measure and judge what holds for any answer."""
    start, clock = time.process_time(), time.monotonic()
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(start) + ENDED_SECONDS, hard))
    answer = question()
    seconds = time.process_time() - start
    verdict.seconds = max(verdict.seconds, seconds)
    failures = []
    if seconds > SECONDS and math.prod(answer.before[3:5]) <= SMALL:
        failures.append(f"time: {seconds:.1f} s")
    if time.monotonic() - clock > WAITING_SECONDS + 3 * seconds:
        failures.append(f"waiting: {seconds:.1f} s of the processor in {time.monotonic() - clock:.0f} s")
    if answer.refused and ("\n" in answer.refused or "\r" in answer.refused or not answer.refused.isprintable()):
        failures.append("an error of more than one line")
    if answer.warned:
        failures.append(f"a foreign warning: {answer.warned[0]}")
    if answer.differing:
        failures.append(f"{DIFFERING}: {sorted(answer.differing)[:3]} in one answer")
    if answer.before and answer.after and answer.before != answer.after:
        failures.append(f"facts change by reading: {answer.before} then {answer.after}")
    if answer.before and not (0 < answer.before[1] < math.inf and answer.before[0] > 0):
        failures.append(f"facts of no video: {answer.before}")
    verdict.failures += [f"{failure} ({name})" for failure in failures]
    return answer


def _compare(whole: Answer, answer: Answer, name: str, verdict: Verdict) -> None:
    """The same frames and facts, whatever was asked; the answer is about frames that the whole has, if it has any."""
    # FFmpeg seeks in a damaged file otherwise than in its content
    of_content = name == CONTENT and (answer.refused or whole.refused)
    if not of_content and bool(answer.refused) != bool(whole.refused and not whole.images):
        said = f"{whole.refused or 'read'}, but {answer.refused or 'read'}"
        verdict.failures.append(f"depends on the question, read or not: {said} ({name})")
    if not of_content and whole.before and answer.before and whole.before != answer.before:
        verdict.failures.append(f"facts depend on the question: {whole.before}, but {answer.before} ({name})")
    wrong = [index for index, image in answer.images.items() if whole.images.get(index, image) != image]
    if wrong:
        verdict.failures.append(f"{DIFFERING}: {wrong[:3]} of {len(whole.images)} ({name})")


def differences(whole: Answer, decoded: Decoded, *, timed: bool) -> Iterator[str]:
    """What a plain decode of a sound file says otherwise; `timed`: of its times too."""
    if whole.refused:
        yield f"refused: {whole.refused}"
        return
    count = len(decoded.images)
    if whole.before[0] != count:
        yield f"count: {whole.before[0]} frames, not {count}"
    images = [
        blake2b(np.ascontiguousarray(image.transpose(2, 0, 1)), digest_size=16).digest() for image in decoded.images
    ]
    wrong = [index for index, image in whole.images.items() if index < count and image != images[index]]
    if wrong:
        yield f"frames: {wrong[:3]} ({len(wrong)} of {count}) differ"
    if not timed:
        return
    if whole.damage and not decoded.errors:
        yield f"called damaged: {whole.damage}"
    times = [moment for moment in decoded.times if moment is not None]
    if len(times) == count > 2 and all(one < other for one, other in pairwise(times)):
        rate = (count - 1) / (times[-1] - times[0])
        if abs(whole.before[1] / rate - 1) > 0.01:
            yield f"rate: {whole.before[1]:.4g} frames/s, by the times {rate:.4g}"
        shown = [
            sum(times[0] + whole.before[2] * share + ROUNDING >= moment for moment in times) - 1 for share in MOMENTS
        ]
        if [*whole.before[5:]] != shown:
            yield f"times: frames {[*whole.before[5:]]} at some moments, by the times {shown}"


def _innermost(error: Exception) -> str:
    """The innermost function of the package that an exception went through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/uniformerv2/" in frame.filename]
    return f"{Path(frames[-1].filename).name} {frames[-1].name}" if frames else "the check itself"


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Bytes that this process held at most since the last `_forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
