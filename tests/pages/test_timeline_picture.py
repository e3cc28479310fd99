"""The picture of a timeline shows its scores, however long the video is."""

from __future__ import annotations

import re
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

from helpers import rising_timeline
from uniformerv2.pages.timeline_picture import (
    CLASSES,
    COLUMNS,
    clock,
    draw,
    draw_spans,
    write_picture,
    write_spans_picture,
)
from uniformerv2.spans.span import Span

SVG = "{http://www.w3.org/2000/svg}"
KINDS = ("track", "found", "true")


def test_the_picture(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.svg", rising_timeline())
    picture = xml.parse(tmp_path / "a.svg").getroot()
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "a & b.mp4"
    assert [text for text in texts if text and text.startswith("class")] == ["class 1", "class 0", "class 2"]
    assert "80 %" in texts
    path = next(picture.iter("{http://www.w3.org/2000/svg}path")).attrib["d"]
    heights = [float(one) for one in re.findall(r"V([\d.]+)", path)]
    assert heights[:5] == sorted(heights[:5], reverse=True)  # the score rises, upwards on the screen
    assert "http" not in (tmp_path / "a.svg").read_text().replace("http://www.w3.org/2000/svg", "")


def test_a_picture_of_a_long_video_stays_small_and_shows_what_is_short() -> None:
    timeline = rising_timeline(windows=20_000, classes=30)
    timeline.scores[:] = 0.01
    timeline.scores[12_345, 7] = 0.9
    picture = draw(timeline)
    assert len(picture) < 20 * CLASSES * COLUMNS
    assert picture.count("<path") == CLASSES
    assert "90 %" in picture
    assert picture.count("V") <= CLASSES * (COLUMNS + 1)


def test_predicted_spans_stand_above_true_ones_where_they_are_in_time(tmp_path: Path) -> None:
    predicted = [Span(10, 40, "run", 0.5), Span(60, 90, "jump", 0.9), Span(0, 10, "a <b>", 0.4)]
    write_spans_picture(tmp_path / "a.svg", "a & b.mp4", 100.0, predicted, [Span(20, 45, "run"), Span(95, 130, "run")])
    picture = xml.parse(tmp_path / "a.svg").getroot()
    texts = [element.text for element in picture.iter(f"{SVG}text")]
    assert texts[0] == "a & b.mp4"
    # what is true comes first, then the surest
    assert [text for text in texts if text in ("run", "jump", "a <b>")] == ["run", "jump", "a <b>"]
    bars = {kind: [bar.attrib for bar in picture.iter(f"{SVG}rect") if bar.get("class") == kind] for kind in KINDS}
    assert [len(bars[kind]) for kind in KINDS] == [3, 3, 2]
    left, width = (float(bars["track"][0][name]) for name in ("x", "width"))
    run, first, second = bars["found"][0], *bars["true"]
    assert [(float(run["x"]) - left) / width, float(run["width"]) / width] == pytest.approx([0.1, 0.3])
    assert [(float(first["x"]) - left) / width, float(first["width"]) / width] == pytest.approx([0.2, 0.25])
    assert float(second["x"]) + float(second["width"]) == pytest.approx(left + width)  # cut at the end of the video
    assert float(run["height"]) / float(bars["track"][0]["height"]) == pytest.approx(0.5)  # its score
    assert float(first["y"]) > float(run["y"]) + float(run["height"])
    assert "run: 1 predicted, 2 true" in (tmp_path / "a.svg").read_text()
    assert "true" not in draw_spans("a", 100.0, predicted).partition("</style>")[2]
    assert 'class="track"' not in draw_spans("a", 3.0, [])  # a film without any


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (3.5, "3.5 s"), (60, "1:00"), (754, "12:34"), (7384, "2:03:04")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
