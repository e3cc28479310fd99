"""Which videos are copies of others, though no byte of the files is the same.

A video counts as a near copy if its picture agrees everywhere: mean luma of the cells of a 16 x 16 grid in the first,
middle and last wanted frame, where no cell may differ by more than `TOLERANCE` grey levels. The largest difference
decides, and not how many cells differ, as in the usual perceptual hashes: actions are often filmed before one unmoving
background, and what tells them apart is a person that fills a few cells. Of the 90 Weizmann clips, a copy at the
strongest compression differs by at most 16 levels in its worst cell and two clips by at least 20, while of the bits of
their difference hashes (3 x 64) up to 28 differ between copies, and 1 between clips (docs/datasets.md).

Comparing all with all would take too long, so pictures are kept in a tree whose nodes divide them by the luma of one
cell. Copies of a picture can only be where that cell is within the tolerance.
"""

from __future__ import annotations

import numpy as np

TOLERANCE = 16  # grey levels, of 256

_CROWD = 24  # pictures that a node holds before it divides them


def near_copies(pictures: np.ndarray) -> list[int]:
    """For each picture the first one that it is a copy of, or itself.

    A picture that is the copy of none stands for all its copies: later ones are only compared with it, so a million
    copies of one video are no more work than any other million. A picture flatter than the tolerance, such as of a
    black video, shows nothing to compare and is nobody's copy.

    Args:
        pictures: uint8 (videos, cells).

    Returns:
        An index for each, at most its own; where it is smaller, that picture is itself the copy of no other.
    """
    first = list(range(len(pictures)))
    tree = _Node([])
    for index, picture in enumerate(pictures):
        if np.ptp(picture) <= TOLERANCE:
            continue
        cells = picture.tolist()
        near = np.array(sorted(tree.near(cells)), dtype=int)
        apart = np.maximum(pictures[near], picture) - np.minimum(pictures[near], picture)  # uint8 has no negatives
        copies = near[(apart <= TOLERANCE).all(1)]
        if len(copies):
            first[index] = int(copies[0])
        else:
            tree.add(index, cells, pictures)
    return first


class _Node:
    """Pictures, or two nodes that divide them."""

    __slots__ = ("cell", "high", "limit", "low", "members")

    def __init__(self, members: list[int]) -> None:
        self.members = members
        self.cell = -1  # that decides; -1: not divided
        self.limit = 0  # pictures up to this luma are in `low`
        self.low = self.high = self

    def near(self, cells: list[int]) -> list[int]:
        """Pictures among which are all that agree with these cells."""
        found: list[int] = []
        nodes = [self]
        while nodes:
            node = nodes.pop()
            if node.cell < 0:
                found += node.members
                continue
            if cells[node.cell] - TOLERANCE <= node.limit:
                nodes.append(node.low)
            if cells[node.cell] + TOLERANCE > node.limit:
                nodes.append(node.high)
        return found

    def add(self, index: int, cells: list[int], pictures: np.ndarray) -> None:
        node = self
        while node.cell >= 0:
            node = node.low if cells[node.cell] <= node.limit else node.high
        node.members.append(index)
        if len(node.members) > _CROWD:
            node._divide(pictures)

    def _divide(self, pictures: np.ndarray) -> None:
        """By the cell that varies most; there is one, as no member is a copy of another."""
        members = np.array(self.members)
        self.cell = int(pictures[members].std(0).argmax())
        lumas = pictures[members, self.cell]
        self.limit = min(int(np.median(lumas)), int(lumas.max()) - 1)  # so that neither half is empty
        self.low = _Node(members[lumas <= self.limit].tolist())
        self.high = _Node(members[lumas > self.limit].tolist())
        self.members = []
