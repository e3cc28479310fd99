"""Building blocks of HTML pages: one file that holds everything it shows, for light and dark screens of any width."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from uniformerv2.pages.curves import Points, last_epoch, round_top

COLOURS = 8  # of curves and bars; after so many they begin again, dashed


def page(title: str, sections: Sequence[str], *, style: str = "") -> str:
    """A whole page; `style` comes after the style of all pages."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def header(title: str, lead: str) -> str:
    """Title and first paragraph of a page."""
    return f"<header><h1>{html.escape(title)}</h1><p class='lead'>{html.escape(lead)}</p></header>"


def section(title: str, note: str, body: str) -> str:
    """A section with its heading; note and body are HTML."""
    lead = f'<p class="note">{note}</p>' if note else ""
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{lead}\n{body}\n</section>"


def facts(values: Mapping[str, str]) -> str:
    """Names and their values."""
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in values.items())
    return f"<dl>{rows}</dl>"


def legend(names: Sequence[str]) -> str:
    """The names beside the colours of their curves."""
    entries = "".join(
        f'<span class="{colour(number)}"><i></i>{html.escape(name)}</span>' for number, name in enumerate(names)
    )
    return f'<div class="legend">{entries}</div>'


def colour(number: int) -> str:
    """The CSS class for the colour of a curve, counted from 0."""
    return f"c{number % COLOURS}" + (" again" if number >= COLOURS else "")


def chart(
    title: str,
    lines: Sequence[Points],
    *,
    last: int | None = None,
    top: float | None = None,
    mark: float | None = None,
    dots: bool = True,
) -> str:
    """An SVG line chart over epochs, from zero on.

    Args:
        title: what is drawn.
        lines: the curves, by colour; one may be empty.
        last: epoch where the horizontal axis ends; default: behind all points.
        top: where the vertical axis ends; default: at a round number above all values.
        mark: a value that a dashed line shows.
        dots: mark the points, each with its value as a tooltip.
    """
    width, height, left, right, upper, lower = 440, 250, 56, 12, 30, 34
    last, top = last or last_epoch(lines), top or round_top(lines)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (width - left - right) * x / last, height - lower - (height - lower - upper) * y / top

    parts = [f'<text class="title" x="{left}" y="16">{html.escape(title)}</text>']
    for i in range(5):
        _, y = place(0, top * i / 4)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{top * i / 4:g}</text>')
    if mark is not None:
        _, y = place(0, mark)
        parts.append(f'<line class="mark" x1="{left}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}"/>')
    for epoch in range(0, last + 1, max(1, round(last / 6))):
        x, _ = place(epoch, 0)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - lower + 16}" text-anchor="middle">{epoch}</text>')
    parts.append(f'<text class="tick" x="{width - right}" y="{height - 4}" text-anchor="end">epochs</text>')
    for number, line in reversed(list(enumerate(lines))):  # the first on top
        points = [place(x, y) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line {colour(number)}" points="{path}"/>')
        if dots:
            parts += [_dot(number, *place(x, y), f"epoch {x:g}: {y:.4g}") for x, y in line]
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'


def _dot(number: int, x: float, y: float, tip: str) -> str:
    return f'<circle class="dot {colour(number)}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{tip}</title></circle>'


def meter(share: float, number: int, *, mark: float | None = None) -> str:
    """A bar in a colour, filled to a share in [0, 1], with a tick at `mark`."""
    tick = f'<b style="left:{100 * mark:g}%"></b>' if mark is not None else ""
    return f'<div class="meter {colour(number)}"><i style="width:{100 * share:.1f}%"></i>{tick}</div>'


def cell(share: float, number: int, *, mark: float | None = None) -> str:
    """A bar with its figure."""
    return f'<div class="cell">{meter(share, number, mark=mark)}<span>{percent(share)}</span></div>'


def percent(share: float) -> str:
    """A share in [0, 1], as HTML."""
    return f"{100 * share:.1f}&nbsp;%"


_STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfa; --card: #ffffff; --ink: #1c1e21; --soft: #646a73;
  --rule: #e4e5e7; --track: #eceef0; --c0: #1f6feb; --c1: #9a6b1f; --c2: #1a7f45; --c3: #b3261e; --c4: #7b3fb8;
  --c5: #0d7c86; --c6: #b8417f; --c7: #5b6270; }
@media (prefers-color-scheme: dark) { :root { --ground: #131518; --card: #1b1e22; --ink: #e8eaed; --soft: #9aa1ab;
  --rule: #2d3137; --track: #2a2e34; --c0: #5b9dff; --c1: #d6a24a; --c2: #57c785; --c3: #ff8a80; --c4: #bd93f0;
  --c5: #4cc4d0; --c6: #f08cbf; --c7: #a9b1be; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 56px 24px 72px; }
h1 { font-size: 34px; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 12px; font-weight: 650; }
h2 { font-size: 21px; letter-spacing: -0.01em; margin: 0 0 6px; font-weight: 620; }
h3 { font-size: 17px; margin: 10px 0 0; font-weight: 620; }
section { margin-top: 56px; }
.lead { font-size: 18px; max-width: 46em; margin: 0; overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: 15px; max-width: 50em; margin: 0 0 18px; }
.c0 { --colour: var(--c0); } .c1 { --colour: var(--c1); } .c2 { --colour: var(--c2); } .c3 { --colour: var(--c3); }
.c4 { --colour: var(--c4); } .c5 { --colour: var(--c5); } .c6 { --colour: var(--c6); } .c7 { --colour: var(--c7); }
.meter { position: relative; height: 8px; border-radius: 4px; background: var(--track); flex: 1; min-width: 60px; }
.meter i { display: block; height: 100%; border-radius: 4px; background: var(--colour); }
.meter b { position: absolute; top: -3px; bottom: -3px; width: 2px; margin-left: -1px; background: var(--soft); }
table { border-collapse: collapse; width: 100%; } th { font-weight: 500; text-align: left; }
.cell { display: flex; align-items: center; gap: 12px; } .cell span { width: 4.2em; text-align: right; font-size: 14px;
  font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 22px; font-size: 14px; margin-bottom: 10px;
  overflow-wrap: anywhere; } .legend i { display: inline-block; width: 18px; border-top: 3px solid var(--colour);
  border-radius: 2px; margin-right: 8px; vertical-align: middle; } .legend .again i { border-top-style: dashed; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); gap: 18px; }
.charts svg { padding: 14px 14px 8px; width: 100%; height: auto; background: var(--card);
  border: 1px solid var(--rule); border-radius: 12px; } svg .title { font-size: 13px; font-weight: 600; }
svg text { fill: var(--ink); } svg .tick { fill: var(--soft); font-size: 11px; } svg .grid { stroke: var(--rule); }
svg .mark { stroke: var(--soft); stroke-dasharray: 3 4; } svg .line { fill: none; stroke: var(--colour);
  stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; } svg .dot { fill: var(--colour); }
svg .line.again { stroke-dasharray: 7 5; }
dl { display: grid; grid-template-columns: minmax(9em, max-content) 1fr; gap: 6px 22px; font-size: 15px;
  margin: 10px 0 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 760px) { main { padding: 32px 16px 48px; } }
"""
