"""The picture of a timeline or of spans: one self-contained SVG file, for light and dark screens."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from uniformerv2.atomic import write_text
from uniformerv2.spans.span import Span
from uniformerv2.timeline import Array, Timeline

LABELS = 40  # of spans that are drawn: those with true spans, then the surest
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
    rows = [_row(timeline, int(number), _TOP + _ROW * row) for row, number in enumerate(classes)]
    return _picture(timeline.video, rows, timeline.start[0], timeline.end[-1])


def write_spans_picture(
    target: Path, video: str, duration: float, predicted: Sequence[Span], truth: Sequence[Span] | None = None
) -> None:
    """Write the picture of spans as one SVG file without outside resources, whole or not at all."""
    write_text(target, draw_spans(video, duration, predicted, truth))


def draw_spans(video: str, duration: float, predicted: Sequence[Span], truth: Sequence[Span] | None = None) -> str:
    """The spans of a video, a row for each label, as SVG.

    Args:
        video: its name.
        duration: seconds.
        predicted: bars as high as their scores, the surest in front.
        truth: bars below the predicted ones; None: unknown. Labels with a true span come first.
    """
    true = Counter(span.label for span in truth or ())
    sureness: dict[str, float] = {}
    for span in predicted:
        sureness[span.label] = max(span.score, sureness.get(span.label, 0.0))
    labels = sorted({*true, *sureness}, key=lambda label: (not true[label], -sureness.get(label, 0.0), label))
    rows = []
    for row, label in enumerate(labels[:LABELS]):
        found = sorted((span for span in predicted if span.label == label), key=lambda span: span.score)
        told = f"{len(found)} predicted" + ("" if truth is None else f", {true[label]} true")
        bars = [
            *(_bar(span, duration, _TOP + _ROW * row, height=_HEIGHT * span.score) for span in found),
            *(_bar(span, duration, _TOP + _ROW * row, true=True) for span in truth or () if span.label == label),
        ]
        best = f"{100 * sureness[label]:.0f} %" if label in sureness else ""
        rows.append(_labelled_row(label, told, _TOP + _ROW * row, "".join(bars), best))
    return _picture(video, rows, 0.0, duration)


def _bar(span: Span, duration: float, top: int, *, height: float = 0.0, true: bool = False) -> str:
    """A predicted span stands on the base of its row, a true one lies below."""
    left, right = (_x(0.0, duration, min(max(time, 0.0), duration)) for time in (span.start, span.end))
    y, height = (top + _HEIGHT + 1, 5.0) if true else (top + _HEIGHT - height, height)
    what = "true" if true else f"{100 * span.score:.0f} %"
    return (
        f'<rect class="{"true" if true else "found"}" x="{left:.1f}" y="{y:.1f}" width="{max(right - left, 1):.1f}" '
        f'height="{height:.1f}"><title>{clock(span.start)} to {clock(span.end)}, {what}</title></rect>'
    )


def _picture(name: str, rows: Sequence[str], first: float, last: float) -> str:
    height = _TOP + _ROW * len(rows) + 34
    width = _LEFT + _WIDTH + _RIGHT
    title = html.escape(name)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">\n'
        f"<style>{_STYLE}</style>\n"
        f'<rect class="ground" width="{width}" height="{height}"/><text class="title" x="16" y="26">{title}</text>\n'
        f"{_axis(first, last, height)}\n{''.join(rows)}</svg>\n"
    )


def _row(timeline: Timeline, number: int, top: int) -> str:
    scores = timeline.scores[:, number]
    peak, base = int(scores.argmax()), top + _HEIGHT
    path = "".join(f"H{x:.1f}V{base - _HEIGHT * score:.1f}" for x, score in _columns(timeline, scores))
    curve = f'<path d="M{_LEFT} {base}{path}H{_LEFT + _WIDTH}V{base}Z"/>'
    told = f"highest at {clock(timeline.start[peak])}"
    return _labelled_row(timeline.labels[number], told, top, curve, f"{100 * scores[peak]:.0f} %")


def _labelled_row(label: str, told: str, top: int, drawn: str, best: str) -> str:
    label = label.replace("_", " ")
    short = label if len(label) <= _LABEL else label[: _LABEL - 1] + "…"
    base = top + _HEIGHT
    return (
        f"<g><title>{html.escape(label)}: {told}</title>"
        f'<text x="{_LEFT - 12}" y="{base - 8}" text-anchor="end">{html.escape(short)}</text>'
        f'<rect class="track" x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}"/>{drawn}'
        f'<text class="soft" x="{_LEFT + _WIDTH + 8}" y="{base - 8}">{best}</text></g>\n'
    )


def _columns(timeline: Timeline, scores: Array) -> Iterator[tuple[float, float]]:
    """Left edge and highest score of each column."""
    for windows in np.array_split(np.arange(len(scores)), min(len(scores), COLUMNS)):
        yield _x(timeline.start[0], timeline.end[-1], timeline.start[windows[0]]), scores[windows].max()


def _axis(first: float, last: float, height: int) -> str:
    seconds = last - first
    step = next((step for step in _STEPS if seconds / step <= 8), seconds / 8)
    marks = []
    for time in np.arange(first, last + 1e-6, step):
        x = _x(first, last, time)
        marks.append(
            f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{height - 30}"/>'
            f'<text class="soft" x="{x:.1f}" y="{height - 14}" text-anchor="middle">{clock(time)}</text>'
        )
    return "".join(marks)


def _x(first: float, last: float, time: float) -> float:
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
.title { font-weight: 600; font-size: 15px; } line { stroke: #e4e5e7; } path, .found { fill: #1f6feb; }
.found { fill-opacity: 0.7; } .true { fill: #1a7f37; }
@media (prefers-color-scheme: dark) { .ground { fill: #131518; } text { fill: #e8eaed; } .soft { fill: #9aa1ab; }
  .track { fill: #2a2e34; } line { stroke: #2d3137; } path, .found { fill: #5b9dff; }
  .true { fill: #4ac26b; } }
"""
