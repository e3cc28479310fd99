from __future__ import annotations

from pathlib import Path

import pytest

from uniformerv2.data.annotations import Annotation
from uniformerv2.data.sources import read_annotations
from uniformerv2.data.split import of_split
from uniformerv2.errors import AnnotationError


def test_rows_of_a_split() -> None:
    rows = [Annotation(Path("a.mp4"), "a", split=split) for split in ("train", "val", "test", None)]
    train, val, test, none = rows
    assert of_split(rows, "held-out") == [val, test, none]
    assert of_split(rows, "test") == [test, none]
    assert of_split(rows, "all") == read_annotations(rows) == rows
    assert read_annotations(rows[:3], split="train") == [train]
    with pytest.raises(AnnotationError, match="'val'"):
        of_split([train], "val")
