"""Runs compared in a terminal, or as plain text in a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import plotille
from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from uniformerv2.pages.curves import Points, averages, points_per_average, round_top
from uniformerv2.runs.folder import Quantity, Run, axis_end, curves, figures_of, recipe_differences
from uniformerv2.text import printable

COLOURS = ("cyan", "yellow", "green", "magenta", "red", "blue")  # of a terminal, light or dark
HEIGHT = 8  # lines of a chart
WIDE = 100  # columns from which on two charts stand side by side
GAP = 2  # columns between those of a table


def print_runs(runs: Sequence[Run], target: Console) -> None:
    """Print curves, figures, and what differs between the recipes, in the width of the target."""
    target.print(_names(runs))
    if target.options.ascii_only:
        target.print("(curves need an output in UTF-8)", highlight=False)
    else:
        target.print(_charts(runs, target.width))
    for names in _that_fit(runs, target.width):
        target.print(_figures(runs, names))
    if differences := recipe_differences(runs):
        target.print(_differences(differences))


def _names(runs: Sequence[Run]) -> Table:
    """Each run under its number, in the colour of its curves."""
    names = Table.grid(padding=(0, 2))
    for number, run in enumerate(runs):
        names.add_row(_number(number), Text(printable(run.name), overflow="fold"))
    return names


def _number(number: int) -> Text:
    return Text(str(number + 1), style=_colour(number))


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _charts(runs: Sequence[Run], width: int) -> Table:
    across = 2 if width >= WIDE else 1
    found = curves(runs)
    charts = [_chart(quantity, lines, axis_end(found), width // across - 2) for quantity, lines in found]
    grid = Table.grid(padding=(0, 2, 0, 0))
    for first in range(0, len(charts), across):
        grid.add_row(*charts[first : first + across])
    return grid


def _chart(quantity: Quantity, lines: Sequence[Points], last: int, width: int) -> RenderableType:
    """A chart from zero on, with its title above and its axes on the left and below."""
    top = quantity.top or round_top(lines)
    ticks = {0: f"{top:g}", HEIGHT // 2: f"{top / 2:g}", HEIGHT - 1: "0"}
    margin = max(map(len, ticks.values()))
    inner = max(width - margin - 2, 10)
    rows = Text.from_ansi(_draw(lines, last, top, inner)).split("\n")
    means = max(points_per_average(line, 2 * inner) for line in lines)
    title = f"{quantity.title}, means of up to {means} steps" if means > 1 else quantity.title
    left = [Text(f"{ticks.get(row, ''):>{margin}} │") for row in range(HEIGHT)]
    below = f"{'':>{margin}} └{'─' * inner}\n{'':>{margin}}  0{f'epoch {last}':>{inner - 1}}"
    return Group(Text(title, style="bold"), *map(Text.append_text, left, rows), below, "")


def _draw(lines: Sequence[Points], last: int, top: float, width: int) -> str:
    """Curves in braille, each with the number of its run somewhere along it, where colours cannot be seen."""
    right, upper = 2 * width - 1, 4 * HEIGHT - 1  # a character is 2 dots wide and 4 high
    canvas = plotille.Canvas(width, HEIGHT, 0, 0, right + 1, upper + 1)
    dots = [[(x / last * right, y / top * upper) for x, y in averages(line, 2 * width)] for line in lines]
    for number, line in reversed(list(enumerate(dots))):  # the first on top
        for (x, y), (next_x, next_y) in pairwise([*line[:1], *line]):
            canvas.line(x, y, next_x, next_y, color=_colour(number))
    for number, line in enumerate(dots):
        if line and len(dots) > 1:
            x, y = line[len(line) * (number + 1) // (len(dots) + 1)]
            canvas.text(x, y, str(number + 1), color=_colour(number))
    return canvas.plot(linesep="\n").replace("\N{BRAILLE PATTERN BLANK}", " ")


def _that_fit(runs: Sequence[Run], width: int) -> list[list[str]]:
    """The figures in order, split into as many tables as the width needs."""
    tables: list[list[str]] = []
    free = 0
    for name, figure in figures_of(runs).items():
        needed = GAP + max(map(len, [name, *map(figure, runs)]))
        if needed > free:
            tables.append([])
            free = width - len(str(len(runs))) - 2  # the numbers of the runs, the edges
        tables[-1].append(name)
        free -= needed
    return tables


def _figures(runs: Sequence[Run], names: Sequence[str]) -> Table:
    table = _table("", *names)
    for column in table.columns[1:]:
        column.justify = "right"
    figures = figures_of(runs)
    for number, run in enumerate(runs):
        table.add_row(_number(number), *(figures[name](run) for name in names))
    return table


def _differences(differences: dict[str, tuple[str, ...]]) -> Table:
    """A line for each value of each field, with the runs that have it."""
    table = _table("recipe", "value", "in run")
    for name, values in differences.items():
        for value in dict.fromkeys(values):
            runs = [str(number) for number, other in enumerate(values, start=1) if other == value]
            table.add_row(name, Text(printable(value)), " ".join(runs))
            name = ""
    return table


def _table(*titles: str) -> Table:
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for title in titles:
        table.add_column(title, overflow="fold")
    return table
