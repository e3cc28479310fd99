"""The order of the videos of a training epoch, and the process that each goes to."""

from __future__ import annotations

import random
from collections.abc import Iterator

from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Keys (row, draw) of a training epoch: an order that (seed, epoch) decides, draws that (seed, epoch, row) decide.

    Every process gets as many full batches as the others, and each row comes at most once. Step k of all processes
    together is batch k of one process that takes their batches as one, so a run does not depend on how it is divided.
    Rows that fill no step are dropped, other rows in each epoch: none is dropped again before all others were. Fewer
    rows than one step are divided evenly instead.

    Call `set_epoch` before each epoch, on the sampler itself or as `loader.sampler.set_epoch(epoch)`.

    Args:
        length: rows of the dataset.
        seed: see above.
        batch_size: rows of a batch of one process.
        rank: this process, in [0, world).
        world: processes that share an epoch; at most `length`.
        views: draws of each row that take turns, one an epoch; 0: every epoch has draws of its own.
    """

    def __init__(
        self, length: int, *, seed: int, batch_size: int = 1, rank: int = 0, world: int = 1, views: int = 0
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank must lie in [0, world={world}), got {rank}")
        if length < world:
            raise ValueError(f"{length} videos cannot be divided among {world} processes")
        self.length = length
        self.seed = seed
        self.batch_size = min(batch_size, length // world)
        self.rank, self.world = rank, world
        self.views = views
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
        order = self._order()
        step = self.batch_size * self.world
        for start in range(self.first_batch * step + self.rank * self.batch_size, len(order), step):
            for row in order[start : start + self.batch_size]:
                yield self.key(row, self.epoch)

    def key(self, row: int, epoch: int) -> tuple[int, int]:
        """The key of a row in an epoch."""
        view = epoch % self.views if self.views else epoch
        return row, random.Random(f"{self.seed} {view} {row}").getrandbits(32)

    def _order(self) -> list[int]:
        """The rows that are not dropped, shuffled."""
        first = self.epoch * self.num_dropped  # in a fixed cycle through all rows
        cycle = random.Random(f"{self.seed}").sample(range(self.length), self.length) if self.num_dropped else []
        out = {cycle[(first + number) % self.length] for number in range(self.num_dropped)}
        rows = [row for row in range(self.length) if row not in out]
        return random.Random(f"{self.seed} {self.epoch}").sample(rows, len(rows))
