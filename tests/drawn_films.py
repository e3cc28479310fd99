"""Films of coloured stretches between dark pauses: what a localiser of a tiny model learns in seconds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers import coloured, noise, write_video
from uniformerv2.data.annotations import Annotation
from uniformerv2.tasks.localisation.recipe import LocaliserRecipe
from uniformerv2.tasks.localisation.training import LocaliserResult

COLOURS = ("red", "green", "blue")  # by number, as `coloured` has them
RATE = 10  # frames/s

Stretch = tuple[int | None, int]  # colour, None for a pause, and how many frames


def drawn_stretches(seed: int, spans: int = 5) -> list[Stretch]:
    dice = random.Random(seed)
    stretches: list[Stretch] = [(None, dice.randint(8, 40))]
    for _ in range(spans):
        stretches += [(dice.randrange(3), dice.randint(15, 60)), (None, dice.randint(8, 40))]
    return stretches


def frames_of(stretches: Sequence[Stretch], *, still: bool = False) -> list[np.ndarray]:
    """Frames of noise in their colours; `still`: equal frames within a stretch."""
    frames: list[np.ndarray] = []
    for colour, count in stretches:
        seed, drawn = len(frames), 1 if still else count
        new = list(noise(drawn, brightest=80, seed=seed) if colour is None else coloured([colour] * drawn, seed=seed))
        frames += new * count if still else new
    return frames


def spans_of(path: Path, stretches: Sequence[Stretch], split: str | None = None) -> list[Annotation]:
    rows, first = [], 0
    for colour, count in stretches:
        if colour is not None:
            rows.append(Annotation(path, COLOURS[colour], first / RATE, (first + count) / RATE, split))
        first += count
    return rows


def write_film(path: Path, stretches: Sequence[Stretch], split: str | None = None) -> list[Annotation]:
    """Write a film; returns its rows."""
    write_video(path, frames_of(stretches), rate=RATE)
    return spans_of(path, stretches, split)


@dataclass(frozen=True)
class Trained:
    """A run with the arguments that it was given."""

    model: Path
    rows: list[Annotation]
    recipe: LocaliserRecipe
    result: LocaliserResult
    cache: Path
