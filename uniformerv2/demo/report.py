"""The demo's report as an HTML file, from figures, frames and attention that are given; nothing is measured here."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from uniformerv2.atomic import write_text
from uniformerv2.demo.drawing import Array
from uniformerv2.measuring.results import Evaluation
from uniformerv2.pages.curves import averages
from uniformerv2.pages.page import cell, chart, facts, header, legend, meter, page, percent, section

SMOOTH = 60  # points of a curve of losses


@dataclass(frozen=True)
class Column:
    """A model that the report compares."""

    name: str
    about: str  # one sentence
    evaluation: Evaluation
    steps: Sequence[Mapping[str, float]]  # "step" records of metrics.jsonl
    epochs: Sequence[Mapping[str, float]]  # "epoch" records


@dataclass(frozen=True)
class Example:
    """A video with the answers of both models."""

    title: str
    label: str  # the right class
    video: bytes  # the mp4 file
    frames: Array  # uint8 (frames, 3, h, w), those that the model saw
    attention: Array  # float (stages, frames after the stem, rows, columns), the first column's; at most 1 in sum
    scores: Sequence[Mapping[str, float]]  # class -> probability, one mapping a column


@dataclass(frozen=True)
class Report:
    """The content of the report."""

    title: str
    summary: str  # two sentences
    columns: Sequence[Column]  # the model, and the one that it is compared with
    pairs: Sequence[tuple[str, str]]  # classes that are each other's time reversal
    unseen: Example
    examples: Sequence[Example]
    facts: Mapping[str, str]  # machine, versions, times, ...


def write_report(path: str | Path, report: Report) -> None:
    """Write the report as one HTML file without outside resources, whole or not at all."""
    write_text(Path(path), render(report))


def render(report: Report) -> str:
    """The report as HTML."""
    sections = [
        _headline(report),
        section("Every pair, forwards and backwards", _PAIRS_NOTE, _pair_table(report)),
        section("Training curves", _CURVES_NOTE, _curves(report)),
        section(
            "An unseen file",
            "Drawn and encoded after the training, then given to the predictor.",
            _example(report, report.unseen),
        ),
        section(
            "Held-out videos and attention",
            _ATTENTION_NOTE,
            "".join(_example(report, example) for example in report.examples),
        ),
        section("How this was made", "", facts(report.facts)),
    ]
    return page(report.title, sections, style=_STYLE)


_PAIRS_NOTE = (
    "Each clip exists twice, under one label forwards and under the other backwards. A model that cannot see the "
    "order gives both the same answer, so it is right on at most one of the two: 50&nbsp;% is its ceiling, give or "
    "take what compression does differently to the two files."
)
_CURVES_NOTE = "Training loss, averaged over neighbouring steps, and accuracy on single views of the held-out videos."
_ATTENTION_NOTE = (
    "Each video as the file plays, the frames that the model reads from it, and for each global stage how its query "
    "spreads attention over space and time. Brighter is more; each stage is scaled to its own maximum."
)


def _headline(report: Report) -> str:
    tiles = "".join(
        f'<div class="tile c{number}"><div class="figure">{percent(column.evaluation.top1)}</div>'
        f'<div class="name">{html.escape(_capital(column.name))}</div>'
        f"{meter(column.evaluation.top1, number, mark=0.5)}"
        f'<div class="about">{html.escape(column.about)}</div></div>'
        for number, column in enumerate(report.columns)
    )
    evaluation = report.columns[0].evaluation
    views = len(evaluation.views)
    return (
        f"{header(report.title, report.summary)}\n"
        f'<div class="tiles">{tiles}</div>\n'
        f'<p class="note">Top-1 accuracy on {len(evaluation.videos)} held-out videos of '
        f"{len(evaluation.classes)} classes, {views} views each. The tick marks 50&nbsp;%.</p>"
    )


def _pair_table(report: Report) -> str:
    accuracy = [{row.label: row.recall or 0.0 for row in column.evaluation.classes} for column in report.columns]
    head = "".join(f"<th>{html.escape(_capital(column.name))}</th>" for column in report.columns)
    rows = []
    for first, second in report.pairs:
        for label, kind in ((first, "first"), (second, "second")):
            cells = "".join(f"<td>{cell(top1[label], number, mark=0.5)}</td>" for number, top1 in enumerate(accuracy))
            rows.append(f'<tr class="{kind}"><th scope="row">{_words(label)}</th>{cells}</tr>')
    cells = "".join(
        f"<td>{cell(column.evaluation.top1, number, mark=0.5)}</td>" for number, column in enumerate(report.columns)
    )
    rows.append(f'<tr class="total"><th scope="row">all</th>{cells}</tr>')
    return f"<table class='pairs'><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _curves(report: Report) -> str:
    losses, accuracies = [], []
    for column in report.columns:
        total = max(len(column.epochs), 1)
        steps = max(len(column.steps), 1)
        losses.append([(total * (i + 1) / steps, step["loss"]) for i, step in enumerate(column.steps)])
        accuracies.append([(float(epoch["epoch"]), 100 * epoch["top1"]) for epoch in column.epochs if "top1" in epoch])
    chance = 100 / len(report.columns[0].evaluation.classes)
    names = legend([_capital(column.name) for column in report.columns])
    charts = chart("training loss", [averages(line, SMOOTH) for line in losses], dots=False) + chart(
        "held-out accuracy, %", [[(0.0, chance), *line] for line in accuracies], top=100.0, mark=50.0
    )
    return f'{names}<div class="charts">{charts}</div>'


def _example(report: Report, example: Example) -> str:
    answer = max(example.scores[0], key=example.scores[0].__getitem__)
    verdict = "right" if answer == example.label else "wrong"
    video = base64.b64encode(example.video).decode()
    rows = _strip(example.frames, "the frames that the model reads, in order")
    for number, stage in enumerate(example.attention, start=1):
        share = f"{100 * float(stage.sum()):.0f} % of it here, the rest on class tokens"
        rows += _strip(overlay(example.frames, stage), f"attention of global stage {number}: {share}")
    return (
        f'<article class="example"><div class="side">'
        f'<video autoplay loop muted playsinline src="data:video/mp4;base64,{video}"></video>'
        f"<h3>{_words(example.label)}</h3>"
        f'<p class="file">{html.escape(example.title)}</p>'
        f'<p class="verdict {verdict}">answer: {_words(answer)}</p>'
        f"{_bars(report, example)}</div>"
        f'<div class="strips">{rows}</div></article>'
    )


def _bars(report: Report, example: Example) -> str:
    """Probabilities of the right class, its reversal and the next likely ones, a bar for each column."""
    partner = {a: b for first, second in report.pairs for a, b in ((first, second), (second, first))}
    ranked = sorted(example.scores[0], key=example.scores[0].__getitem__, reverse=True)
    shown = list(dict.fromkeys([example.label, partner[example.label], *ranked]))[:4]
    rows = "".join(
        f"<tr><th>{_words(label)}</th><td>"
        + "".join(
            f'<div class="cell small">{meter(scores[label], number)}<span>{percent(scores[label])}</span></div>'
            for number, scores in enumerate(example.scores)
        )
        + "</td></tr>"
        for label in shown
    )
    return f'<table class="bars">{rows}</table>'


def _strip(frames: Array, caption: str) -> str:
    # (frames, 3, h, w) -> (h, frames·(w + gap), 3 or 4), one image for a row
    count, _, height, width = frames.shape
    gap = max(1, width // 32)
    image = np.zeros((height, count * (width + gap) - gap, 4), np.uint8)
    for number, frame in enumerate(frames):
        left = number * (width + gap)
        image[:, left : left + width, :3] = frame.transpose(1, 2, 0)
        image[:, left : left + width, 3] = 255
    data = base64.b64encode(png(image)).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def overlay(frames: Array, attention: Array) -> Array:
    """Frames with attention as heat over them.

    Args:
        frames: uint8 (frames, 3, h, w).
        attention: (frames after the stem, rows, columns), not negative; where the stem halves the frame rate,
            each map covers the frames that it was made from.

    Returns:
        uint8 (frames, 3, h, w).
    """
    count, _, height, width = frames.shape
    steps, rows, columns = attention.shape
    heat = attention / max(float(attention.max()), 1e-12)
    smooth = np.einsum("hr,trc,wc->thw", _spread(height, rows), heat, _spread(width, columns))
    maps = smooth[np.arange(count) * steps // count][:, None]  # (frames, 1, h, w)
    grey = frames.mean(1, keepdims=True) * 0.7
    colours = _heat_colours(maps[:, 0]).transpose(0, 3, 1, 2)
    return np.clip(grey * (1 - 0.7 * maps) + colours * (0.8 * maps), 0, 255).astype(np.uint8)


def _spread(length: int, cells: int) -> Array:
    """(length, cells): interpolation between the middles of equal cells, constant beyond the outer ones."""
    place = np.clip((np.arange(length) + 0.5) * cells / length - 0.5, 0, cells - 1)[:, None]
    near = np.clip(1.0 - np.abs(place - np.arange(cells)), 0.0, 1.0)
    return near * near * (3.0 - 2.0 * near)  # eased: straight lines would draw a star around each maximum


_HEAT = np.array([(20, 11, 53), (101, 21, 110), (188, 55, 84), (237, 105, 37), (251, 180, 26), (252, 255, 164)], float)


def _heat_colours(values: Array) -> Array:
    """[0, 1] -> RGB, from dark violet over red to light yellow; adds an axis of 3."""
    knots = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(values, knots, _HEAT[:, channel]) for channel in range(3)], axis=-1)


def png(image: Array) -> bytes:
    """uint8 (h, w, 4), RGBA, as the bytes of a PNG file."""
    encoder = av.CodecContext.create("png", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.height, encoder.width = image.shape[:2]
    encoder.pix_fmt, encoder.time_base = "rgba", Fraction(1)
    return b"".join(map(bytes, encoder.encode(av.VideoFrame.from_ndarray(image, format="rgba"))))


def _words(label: str) -> str:
    return html.escape(label.replace("_", " "))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


_STYLE = """
:root { --right: #1a7f45; --wrong: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --right: #57c785; --wrong: #ff8a80; } }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 18px; margin: 32px 0 14px; }
.tile, .example { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; }
.tile { padding: 22px 24px; }
.figure { font-size: 46px; line-height: 1.1; font-weight: 650; letter-spacing: -0.03em; color: var(--colour);
  font-variant-numeric: tabular-nums; }
.tile .name { font-weight: 600; margin: 2px 0 12px; } .tile .about { color: var(--soft); font-size: 14.5px;
  margin-top: 12px; }
.pairs { table-layout: fixed; } .pairs thead th:first-child { width: 10.5em; } .pairs tbody th { white-space: nowrap; }
.pairs td, .pairs th { padding: 5px 12px 5px 0; } .pairs thead th { color: var(--soft); font-size: 14px; }
.pairs .first th, .pairs .first td { border-top: 1px solid var(--rule);
  padding-top: 9px; } .pairs .second th, .pairs .second td { padding-bottom: 9px; }
.pairs .total th, .pairs .total td { border-top: 2px solid var(--rule); padding-top: 10px; font-weight: 650; }
.cell.small { gap: 8px; } .cell.small span { font-size: 12px; width: 4em;
  color: var(--soft); } .cell.small .meter { height: 5px; }
.example { display: grid; grid-template-columns: 250px 1fr; gap: 26px; padding: 20px; margin-bottom: 18px; }
.example video { width: 128px; height: 128px; border-radius: 8px; image-rendering: pixelated;
  background: var(--track); }
.file { color: var(--soft); font-size: 13px; margin: 0; overflow-wrap: anywhere; } .verdict { margin: 2px 0 10px;
  font-size: 14.5px; font-weight: 600; } .right { color: var(--right); } .wrong { color: var(--wrong); }
.bars th { font-size: 13px; padding: 3px 8px 3px 0; white-space: nowrap; vertical-align: middle; } .bars td {
  width: 100%; padding: 3px 0; }
.strips { min-width: 0; } figure { margin: 0 0 10px; } figure img { display: block; width: 100%;
  image-rendering: pixelated; } figcaption { color: var(--soft); font-size: 12.5px; margin-top: 2px; }
@media (max-width: 760px) { .example { grid-template-columns: 1fr; } }
"""
