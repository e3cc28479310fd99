"""Near copies of drawn pictures; of real videos in test_check.py."""

from __future__ import annotations

import numpy as np

from uniformerv2.curation.copies import TOLERANCE, near_copies

CELLS = 3 * 16 * 16


def draw(count: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(40, 200, (count, CELLS)).astype(np.uint8)


def compared_with_all(pictures: np.ndarray) -> list[int]:
    """The definition: the first picture, among those that are no copies, that is within the tolerance everywhere."""
    first: list[int] = []
    for index, picture in enumerate(pictures.astype(int)):
        near = (one for one in range(index) if first[one] == one and abs(pictures[one] - picture).max() <= TOLERANCE)
        first.append(next(near, index))
    return first


def test_the_worst_cell_decides() -> None:
    original = draw(1)[0]
    everywhere = original + TOLERANCE
    in_one_cell = original.copy()
    in_one_cell[300] -= TOLERANCE + 1
    assert near_copies(np.stack([original, everywhere, in_one_cell])) == [0, 0, 2]


def test_luma_does_not_wrap_around() -> None:
    black = np.zeros(CELLS, np.uint8)
    black[:300] = 255
    nearly = np.where(black == 0, 10, 250).astype(np.uint8)
    inverted = 255 - black
    assert near_copies(np.stack([black, nearly, inverted])) == [0, 0, 2]


def test_flat_pictures_are_nobodys_copies() -> None:
    flat = np.full((3, CELLS), 16, np.uint8)
    flat[:, 5] += TOLERANCE
    assert near_copies(flat) == [0, 1, 2]
    flat[:, 5] += 1
    assert near_copies(flat) == [0, 0, 0]


def test_nothing_has_no_copies() -> None:
    assert near_copies(np.empty((0, CELLS), np.uint8)) == []


def test_the_tree_finds_what_comparing_all_finds() -> None:
    rng = np.random.default_rng(1)
    # few different values, and copies of copies that drift out of the tolerance: many cells stand at a limit
    pictures = rng.choice([40, 60, 76, 92], (400, CELLS)).astype(np.uint8)
    pictures[:, 8:] = pictures[0, 8:]
    drift = (pictures[rng.integers(0, 400, 200)] + rng.integers(-9, 10, (200, CELLS))).astype(np.uint8)
    pictures = np.concatenate([pictures, drift])[rng.permutation(600)]
    found = near_copies(pictures)
    assert found == compared_with_all(pictures.astype(int))
    assert len(set(found)) < 500


def test_a_million_copies_of_one_are_no_work() -> None:
    one = draw(1)
    assert near_copies(one.repeat(20_000, 0)) == [0] * 20_000
