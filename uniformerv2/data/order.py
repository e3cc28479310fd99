"""The order of the videos of a training epoch, and the process that each goes to."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TypeVar

from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Keys (row, draw) of a training epoch: an order that (seed, epoch) decides, draws that (seed, epoch, row) decide.

    Every process gets as many full batches as the others. Step k of all processes together is batch k of one process
    that takes their batches as one, so a run does not depend on how it is divided. Without weights, each row comes at
    most once, and rows that fill no step are dropped, other rows in each epoch: none is dropped again before all others
    were. Fewer rows than one step are divided evenly instead.

    Call `set_epoch` before each epoch, on the sampler itself or as `loader.sampler.set_epoch(epoch)`.

    Args:
        length: rows of the dataset.
        seed: see above.
        batch_size: rows of a batch of one process.
        rank: this process, in [0, world).
        world: processes that share an epoch; at most `length`.
        views: draws of each row that take turns, one an epoch; 0: every epoch has draws of its own.
        weights: of each row: it comes in proportion to its weight, rounded down or up by chance, in an epoch of the
            same length. A row that comes again in an epoch has another draw, or the next of its views.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        batch_size: int = 1,
        rank: int = 0,
        world: int = 1,
        views: int = 0,
        weights: Sequence[float] = (),
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank must lie in [0, world={world}), got {rank}")
        if length < world:
            raise ValueError(f"{length} videos cannot be divided among {world} processes")
        if weights and (len(weights) != length or min(weights) <= 0):
            raise ValueError(f"need a positive weight for each of {length} rows, got {len(weights)}")
        self.length = length
        self.seed = seed
        self.batch_size = min(batch_size, length // world)
        self.rank, self.world = rank, world
        self.views = views
        self.weights = weights
        self.num_dropped = length % (self.batch_size * world)
        """Rows that an epoch leaves out."""
        self.epoch = 0
        self.first_batch = 0

    def set_epoch(self, epoch: int, *, first_batch: int = 0) -> None:
        """Choose the epoch, and how many of its first batches the next iteration skips."""
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        """Keys of a whole epoch for this process."""
        return (self.length - self.num_dropped) // self.world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        seen = Counter[int]()
        keys = []
        for row in self._drawn() if self.weights else self._order():
            keys.append(self.key(row, self.epoch, repeat=seen[row]))
            seen[row] += 1
        step = self.batch_size * self.world
        for start in range(self.first_batch * step + self.rank * self.batch_size, len(keys), step):
            yield from keys[start : start + self.batch_size]

    def key(self, row: int, epoch: int, *, repeat: int = 0) -> tuple[int, int]:
        """The key of a row in an epoch, the first time or once more."""
        view = f"{(epoch + repeat) % self.views}" if self.views else f"{epoch}.{repeat}" if repeat else f"{epoch}"
        return row, random.Random(f"{self.seed} {view} {row}").getrandbits(32)

    def _order(self) -> list[int]:
        """The rows that are not dropped, shuffled."""
        first = self.epoch * self.num_dropped  # in a fixed cycle through all rows
        cycle = random.Random(f"{self.seed}").sample(range(self.length), self.length) if self.num_dropped else []
        out = {cycle[(first + number) % self.length] for number in range(self.num_dropped)}
        rows = [row for row in range(self.length) if row not in out]
        return random.Random(f"{self.seed} {self.epoch}").sample(rows, len(rows))

    def _drawn(self) -> list[int]:
        """Rows by their weights: those at equally distant points on a line where the shuffled rows lie end to end."""
        chance = random.Random(f"{self.seed} {self.epoch}")
        rows = chance.sample(range(self.length), self.length)
        ends = list(accumulate(self.weights[row] for row in rows))
        start, distance = chance.random(), ends[-1] / self.length
        places = (bisect_right(ends, (start + number) * distance) for number in range(self.length))
        drawn = [rows[min(place, self.length - 1)] for place in places]  # rounding may reach beyond the end
        return chance.sample(drawn, self.length - self.num_dropped)


Label = TypeVar("Label", bound=Hashable)


def inverse_frequencies(labels: Iterable[Label] | Mapping[Label, float], *, power: float = 1.0) -> dict[Label, float]:
    """The weight of each label: 1 / count**power, so scaled that the mean over all rows is 1.

    Args:
        labels: of every row; or how many rows each has, on the average.
        power: 1: all labels weigh the same together. 0.5: together, they weigh as the square roots of their counts.
    """
    counts = Counter(labels)
    mean = sum(count ** (1 - power) for count in counts.values()) / counts.total()
    return {label: count**-power / mean for label, count in counts.items()}
