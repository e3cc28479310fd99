"""The report: tables in Markdown for the documentation, and a page with plots."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from evidence.cells import Plan
from evidence.claims import Claim
from evidence.tables import Measured, Table, conclusion, percent, points
from uniformerv2.atomic import write_text
from uniformerv2.pages.page import header, page, section

TITLE = "The paper's claims, repeated"
HOW = (
    "Accuracy in percent on test videos of people (or drawings) that training has not seen, mean over seeds. In "
    "brackets: the 95 % interval of a paired bootstrap over videos and seeds. A difference in bold leaves zero; no "
    "other is claimed. Shuffled: the same model, its test frames in a random order. Image only: the mean of the class "
    "tokens of all frames, blind to order. From scratch: the temporal layout with random weights. Chance: always the "
    "most frequent class. Multiply-adds of all views of a video; seconds of training and test on one core."
)
HEADS = ("variant", "accuracy", "difference", "shuffled", "M multiply-adds", "M parameters", "seconds")


def write_report(plan: Plan, tables: Sequence[Table], folder: Path, *, others: int) -> tuple[Path, Path]:
    """Write report.md and report.html.

    Args:
        plan: what is reported.
        tables: of the plan.
        folder: of the results.
        others: results in the folder that are of other versions, recipes or videos.
    """
    notes = _notes(plan, tables, others)
    paths = folder / "report.md", folder / "report.html"
    for path, text in zip(paths, (markdown(tables, notes), web_page(tables, notes)), strict=True):
        write_text(path, text)
    return paths


def _notes(plan: Plan, tables: Sequence[Table], others: int) -> list[str]:
    used = [result for table in tables for row in table.rows for result in row.results]
    cells = plan.all()
    absent = [name for name, rows in plan.rows.items() if not rows]
    done = {result.cell.digest for result in used}
    missing = sum(cell.digest not in done for cell in cells)
    notes = [f"{len(cells) - missing} of {len(cells)} cells, seeds {', '.join(map(str, plan.seeds))}."]
    if missing:
        notes.append(f"{missing} cells are missing; a seed counts once all of its folds are there.")
    begun = {claim.name for claim, _ in _measured(tables)}
    if empty := [claim.name for claim in plan.claims if claim.name not in begun]:
        notes.append(f"Not measured at all: {', '.join(empty)}.")
    if absent:
        notes.append(f"Not here, and not measured: {', '.join(absent)}.")
    if others:
        notes.append(f"{others} results of another version, recipe or set of videos are left out.")
    if plan.quick:
        notes.append("Quick: short trainings of one seed; the intervals are over videos alone.")
    return notes + [f"Machine: {name}." for name in sorted({result.machine for result in used})]


def markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """The report for the documentation, headings from the second level on."""
    parts = [HOW, "\n".join(f"- {note}" for note in notes)]
    for claim, own in _measured(tables):
        parts += [f"## {claim.name}", f"{claim.sentence} (section {claim.section})", conclusion(own)]
        for table in own:
            parts.append(f"**{table.data.name}** ({table.data.about}); differences to *{claim.reference}*:")
            lines = [HEADS, ("---",) * len(HEADS), *_rows(table)]
            parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    return "\n\n".join(parts) + "\n"


def _measured(tables: Sequence[Table]) -> Iterator[tuple[Claim, list[Table]]]:
    """The claims with their tables, without those of which nothing is measured."""
    for claim, own in groupby(tables, key=lambda table: table.claim):
        if there := [table for table in own if not table.is_empty]:
            yield claim, there


def _rows(table: Table) -> list[tuple[str, ...]]:
    rows = [_row(row, table.reference) for row in table.rows]
    chance = "" if table.chance is None else f"{100 * table.chance:.1f}"
    return [*rows, ("chance", chance, *[""] * (len(HEADS) - 2))]


def _row(row: Measured, reference: Measured) -> tuple[str, ...]:
    name = row.variant.name + (f" ({row.missing} cells missing)" if row.missing else "")
    if row.accuracy is None:
        return (name, *[""] * (len(HEADS) - 1))
    difference = row.better_than(reference)
    shown = points(difference)
    result = row.results[0]
    return (
        name,
        percent(row.accuracy),
        f"**{shown}**" if difference is not None and difference.leaves_zero else shown,
        percent(row.accuracy_shuffled),
        f"{result.multiply_adds / 1e6:.0f}",
        f"{result.parameters / 1e6:.2f}",
        f"{row.seconds:.0f}",
    )


# --- the page


def web_page(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """One HTML file with everything it shows."""
    sections = [
        header(TITLE, HOW),
        section("What was run", "", "".join(f"<p>{html.escape(note)}</p>" for note in notes)),
    ]
    for claim, own in _measured(tables):
        note = f"{html.escape(claim.sentence)}<br>{html.escape(conclusion(own))}"
        sections.append(section(claim.name, note, "\n".join(map(_table_with_plots, own))))
    return page(TITLE, sections, style=_STYLE)


def _table_with_plots(table: Table) -> str:
    heads = "".join(f"<th>{head}</th>" for head in HEADS)
    lines = ["".join(f"<td>{html.escape(cell.strip('*'))}</td>" for cell in cells) for cells in _rows(table)]
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    plots = interval_plot(table) + cost_plot(table)
    return (
        f"<h3>{html.escape(table.data.name)}</h3><p class='note'>{html.escape(table.data.about)}</p>"
        f"<div class='charts'>{plots}</div><div class='wide'><table><tr>{heads}</tr>{rows}</table></div>"
    )


def interval_plot(table: Table) -> str:
    """SVG: the accuracy of each variant with its interval, 0 to 100 %, and a dashed line at chance."""
    left, right, step = 240, 430, 24
    rows = [(row.variant.name, row.accuracy) for row in table.rows if row.accuracy is not None]

    def x(value: float) -> float:
        return left + (right - left) * value

    parts = [f'<text class="tick" x="{x(tick):.0f}" y="14" text-anchor="middle">{100 * tick:.0f}</text>'
             for tick in (0, 0.25, 0.5, 0.75, 1)]  # fmt: skip
    if table.chance is not None:
        end = 22 + step * len(rows)
        parts.append(f'<line class="mark" x1="{x(table.chance):.1f}" x2="{x(table.chance):.1f}" y1="20" y2="{end}"/>')
    for number, (name, found) in enumerate(rows):
        y = 34 + step * number
        parts.append(
            f'<text class="tick" x="{left - 10}" y="{y + 4}" text-anchor="end">{html.escape(name)}</text>'
            f'<line class="line" x1="{x(found.low):.1f}" x2="{x(found.high):.1f}" y1="{y}" y2="{y}"/>'
            f'<circle class="dot" cx="{x(found.mean):.1f}" cy="{y}" r="4"><title>{percent(found)}</title></circle>'
        )
    return f'<svg class="c0" viewBox="0 0 440 {30 + step * len(rows)}" role="img">{"".join(parts)}</svg>'


def cost_plot(table: Table) -> str:
    """SVG: accuracy against multiply-adds, each variant a dot with its name as a tooltip."""
    width, height, edge = 440, 220, 44
    rows = [(row.variant.name, row.accuracy, row.results[0].multiply_adds) for row in table.rows if row.accuracy]
    most = max(cost for _, _, cost in rows)

    def y(value: float) -> float:
        return height - edge + (2 * edge - height) * value

    parts = [
        f'<line class="grid" x1="{edge}" x2="{width - 10}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{edge - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{100 * tick:.0f}</text>'
        for tick in (0, 0.5, 1)
    ]
    parts += [
        f'<circle class="dot" cx="{edge + (width - edge - 20) * cost / most:.1f}" cy="{y(found.mean):.1f}" r="4">'
        f"<title>{html.escape(name)}: {percent(found)}, {cost / 1e6:.0f} M multiply-adds</title></circle>"
        for name, found, cost in rows
    ]
    label = f"accuracy (%) against multiply-adds (0 to {most / 1e6:.0f} M)"
    parts.append(f'<text class="tick" x="{width / 2}" y="{height - 12}" text-anchor="middle">{label}</text>')
    return f'<svg class="c0" viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


_STYLE = """
.wide { overflow-x: auto; } td, th { padding: 4px 14px 4px 0; font-size: 14px; font-variant-numeric: tabular-nums;
  border-bottom: 1px solid var(--rule); white-space: nowrap; }
"""
