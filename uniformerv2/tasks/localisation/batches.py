"""Batches of embedded films, epoch by epoch: a `train.task.TrainingLoader`."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uniformerv2.tasks.localisation.films import EmbeddedFilm
from uniformerv2.tasks.localisation.targets import SpanTargets
from uniformerv2.video.clips import SharedClips


@dataclass(frozen=True)
class FilmBatch:
    """Films, or stretches of them, padded to the longest."""

    paths: tuple[str, ...]
    films: Tensor | tuple[SharedClips, ...]
    """float32 (films, windows, width): embeddings, 0 behind the end of a film; or the clips of each film's windows."""
    windows: tuple[int, ...]  # of each film
    spans: tuple[SpanTargets, ...]  # of each film; they may reach beyond it, or lie outside

    @property
    def valid(self) -> Tensor:
        """bool (films, windows): whether a window lies in its film."""
        return torch.arange(max(self.windows)) < torch.tensor(self.windows)[:, None]


@dataclass
class FilmLoader:
    """Training batches: a function of seed, epoch and films.

    Of a film longer than `crop_windows` a stretch is taken, around a moment of one of its spans where it has any.
    """

    films: Sequence[EmbeddedFilm]
    classes: Mapping[str, int]  # numbers of the labels
    crop_windows: int
    batch_size: int
    seed: int
    epoch: int = 1
    first_batch: int = 0

    def set_epoch(self, epoch: int, *, first_batch: int = 0) -> None:
        """See `TrainingLoader`."""
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        return math.ceil(len(self.films) / self.batch_size)

    def __iter__(self) -> Iterator[FilmBatch]:
        return map(self.batch, self.stretches())

    def stretches(self) -> Iterator[list[tuple[EmbeddedFilm, int]]]:
        """Of each batch that is left: films, and the windows from which on they are taken."""
        order = list(range(len(self.films)))
        random.Random(f"{self.seed} {self.epoch} order").shuffle(order)
        for first in range(self.first_batch * self.batch_size, len(order), self.batch_size):
            yield [(self.films[number], self._first(number)) for number in order[first:][: self.batch_size]]

    def batch(self, stretches: Sequence[tuple[EmbeddedFilm, int]]) -> FilmBatch:
        """Films, each from a window on."""
        counts = tuple(min(film.windows - first, self.crop_windows) for film, first in stretches)
        pieces = [film.embeddings(first, count) for (film, first), count in zip(stretches, counts, strict=True)]
        return FilmBatch(
            tuple(film.path for film, _ in stretches),
            torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True),
            counts,
            tuple(span_targets(film, self.classes, first=first) for film, first in stretches),
        )

    def _first(self, number: int) -> int:
        """The first window of the stretch."""
        film = self.films[number]
        spare = film.windows - self.crop_windows
        if spare <= 0:
            return 0
        dice = random.Random(f"{self.seed} {self.epoch} {number}")
        if not film.spans:
            return dice.randint(0, spare)
        span = dice.choice(film.spans)
        moment = film.times.windows(dice.uniform(span.start, span.end))
        return min(max(0, round(moment - dice.uniform(0, self.crop_windows))), spare)


def span_targets(film: EmbeddedFilm, classes: Mapping[str, int], *, first: int = 0) -> SpanTargets:
    """The spans of a film as windows, counted from one of them."""
    ends = [[film.times.windows(seconds) - first for seconds in (span.start, span.end)] for span in film.spans]
    numbers = [classes[span.label] for span in film.spans]
    return SpanTargets(torch.tensor(ends, dtype=torch.float32).reshape(-1, 2), torch.tensor(numbers, dtype=torch.int64))
