"""The picture of a timeline: one self-contained SVG file, for light and dark screens."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from uniformerv2.atomic import write_text
from uniformerv2.timeline import Array, Timeline

CLASSES = 8  # drawn: those with the highest mean probability over the video
COLUMNS = 600  # at most; each shows the highest score of its windows, so that short events stay visible

_LEFT, _RIGHT, _TOP, _ROW, _HEIGHT, _WIDTH = 220, 60, 44, 38, 28, 1000  # pixels
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)  # seconds
_LABEL = 26  # letters that fit


def write_picture(target: Path, timeline: Timeline) -> None:
    """Write the picture of a timeline as one SVG file without outside resources, whole or not at all."""
    write_text(target, draw(timeline))


def draw(timeline: Timeline) -> str:
    """The most likely classes of a video over time, as SVG."""
    classes = np.argsort(-timeline.scores.mean(0), kind="stable")[:CLASSES]
    height = _TOP + _ROW * len(classes) + 34
    width = _LEFT + _WIDTH + _RIGHT
    title = html.escape(timeline.video)
    rows = "".join(_row(timeline, int(number), _TOP + _ROW * row) for row, number in enumerate(classes))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">\n'
        f"<style>{_STYLE}</style>\n"
        f'<rect class="ground" width="{width}" height="{height}"/><text class="title" x="16" y="26">{title}</text>\n'
        f"{_axis(timeline, height)}\n{rows}</svg>\n"
    )


def _row(timeline: Timeline, number: int, top: int) -> str:
    scores = timeline.scores[:, number]
    label = timeline.labels[number].replace("_", " ")
    short = label if len(label) <= _LABEL else label[: _LABEL - 1] + "…"
    peak = int(scores.argmax())
    base = top + _HEIGHT
    path = "".join(f"H{x:.1f}V{base - _HEIGHT * score:.1f}" for x, score in _columns(timeline, scores))
    return (
        f"<g><title>{html.escape(label)}: highest at {clock(timeline.start[peak])}</title>"
        f'<text x="{_LEFT - 12}" y="{base - 8}" text-anchor="end">{html.escape(short)}</text>'
        f'<rect class="track" x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}"/>'
        f'<path d="M{_LEFT} {base}{path}H{_LEFT + _WIDTH}V{base}Z"/>'
        f'<text class="soft" x="{_LEFT + _WIDTH + 8}" y="{base - 8}">{100 * scores[peak]:.0f} %</text></g>\n'
    )


def _columns(timeline: Timeline, scores: Array) -> Iterator[tuple[float, float]]:
    """Left edge and highest score of each column."""
    for windows in np.array_split(np.arange(len(scores)), min(len(scores), COLUMNS)):
        yield _x(timeline, timeline.start[windows[0]]), scores[windows].max()


def _axis(timeline: Timeline, height: int) -> str:
    seconds = timeline.end[-1] - timeline.start[0]
    step = next((step for step in _STEPS if seconds / step <= 8), seconds / 8)
    marks = []
    for time in np.arange(timeline.start[0], timeline.end[-1] + 1e-6, step):
        x = _x(timeline, time)
        marks.append(
            f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{height - 30}"/>'
            f'<text class="soft" x="{x:.1f}" y="{height - 14}" text-anchor="middle">{clock(time)}</text>'
        )
    return "".join(marks)


def _x(timeline: Timeline, time: float) -> float:
    first, last = timeline.start[0], timeline.end[-1]
    return _LEFT + _WIDTH * float(time - first) / float(last - first)


def clock(seconds: float) -> str:
    """1:02:03, 2:03, or 3.5 s below a minute."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


_STYLE = """
svg { color-scheme: light dark; font: 14px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
.ground { fill: #fbfbfa; } text { fill: #1c1e21; } .soft { fill: #646a73; font-size: 12px; } .track { fill: #eceef0; }
.title { font-weight: 600; font-size: 15px; } line { stroke: #e4e5e7; } path { fill: #1f6feb; }
@media (prefers-color-scheme: dark) { .ground { fill: #131518; } text { fill: #e8eaed; } .soft { fill: #9aa1ab; }
  .track { fill: #2a2e34; } line { stroke: #2d3137; } path { fill: #5b9dff; } }
"""
