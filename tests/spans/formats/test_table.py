"""Formats are told apart by content; whatever is wrong in a file is told as that, and nothing else happens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spans.formats import (
    test_activitynet,
    test_charades,
    test_cvat,
    test_edl,
    test_elan,
    test_label_studio,
    test_subtitles,
    test_tables,
    test_thumos,
    test_via,
    test_x_anylabeling,
)
from spans.rows import UNEVEN, text
from uniformerv2.errors import UniFormerV2Error
from uniformerv2.spans.files import read_rows
from uniformerv2.spans.formats.label_file import open_label_file
from uniformerv2.spans.formats.table import FORMATS

SAMPLES = [
    ("activitynet", test_activitynet.TRUTH),
    ("activitynet", test_activitynet.HACS),
    ("label_studio", test_label_studio.EXPORT),
    ("label_studio", test_label_studio.OF_SOUND),
    ("label_studio", test_label_studio.MINIMAL),
    ("x_anylabeling", test_x_anylabeling.SIDECAR),
    ("via", test_via.PROJECT),
    ("cvat", test_cvat.document(test_cvat.track(test_cvat.box(1), test_cvat.box(3, outside=1)))),
    ("elan", test_elan.DOCUMENT),
    ("vtt", test_subtitles.VTT),
    ("srt", test_subtitles.SRT),
    ("edl", test_edl.EDITED),
    ("charades", test_charades.TABLE),
    ("thumos", test_thumos.LINES),
    ("csv", test_tables.MANIFEST),
]
many = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize(("name", "content"), SAMPLES, ids=lambda value: value if len(value) < 20 else "")
def test_a_file_is_of_one_format_whatever_its_name(name: str, content: str, tmp_path: Path) -> None:
    file = open_label_file(text(tmp_path / "labels", content))
    first, *others = (other for other, of in FORMATS.items() if of.is_it(file))
    assert first == name
    assert others in ([], ["srt"])  # of WebVTT, whose cues are alike


def test_every_format_has_a_sample() -> None:
    assert {name for name, _ in SAMPLES} == FORMATS.keys()


def read(file: Path) -> None:
    """Whatever it is that a file says."""
    with suppress(UniFormerV2Error):
        for row in read_rows(file):
            assert row.names
            if not row.skip and not row.wrong:
                row.times(lambda: UNEVEN, frame_rate=25)


anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
anything |= st.lists(anything, max_size=2) | st.dictionaries(st.text(max_size=3), anything, max_size=2)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of all values within a value of JSON."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@pytest.mark.parametrize("content", [content for _, content in SAMPLES if content[0] in "[{"])
@given(st.data())
@many
def test_json_that_holds_other_things(content: str, tmp_path: Path, data: st.DataObject) -> None:
    whole = [json.loads(content)]
    *path, last = data.draw(st.sampled_from([(0, *path) for path in places(whole[0])]))
    inner: Any = whole
    for key in path:
        inner = inner[key]
    inner[last] = data.draw(anything)
    read(text(tmp_path / "x.json", json.dumps(whole[0])))


@pytest.mark.parametrize("content", [content for _, content in SAMPLES if content[0] not in "[{"])
@given(st.data())
@many
def test_texts_that_are_damaged(content: str, tmp_path: Path, data: st.DataObject) -> None:
    pieces = re.split(r"([\w.]+)", content)
    at, size = data.draw(st.integers(0, len(pieces))), data.draw(st.integers(0, 3))
    pieces[at : at + size] = [data.draw(st.text(st.characters(exclude_categories=("Cs",)), max_size=3))]
    read(text(tmp_path / "x", "".join(pieces)))
