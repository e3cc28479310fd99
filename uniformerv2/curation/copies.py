"""Which videos are copies of others, though the files differ.

A video is a near copy if its thumbnails agree everywhere: mean luma of the cells of a 16 x 16 grid in three frames,
where no cell may differ by more than `TOLERANCE` grey levels. The largest difference decides, and not how many cells
differ, as in the usual perceptual hashes: actions are often filmed before one unmoving background, and what tells them
apart is a person that fills a few cells. Of the 90 Weizmann clips, a copy at the
strongest compression differs by at most 16 levels in its worst cell and two clips by at least 20, while of the bits of
their difference hashes (3 x 64) up to 28 differ between copies, and 1 between clips (docs/datasets.md).

Comparing all pairs would take too long, so thumbnails are kept in a tree whose nodes divide them by the luma of a cell.
Copies can only be where that cell is within the tolerance.
"""

from __future__ import annotations

import numpy as np

TOLERANCE = 16  # grey levels, of 256

_NODE_SIZE = 24  # thumbnails that a node holds before it is divided


def near_copies(thumbnails: np.ndarray) -> list[int]:
    """For each video the first video that it is a copy of, or itself.

    Later videos are only compared with videos that are no copies, so a million copies of one video are no more work
    than any other million. Thumbnails flatter than the tolerance, such as those of a black video, show nothing to
    compare and are no copies.

    Args:
        thumbnails: uint8 (videos, cells).

    Returns:
        An index for each, at most its own; where it is smaller, that video is itself the copy of no other.
    """
    first = list(range(len(thumbnails)))
    tree = _Node([])
    for index, cells in enumerate(thumbnails):
        if np.ptp(cells) <= TOLERANCE:
            continue
        luma = cells.tolist()
        near = np.array(sorted(tree.near(luma)), dtype=int)
        apart = np.maximum(thumbnails[near], cells) - np.minimum(thumbnails[near], cells)  # uint8 has no negatives
        copies = near[(apart <= TOLERANCE).all(1)]
        if len(copies):
            first[index] = int(copies[0])
        else:
            tree.add(index, luma, thumbnails)
    return first


class _Node:
    """Thumbnails, or two nodes that divide them."""

    __slots__ = ("cell", "high", "limit", "low", "members")

    def __init__(self, members: list[int]) -> None:
        self.members = members
        self.cell = -1  # that divides; -1: none does
        self.limit = 0  # thumbnails up to this luma are in `low`
        self.low = self.high = self

    def near(self, cells: list[int]) -> list[int]:
        """Thumbnails among which are all that agree with these cells."""
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

    def add(self, index: int, cells: list[int], thumbnails: np.ndarray) -> None:
        node = self
        while node.cell >= 0:
            node = node.low if cells[node.cell] <= node.limit else node.high
        node.members.append(index)
        if len(node.members) > _NODE_SIZE:
            node._divide(thumbnails)

    def _divide(self, thumbnails: np.ndarray) -> None:
        """By the cell that varies most; there is one, as no member is a copy of another."""
        members = np.array(self.members)
        self.cell = int(thumbnails[members].std(0).argmax())
        lumas = thumbnails[members, self.cell]
        self.limit = min(int(np.median(lumas)), int(lumas.max()) - 1)  # so that neither half is empty
        self.low = _Node(members[lumas <= self.limit].tolist())
        self.high = _Node(members[lumas > self.limit].tolist())
        self.members = []
