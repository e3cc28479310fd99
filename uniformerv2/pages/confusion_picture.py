"""The picture of a confusion matrix, as a part of a page."""

from __future__ import annotations

import html
from collections.abc import Sequence

NAMED = 30  # classes up to which the rows and columns bear their labels
COUNTED = 15  # classes up to which the cells bear their numbers

_SIDE, _MARGIN, _LETTERS = 600, 150, 20  # pixels of the matrix and of its labels; letters that fit


def confusion_picture(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    """A confusion matrix as SVG: a row for each right class and a column for what its videos were taken for.

    A cell is the darker the larger its share of the row is; what it means is its tooltip. Empty cells are not drawn, so
    the picture of 700 classes has as many parts as there are pairs of classes that occur.

    Args:
        labels: of the classes.
        matrix: videos (right class, predicted class).
    """
    side = _SIDE / len(labels)
    margin = _MARGIN if len(labels) <= NAMED else 4
    size = margin + _SIDE + 4
    parts = [f'<rect class="frame" x="{margin}" y="{margin}" width="{_SIDE}" height="{_SIDE}"/>']
    for row, counts in enumerate(matrix):
        parts += [_cell(labels, row, column, counts, side, margin) for column, count in enumerate(counts) if count]
    if len(labels) <= NAMED:
        for number, label in enumerate(labels):
            middle = margin + (number + 0.5) * side
            short = html.escape(label if len(label) <= _LETTERS else label[: _LETTERS - 1] + "…")
            edge = margin - 6
            parts.append(f'<text x="{edge}" y="{middle + 4:.1f}" text-anchor="end">{short}</text>')
            parts.append(f'<text transform="translate({middle + 4:.1f} {edge}) rotate(-90)">{short}</text>')
    what = "Confusion matrix: a row for each class, a column for what its videos were taken for"
    return f'<svg class="matrix" viewBox="0 0 {size} {size}" role="img" aria-label="{what}">{"".join(parts)}</svg>'


def _cell(labels: Sequence[str], row: int, column: int, counts: Sequence[int], side: float, margin: int) -> str:
    """A cell that is not empty, with its tooltip."""
    count, videos = counts[column], sum(counts)
    tip = html.escape(f"{labels[row]} taken for {labels[column]}: {count} of {videos} videos")
    x, y = margin + column * side, margin + row * side
    text = ""
    if len(labels) <= COUNTED:
        place = f'x="{x + side / 2:.1f}" y="{y + side / 2 + 4:.1f}"'
        text = f'<text {place} text-anchor="middle">{count}</text>'
    return (
        f'<g><title>{tip}</title><rect x="{x:.2f}" y="{y:.2f}" width="{side:.2f}" height="{side:.2f}" '
        f'fill-opacity="{0.1 + 0.7 * count / videos:.2f}"/>{text}</g>'
    )
