"""Runs compared on one HTML page."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from uniformerv2.atomic import write_text
from uniformerv2.pages.confusion_picture import confusion_picture
from uniformerv2.pages.curves import Points, averages, points_per_average
from uniformerv2.pages.page import cell, chart, colour, header, legend, page, percent, section
from uniformerv2.runs.folder import (
    FIGURES_NOTE,
    UNKNOWN,
    Quantity,
    Run,
    axis_end,
    curves,
    figures_of,
    recipe_differences,
)

POINTS = 200  # of a curve, at most
DOTTED = 40  # points of a curve up to which each is marked
OPEN = 30  # classes up to which their table is unfolded


def write_report(path: str | Path, runs: Sequence[Run]) -> None:
    """Write the page as one HTML file without outside resources, whole or not at all. Raises OSError."""
    write_text(path, render(runs))


def render(runs: Sequence[Run]) -> str:
    """The page as HTML."""
    names = [f'<span class="run {colour(number)}">{html.escape(run.name)}</span>' for number, run in enumerate(runs)]
    sections = [
        header("Training runs", ", ".join(f"{run.name} ({run.state})" for run in runs)),
        _curves(runs),
        section("Figures", FIGURES_NOTE, _figures(runs, names)),
    ]
    if len(runs) > 1:
        sections.append(section("What differs between the recipes", "", _differences(runs, names)))
    if evaluations := {number: run.evaluation for number, run in enumerate(runs) if run.evaluation is not None}:
        sections.append(_classes(evaluations, names))
    if spans := {number: found for number, found in evaluations.items() if "false_positives" in found}:
        note = "By temporal intersection over union (tIoU); a false positive is of the first kind that fits."
        sections.append(section("What localisers find", note, _found_spans(spans, names)))
    # where a video may have several labels, or spans, no class is taken for another
    if evaluations := {number: found for number, found in evaluations.items() if "confusions" in found}:
        sections.append(section("Classes that the last models confuse", "", _confusions(evaluations, names)))
        note = "A row for each class, a column for what its videos were taken for; darker: a larger share of the row."
        sections.append(section("Confusion matrices", note, _matrices(evaluations, names)))
    return page("Training runs", sections, style=_STYLE)


def _curves(runs: Sequence[Run]) -> str:
    found = curves(runs)
    if not found:
        return section("Curves", "Nothing is recorded yet.", "")
    steps = {run.name: points_per_average(run.steps, POINTS) for run in runs}
    means = ", ".join(f"{count} in {html.escape(name)}" for name, count in steps.items() if count > 1)
    note = "Held-out accuracy and loss are of single views. Training loss and learning rate are " + (
        f"means of neighbouring steps: {means}." if means else "those of each step."
    )
    charts = "".join(_chart(quantity, lines, last=axis_end(found)) for quantity, lines in found)
    return section("Curves", note, f'{legend([run.name for run in runs])}<div class="charts">{charts}</div>')


def _chart(quantity: Quantity, lines: Sequence[Points], *, last: int) -> str:
    shown = [averages(line, POINTS) for line in lines]
    return chart(quantity.title, shown, last=last, top=quantity.top, dots=max(map(len, shown)) <= DOTTED)


def _figures(runs: Sequence[Run], names: Sequence[str]) -> str:
    figures = figures_of(runs)
    rows = [[name, *(figure(run) for figure in figures.values())] for name, run in zip(names, runs, strict=True)]
    return _table(["", *figures], rows)


def _differences(runs: Sequence[Run], names: Sequence[str]) -> str:
    differences = recipe_differences(runs)
    if not differences:
        return "<p>Nothing.</p>"
    return _table(["", *names], (map(html.escape, (name, *values)) for name, values in differences.items()))


def _classes(evaluations: Mapping[int, Mapping[str, Any]], names: Sequence[str]) -> str:
    """Accuracy of each class, or its average precision, the hardest first."""
    note = "<br>".join(f"{names[number]}: {_whole(found)}" for number, found in evaluations.items())
    accuracies: dict[str, dict[int, float | None]] = {}  # by class and run
    for number, found in evaluations.items():
        for label, share in _shares(found):
            accuracies.setdefault(label, {})[number] = share
    labels = sorted(accuracies, key=lambda label: _mean(accuracies[label].values()))
    rows = [
        [html.escape(label), *(_accuracy(accuracies[label].get(number), number) for number in evaluations)]
        for label in labels
    ]
    table = _table(["", *(names[number] for number in evaluations)], rows)
    shown = "open" if len(labels) <= OPEN else ""
    body = f"<details {shown}><summary>{len(labels)} classes, the hardest first</summary>{table}</details>"
    return section("The last models, class by class", note, body)


def _shares(found: Mapping[str, Any]) -> Iterable[tuple[str, float | None]]:
    """Accuracy of each class, or its average precision, of spans as the mean over the thresholds."""
    if "ap_per_class" in found:
        return [(label, _mean(by_tiou.values())) for label, by_tiou in found["ap_per_class"].items()]
    return [(row["label"], row.get("average_precision", row["recall"])) for row in found["classes"]]


def _whole(found: Mapping[str, Any]) -> str:
    if "ap_per_class" in found:
        shares = f"average precision, average mAP {percent(found['average_mAP'])}"
        return f"{shares} of {found['evaluated']} held-out films; {len(found['skipped'])} skipped."
    if "top1" in found:
        shares = f"top-1 {percent(found['top1'])}, top-5 {percent(found['top5'])}"
    else:
        precision, f1 = percent(found["mean_average_precision"]), percent(found["macro_f1"])
        shares = f"average precision, mAP {precision}, macro F1 {f1}"
    views = f"{found['views']['clips']} x {found['views']['crops']} views each"
    return f"{shares} of {found['evaluated']} held-out videos, {views}; {len(found['skipped'])} skipped."


def _found_spans(evaluations: Mapping[int, Mapping[str, Any]], names: Sequence[str]) -> str:
    """A row for each run and threshold: how many spans are right, and how many of the others are wrong in which way."""
    kinds = ("double", "wrong_class", "poor_borders", "background")
    rows = [
        [names[number], tiou, percent(share), str(found["right"][tiou])]
        + [str(found["false_positives"][tiou][kind]) for kind in kinds]
        for number, found in evaluations.items()
        for tiou, share in found["mAP"].items()
    ]
    return _table(["", "tIoU", "mAP", "right", *(kind.replace("_", " ") for kind in kinds)], rows)


def _mean(shares: Iterable[float | None]) -> float:
    """Mean of the known shares; infinite where none is known."""
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else math.inf


def _accuracy(share: float | None, number: int) -> str:
    return UNKNOWN if share is None else cell(share, number)


def _confusions(evaluations: Mapping[int, Mapping[str, Any]], names: Sequence[str]) -> str:
    rows = [
        [names[number], html.escape(pair["label"]), html.escape(pair["taken_for"]), str(pair["videos"])]
        for number, found in evaluations.items()
        for pair in found["confusions"]
    ]
    return _table(["", "class", "taken for", "videos"], rows) if rows else "<p>None.</p>"


def _matrices(evaluations: Mapping[int, Mapping[str, Any]], names: Sequence[str]) -> str:
    pictures = ""
    for number, found in evaluations.items():
        picture = confusion_picture([row["label"] for row in found["classes"]], found["confusion_matrix"])
        pictures += f'<figure class="{colour(number)}"><figcaption>{names[number]}</figcaption>{picture}</figure>'
    return f'<div class="charts">{pictures}</div>'


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Cells are HTML; the first of each row is its heading. What is wider than the screen scrolls by itself."""
    titles = "".join(f"<th>{cell}</th>" for cell in head)
    body = ""
    for first, *others in rows:
        cells = "".join(f"<td>{other}</td>" for other in others)
        body += f'<tr><th scope="row">{first}</th>{cells}</tr>'
    return f'<div class="wide"><table class="plain"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


_STYLE = """
figure { margin: 0; } figcaption { margin-bottom: 8px; } .matrix rect { fill: var(--colour); }
.matrix .frame { fill: none; stroke: var(--rule); } .matrix text { font-size: 13px; }
.run { border-left: 4px solid var(--colour); padding-left: 8px; overflow-wrap: anywhere; }
.run.again { border-left-style: dashed; }
.wide { overflow-x: auto; } .plain { width: auto; min-width: 50%; font-size: 15px; font-variant-numeric: tabular-nums; }
.plain th, .plain td { padding: 6px 18px 6px 0; border-bottom: 1px solid var(--rule); text-align: left;
  white-space: nowrap; } .plain thead th { color: var(--soft); font-size: 14px; }
.plain tbody th { min-width: 8em; max-width: 20em; white-space: normal; }
.plain .cell { min-width: 170px; } summary { cursor: pointer; color: var(--soft); font-size: 15px; margin-bottom: 8px; }
"""
