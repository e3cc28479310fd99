from __future__ import annotations

from pathlib import Path

import pytest

from uniformerv2.data.annotations import Annotation, class_names
from uniformerv2.errors import AnnotationError

ROWS = [Annotation(Path("/data") / name, Path(name).parts[0]) for name in ("walk/a.avi", "run/a.avi", "walk/b.avi")]


def test_class_names_are_sorted() -> None:
    assert class_names(ROWS, minimum=2) == ["run", "walk"]


def test_one_class_is_not_enough_to_train() -> None:
    assert class_names(ROWS[:1]) == ["walk"]
    with pytest.raises(AnnotationError, match=r"found 1 class\(es\) \(walk\) in /data/walk, but at least 2"):
        class_names(ROWS[::2], minimum=2)
