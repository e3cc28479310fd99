"""The picture of a timeline shows its scores, however long the video is."""

from __future__ import annotations

import re
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

from helpers import rising_timeline
from uniformerv2.pages.timeline_picture import CLASSES, COLUMNS, clock, draw, write_picture


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


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (3.5, "3.5 s"), (60, "1:00"), (754, "12:34"), (7384, "2:03:04")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
