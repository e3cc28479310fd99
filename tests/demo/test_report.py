"""The report holds what it is given, and needs nothing else."""

from __future__ import annotations

import io
import re
from pathlib import Path

import av
import numpy as np
import pytest

from pages.parsed import Page
from uniformerv2.demo.report import Column, Example, Report, overlay, png, render, write_report
from uniformerv2.measuring.results import Evaluation, VideoResult
from uniformerv2.video.views import Views

LABELS = ("open_door", "close_door")


def evaluation(*, correct: tuple[int, int]) -> Evaluation:
    videos, scores = [], []
    for label, right in zip(LABELS, correct, strict=True):
        for number in range(16):
            ranked = LABELS if (label == LABELS[0]) == (number < right) else LABELS[::-1]
            videos.append(VideoResult(f"{label}/{number}.mp4", label, ranked, (0.75, 0.25)))
            scores.append([0.75, 0.25] if ranked == LABELS else [0.25, 0.75])
    return Evaluation(LABELS, np.array(scores, dtype=np.float32), tuple(videos), Views(clips=3))


def example(label: str = "open_door", score: float = 0.8125) -> Example:
    frames = np.random.default_rng(0).integers(0, 255, (8, 3, 32, 32), dtype=np.uint8)
    return Example(
        title="open_door/0.mp4",
        label=label,
        video=b"not really a video",
        frames=frames,
        attention=np.full((2, 4, 2, 2), 0.05),
        scores=[dict(zip(LABELS, (score, 1 - score), strict=True)), dict(zip(LABELS, (0.4375, 0.5625), strict=True))],
    )


def report(**changes: object) -> Report:
    steps = [{"loss": 2.0 - 0.1 * step} for step in range(12)]
    epochs = [{"epoch": epoch, "top1": 0.3 * epoch} for epoch in (1, 2, 3)]
    fields: dict = {
        "title": "Doors",
        "summary": "One sentence. Another.",
        "columns": [
            Column("in order", "sees time", evaluation(correct=(15, 14)), steps, epochs),
            Column("unordered", "does not", evaluation(correct=(11, 2)), steps, epochs),
        ],
        "pairs": [LABELS],
        "unseen": example(),
        "examples": [example(), example("close_door")],
        "facts": {"machine": "a laptop"},
    }
    return Report(**{**fields, **changes})


def test_page_is_one_file_without_outside_resources() -> None:
    page = render(report())
    assert not re.search(r"https?://|url\(|@import|<script|<link", page)
    tags = Page(page).tags
    sources = [attributes["src"] for _, attributes in tags if "src" in attributes]
    assert len(sources) == 3 * (1 + 1 + 2)  # for each example a video, its frames and two stages of attention
    assert all(source is not None and source.startswith("data:") for source in sources)
    assert not any(name in attributes for _, attributes in tags for name in ("href", "srcset", "poster"))


def test_page_shows_the_figures_of_both_columns() -> None:
    text = re.sub(r"<[^>]+>", " ", render(report()).split("</style>")[1]).replace("&nbsp;", " ")
    for figure in ("90.6 %", "40.6 %", "93.8 %", "87.5 %", "68.8 %", "12.5 %", "81.2 %", "43.8 %"):
        assert figure in text, figure
    for words in ("In order", "Unordered", "open door", "close door", "32 held-out videos", "3 views"):
        assert words in text, words
    assert "80 % of it here" in text
    assert "a laptop" in text


def test_bars_are_as_long_as_their_figures() -> None:
    widths = re.findall(r'<div class="meter c0"><i style="width:([\d.]+)%">', render(report()))
    assert [float(width) for width in widths[:4]] == [90.6, 93.8, 87.5, 90.6]  # headline, two classes, all


def test_answer_is_marked_right_or_wrong() -> None:
    page = render(report(examples=[example("open_door"), example("close_door")]))
    assert page.count('class="verdict right"') == 2  # with the unseen one
    assert page.count('class="verdict wrong"') == 1


def test_text_is_escaped() -> None:
    page = render(report(title="<script>alert(1)</script>", facts={"a & b": '"<i>"'}))
    assert "<script" not in page
    assert "a &amp; b" in page


def test_curves_end_where_the_history_ends() -> None:
    page = render(report())
    accuracy = page.split("held-out accuracy, %</text>")[1].split("</svg>")[0]
    points = [
        [tuple(map(float, point.split(","))) for point in line.split()]
        for line in re.findall(r'<polyline class="line c\d" points="([^"]+)"', accuracy)
    ]
    assert len(points) == 2
    for line in points:
        assert len(line) == 4  # chance before training, then three epochs
        (_, chance), (_, first), _, (_, last) = line
        # SVG's y points down: 50 % of 100 before training, 30 % after the first epoch, 90 % after the third
        assert (first - last) / (first - chance) == pytest.approx((90 - 30) / (50 - 30), rel=0.01)


def test_report_without_history_is_still_written(tmp_path: Path) -> None:
    columns = [Column("a", "b", evaluation(correct=(1, 1)), [], [])] * 2
    write_report(tmp_path / "report.html", report(columns=columns))
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_png_is_read_back_by_a_decoder() -> None:
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 4), dtype=np.uint8)
    with av.open(io.BytesIO(png(image))) as container:
        frame = next(container.decode(video=0))
    assert np.array_equal(frame.to_ndarray(format="rgba"), image)


def test_heat_lies_where_the_attention_is() -> None:
    frames = np.full((8, 3, 32, 32), 128, np.uint8)
    attention = np.zeros((4, 2, 2))
    attention[3, 1, 0] = 1.0  # last of four steps, lower left
    heat = overlay(frames, attention).astype(int).sum(1)
    assert heat.shape == (8, 32, 32)
    assert np.ptp(heat[:6]) == 0  # steps 0 to 2 are frames 0 to 5
    for frame in heat[6:]:
        assert frame[24:, :8].min() > frame[:8, 24:].max()
