"""Which views there can be."""

from __future__ import annotations

from typing import Any

import pytest

from uniformerv2.errors import RecipeError
from uniformerv2.video.views import Views


def test_views_are_clips_times_crops() -> None:
    assert [len(Views()), len(Views(clips=4, crops=3))] == [1, 12]


@pytest.mark.parametrize("values", [{"clips": 0}, {"crops": 2}, {"average": "sum"}])
def test_impossible_views(values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="got"):
        Views(**values)
