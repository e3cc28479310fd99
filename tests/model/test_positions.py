"""Position embeddings against their definitions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from models import DINOV3, randn
from uniformerv2.model.config import RotaryEmbedding
from uniformerv2.model.positions import (
    TokenLayout,
    apply_rotary,
    interpolate_position_embedding,
    interpolate_relative_bias,
    relative_position_index,
    rotary_table,
)

CPU = torch.device("cpu")
EVA = RotaryEmbedding()


def test_position_embeddings_are_interpolated_along_their_axes() -> None:
    positions = torch.cat([torch.full((1, 2), -7.0), torch.cartesian_prod(torch.arange(4.0), torch.arange(6.0))])
    wider = interpolate_position_embedding(positions, (4, 6), (4, 12))
    assert torch.equal(wider[0], positions[0])
    grid = wider[1:].view(4, 12, 2)

    def cubic(x: float, a: float = -0.75) -> float:  # the kernel of Keys (1981)
        x = abs(x)
        return (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a

    for new, (centre, first) in {4: (1.75, 0), 5: (2.25, 1), 6: (2.75, 1), 7: (3.25, 2)}.items():
        expected = sum(old * cubic(centre - old) for old in range(first, first + 4))
        torch.testing.assert_close(grid[:, new, 1], torch.full((4,), expected))
    torch.testing.assert_close(grid[..., 0], torch.arange(4.0)[:, None].expand(4, 12))  # rows stay
    assert interpolate_position_embedding(positions, (4, 6), (4, 6)) is positions


@pytest.mark.parametrize("rotary", [EVA, replace(EVA, offset=1.0, columns_first=True), replace(EVA, halves=True)])
def test_rotary_embeddings_rotate_pairs_of_channels_as_complex_numbers(rotary: RotaryEmbedding) -> None:
    grid, channels = (3, 4), 16
    layout = TokenLayout(1, grid, rotary_table(rotary, grid, channels, CPU))
    x = randn(2, 5, 1 + 12 + 2, channels)
    rotated = apply_rotary(x, layout, halves=rotary.halves)
    assert torch.equal(rotated[:, :, 0], x[:, :, 0])
    assert torch.equal(rotated[:, :, 13:], x[:, :, 13:])
    for patch in range(12):
        row, column = (16 * (index + rotary.offset) / size for index, size in zip(divmod(patch, 4), grid, strict=True))
        positions = [column] * 4 + [row] * 4 if rotary.columns_first else [row] * 4 + [column] * 4
        angles = torch.tensor([p * 10000 ** (-(pair % 4) / 4) for pair, p in enumerate(positions)])
        pairs = [(c, c + 8) if rotary.halves else (2 * c, 2 * c + 1) for c in range(8)]
        before, after = (
            torch.stack([torch.complex(t[..., a], t[..., b]) for a, b in pairs], -1)
            for t in (x[:, :, 1 + patch], rotated[:, :, 1 + patch])
        )
        torch.testing.assert_close(after, before * torch.polar(torch.ones(8), angles), atol=1e-5, rtol=1e-4)


def test_positions_of_dinov3_are_one_turn_each_way_from_the_centre() -> None:
    cosine, sine = rotary_table(DINOV3, (2, 5), 16, CPU)
    for patch in range(10):
        row, column = divmod(patch, 5)
        # coordinates in [-1, 1], half a patch inside; periods from 1 to 100 ** (3 / 4)
        coordinates = [2 * (row + 0.5) / 2 - 1] * 4 + [2 * (column + 0.5) / 5 - 1] * 4
        angles = [2 * math.pi * c / 100 ** ((pair % 4) / 4) for pair, c in enumerate(coordinates)]
        torch.testing.assert_close(cosine[patch], torch.tensor(angles * 2).cos(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(sine[patch], torch.tensor(angles * 2).sin(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("classes", [0, 1])
def test_relative_biases_belong_to_distances(classes: int) -> None:
    rows, columns = 3, 4
    table = torch.tensor([100 * down + across for down in range(-2, 3) for across in range(-3, 4)] + [901, 902, 903])
    bias = table[relative_position_index((rows, columns), classes, CPU)]
    for query in range(rows * columns):
        for key in range(rows * columns):
            (r, c), (s, d) = divmod(query, columns), divmod(key, columns)
            assert bias[classes + query, classes + key] == 100 * (r - s) + (c - d)
    if classes:
        assert (bias[0, 1:] == 901).all()  # from the class token
        assert (bias[1:, 0] == 902).all()  # to it
        assert bias[0, 0] == 903


def test_relative_biases_are_interpolated_over_distances() -> None:
    distances = torch.cartesian_prod(torch.arange(-3.0, 4), torch.arange(-3.0, 4))
    table = torch.cat([distances, torch.full((3, 2), 7.0)])
    assert interpolate_relative_bias(table, (4, 4), (4, 4)) is table
    wider = interpolate_relative_bias(table, (4, 4), (4, 8))
    assert torch.equal(wider[-3:], table[-3:])
    grid = wider[:-3].view(7, 15, 2)
    torch.testing.assert_close(grid[..., 0], torch.arange(-3.0, 4)[:, None].expand(7, 15), atol=1e-5, rtol=1e-5)
    # linear to within the overshoot of torch's cubic, and opposite distances stay opposite
    torch.testing.assert_close(grid[:, 4:11, 1], (torch.arange(-3.0, 4) * 7 / 15).expand(7, 7), atol=0.03, rtol=0)
    torch.testing.assert_close(grid[..., 1], -grid[..., 1].flip(1), atol=1e-5, rtol=1e-5)
