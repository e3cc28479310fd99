"""The layout of the tokens of a frame, and absolute, relative and rotary position embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from uniformerv2.model.config import RotaryEmbedding


@dataclass(frozen=True)
class TokenLayout:
    """The order of the tokens of a frame: class token, patches row by row, registers.

    Registers have no position in space or time: they take part in the spatial attention only, not in the local and
    global aggregators.
    """

    class_tokens: int  # 1, or 0 without a class token
    grid: tuple[int, int]  # rows and columns of patches
    rotary: tuple[Tensor, Tensor] | None = None  # cosines and sines, (patches, channels of a head) each
    relative_index: Tensor | None = None  # (tokens, tokens): rows of a relative bias

    @property
    def patches(self) -> slice:
        """The patches among the tokens of a frame."""
        return slice(self.class_tokens, self.spatial_tokens)

    @property
    def spatial_tokens(self) -> int:
        """The number of class tokens and patches."""
        return self.class_tokens + self.grid[0] * self.grid[1]

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class tokens, patches and registers of (batch, frames, tokens, width).

        Not slices: the gradient of a slice is a tensor of zeros first.
        """
        sizes = [self.class_tokens, self.grid[0] * self.grid[1], tokens.shape[2] - self.spatial_tokens]
        first, patches, registers = tokens.split(sizes, dim=2)
        return first, patches, registers


def interpolate_position_embedding(positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Position embedding for another grid, bicubically; that of the class token is unchanged.

    Args:
        positions: (class tokens + old patches, width), class token first.
        old_grid, new_grid: patches per column and per row.

    Returns:
        (class tokens + new patches, width).
    """
    if old_grid == new_grid:
        return positions
    first, patches = positions.tensor_split([positions.shape[0] - old_grid[0] * old_grid[1]])
    return torch.cat([first, interpolate_grid(patches.unflatten(0, old_grid), new_grid).flatten(0, 1)])


def interpolate_grid(grid: Tensor, new: tuple[int, int]) -> Tensor:
    """(rows, columns, channels) -> (new rows, new columns, channels), bicubically."""
    planes = grid.permute(2, 0, 1)[None].float()
    planes = F.interpolate(planes, size=new, mode="bicubic", align_corners=False)
    return planes[0].permute(1, 2, 0).to(grid.dtype)


def interpolate_relative_bias(table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Relative bias for another grid, bicubically over the distances between patches; other rows are unchanged.

    Args:
        table: ((2·rows - 1)·(2·columns - 1) + 3, heads), the last three from, to and within the class token.
        old_grid, new_grid: patches per column and per row.
    """
    if old_grid == new_grid:
        return table
    old, new = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (old_grid, new_grid))
    patches = interpolate_grid(table[:-3].unflatten(0, old), new).flatten(0, 1)
    return torch.cat([patches, table[-3:]])


def relative_position_index(grid: tuple[int, int], class_tokens: int, device: torch.device) -> Tensor:
    """The row of a relative bias for each pair of tokens: (tokens, tokens), query by key."""
    rows, columns = grid
    row, column = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).T  # (patches,) each
    down, across = row[:, None] - row + rows - 1, column[:, None] - column + columns - 1
    index = down * (2 * columns - 1) + across
    if class_tokens:
        distances = (2 * rows - 1) * (2 * columns - 1)
        index = F.pad(index, (1, 0, 1, 0))
        index[0, :], index[:, 0], index[0, 0] = distances, distances + 1, distances + 2
    return index.to(device)


def rotary_table(
    rotary: RotaryEmbedding, grid: tuple[int, int], channels: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines that rotate the channels of a head: (patches, channels) each, float32."""
    pairs = channels // 4  # of rows, and of columns
    frequencies = rotary.base ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    row, column = (
        (rotary.start + span * (torch.arange(length, dtype=torch.float64) + rotary.offset) / length)
        for length, span in zip(grid, rotary.span, strict=True)
    )
    axes = list(torch.meshgrid(row, column, indexing="ij"))
    if rotary.columns_first:
        axes.reverse()
    # (rows, columns, 2, pairs) -> (patches, channels / 2)
    angles = (torch.stack(axes, -1)[..., None] * frequencies).flatten(2).flatten(0, 1)
    angles = angles.repeat(1, 2) if rotary.halves else angles.repeat_interleave(2, dim=1)
    return angles.cos().float().to(device), angles.sin().float().to(device)


def apply_rotary(x: Tensor, layout: TokenLayout, *, halves: bool) -> Tensor:
    """Rotate the patches among queries or keys, (batch, heads, tokens, channels), by the angles of their positions."""
    assert layout.rotary is not None
    cosine, sine = layout.rotary
    patches = x[:, :, layout.patches]
    if halves:
        first, second = patches.chunk(2, dim=-1)
        rotated = torch.cat([-second, first], dim=-1)
    else:
        rotated = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
    patches = (patches * cosine + rotated * sine).to(x.dtype)
    return torch.cat([x[:, :, : layout.class_tokens], patches, x[:, :, layout.spatial_tokens :]], dim=2)
