"""Films with labelled spans, divided by people: made of a person's clips (Weizmann), or untrimmed (a room)."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from uniformerv2.data.annotations import Annotation
from uniformerv2.demo.motions import write_video
from uniformerv2.spans.span import Span
from uniformerv2.video.reader import VideoReader

RATE = 25  # frames/s of Weizmann's clips
PIECES = (1, 3)  # of a pause: how often it is cut, from and to
PIECE = (1.5, 3.5)  # seconds, from and to
SECONDS = (60, 120)  # of a film
STANDING = "bend"  # begins with a person who stands
PIECE_OF_SPAN = 2.0  # seconds: what the classifier of the room learns is cut into about these


@dataclass(frozen=True)
class People:
    """Who is on which side. The others train."""

    held_out: Sequence[str]
    chooses: Sequence[str]  # people to train on by whom the classifier is chosen
    absent: Sequence[str] = ()

    def side(self, person: str) -> str | None:
        """Of the films; None: neither."""
        if person in self.absent:
            return None
        return "test" if person in self.held_out else "train"

    def rehearsal(self) -> People:
        """The same without the people held out, in whose place are those who choose."""
        return People(self.chooses, self.chooses, (*self.absent, *self.held_out))


class Material(NamedTuple):
    """What there is to learn from and to be measured by."""

    clips: list[Annotation]  # for the classifier: of people to train on; some of them choose, split "val"
    films: list[Annotation]  # their spans; split "train" and "test"


def weizmann(videos: Path, folder: Path, people: People, *, count: int, seed: int, workers: int) -> Material:
    """So many films of each person, which have all of the person's clips in a drawn order.

    Before, between and after the clips somebody stands, cut into one to three pieces: the person, or another of the
    same side.
    """
    clips: dict[str, list[Path]] = {}
    for clip in sorted(videos.glob("*/*_*.avi")):
        clips.setdefault(clip.name.partition("_")[0], []).append(clip)
    tasks, sides = [], []
    for person in filter(people.side, clips):
        side = people.side(person)
        others = [one for one in clips if one != person and people.side(one) == side]
        standing = [next(clip for clip in clips[one] if STANDING in clip.name) for one in (person, *others)]
        for number in range(count):
            tasks.append((folder / f"{person}_{number}.mp4", clips[person], standing, f"{seed} {person} {number}"))
            sides.append(side)
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(max(1, workers), mp_context=get_context("spawn")) as pool:
        written = list(pool.map(write_film, *zip(*tasks, strict=True)))
    return Material(
        [
            Annotation(clip, clip.parent.name, split="val" if person in people.chooses else "train")
            for person, own in clips.items()
            if people.side(person) == "train" or person in people.chooses
            for clip in own
        ],
        [
            Annotation(task[0], span.label, span.start, span.end, split=side)
            for task, spans, side in zip(tasks, written, sides, strict=True)
            for span in spans
        ],
    )


def write_film(target: Path, clips: Sequence[Path], standing: Sequence[Path], seed: str) -> list[Span]:
    """Write the clips in a drawn order with pauses, unless that is done; returns their spans."""
    dice = random.Random(seed)
    stills = [frames_of(clip)[:1] for clip in standing]
    parts: list[np.ndarray] = []
    spans = []

    def pause() -> None:
        for _ in range(dice.randint(*PIECES)):
            still = dice.choice([stills[0], *stills])  # the first is the person's own
            parts.append(np.repeat(still, round(RATE * dice.uniform(*PIECE)), axis=0))

    for clip in dice.sample(clips, len(clips)):
        pause()
        parts.append(frames_of(clip))
        end = sum(map(len, parts)) / RATE
        spans.append(Span(end - len(parts[-1]) / RATE, end, clip.parent.name))
    pause()
    if target.is_file():  # of an earlier run: what was embedded belongs to this file
        return spans
    film = np.concatenate(parts)
    if not SECONDS[0] <= len(film) / RATE <= SECONDS[1]:
        raise ValueError(f"{target}: lasts {len(film) / RATE:.1f} s, not {SECONDS[0]} to {SECONDS[1]}")
    partial = target.with_name(f"partial_{target.name}")  # what is killed leaves no film that looks whole
    write_video(partial, film, rate=RATE)
    partial.rename(target)
    return spans


def frames_of(clip: Path) -> np.ndarray:
    """uint8 (frames, 3, height, width)."""
    with VideoReader(clip) as reader:
        return reader.frames_at(range(len(reader))).numpy()


def room(folder: Path, people: People) -> Material:
    """The untrimmed films of a folder with annotations.json, in ActivityNet's form with the person of each film.

    The classifier learns pieces of the spans of people to train on, as long as a window or so: a state that lasts has
    many moments, and no more than four of them.
    """
    database = json.loads((folder / "annotations.json").read_text())["database"]
    clips, films = [], []
    for name, film in sorted(database.items()):
        side, chooses = (people.side(film["person"][0]), film["person"][0] in people.chooses)
        path = folder / "untrimmed" / f"{name}.mp4"
        for row in film["annotations"] if side else ():
            start, end = row["segment"]
            films.append(Annotation(path, row["label"], start, end, split=side))
            if side == "train" or chooses:
                count = min(4, max(1, round((end - start) / PIECE_OF_SPAN)))
                for middle in np.linspace(start, end, 2 * count + 1)[1::2].tolist():
                    half = min(PIECE_OF_SPAN, end - start) / 2
                    split = "val" if chooses else "train"
                    clips.append(Annotation(path, row["label"], middle - half, middle + half, split=split))
    sides = [{row.label for row in films if row.split == side} for side in ("train", "test")]
    both = sides[0] & sides[1] & {row.label for row in clips if row.split == "train"}
    return Material(*([row for row in rows if row.label in both] for rows in (clips, films)))
