"""Where memory runs out, batches are halved, and results stay the same."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from uniformerv2 import Predictor, evaluate, extract_features
from uniformerv2.errors import RecipeError
from uniformerv2.inference import parts
from uniformerv2.inference.parts import in_parts
from uniformerv2.model.uniformerv2 import UniFormerV2

SAID = r"memory ran out with 4 clips at once \(CUDA out of memory\): smaller batches"


class Card:
    """Computes some rows at once, and runs out of memory with more."""

    def __init__(self, rows: int) -> None:
        self.rows, self.tried = rows, list[int]()

    def check(self, rows: int) -> None:
        self.tried.append(rows)
        if rows > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    def compute(self, rows: Tensor) -> Tensor:
        self.check(len(rows))
        return rows.square()


def test_a_batch_is_halved_until_it_fits_and_stays_so() -> None:
    card, rows = Card(2), torch.arange(20.0).view(10, 2)
    with pytest.warns(UserWarning, match="ran out with 8 clips") as said:
        found = in_parts(card.compute, rows, 8, by=card)
    assert len(said) == 1
    assert torch.equal(torch.cat(found), rows.square())
    assert card.tried == [8, 4, 2, 2, 2, 2, 2]
    with warnings.catch_warnings(action="error"):
        in_parts(card.compute, rows[:3], 8, by=card)
    assert card.tried[-2:] == [2, 1]
    kept = len(parts._fitting)
    del card
    gc.collect()
    assert len(parts._fitting) == kept - 1


def test_one_clip_that_does_not_fit_is_one_clear_error() -> None:
    card = Card(0)
    with (
        pytest.warns(UserWarning, match="ran out with 2"),
        pytest.raises(RecipeError, match=r"^one clip at a time takes more memory than there is: CUDA out of memory$"),
    ):
        in_parts(card.compute, torch.zeros(2, 1), 2, by=card)
    assert card.tried == [2, 1]


@contextmanager
def small_card(rows: int) -> Iterator[Card]:
    """Every model runs out of memory with more clips than that."""
    card, genuine = Card(rows), UniFormerV2.forward_features

    def forward_features(self: UniFormerV2, clip: Tensor, **options: Any) -> Any:
        card.check(len(clip))
        return genuine(self, clip, **options)

    with patch.object(UniFormerV2, "forward_features", forward_features):
        yield card


@pytest.mark.parametrize("command", ["predict", "evaluate", "features"])
def test_what_people_run_goes_on_with_the_same_results(lively: UniFormerV2, colours: Path, command: str) -> None:
    videos = sorted(colours.rglob("*.mp4"))[:5]
    commands: dict[str, Callable[[], Any]] = {
        "predict": lambda: [
            [score for _, score in sorted(zip(one.labels, one.scores, strict=True))]  # type: ignore[union-attr]
            for one in Predictor(lively, batch_size=4).predict_all(videos, workers=0)
        ],
        "evaluate": lambda: evaluate(lively, colours, split="all", batch_size=4, workers=0).scores.tolist(),
        "features": lambda: extract_features(lively, videos, batch_size=4, workers=0).embeddings.tolist(),
    }
    expected = commands[command]()
    with small_card(1 if command == "features" else 2) as card, pytest.warns(UserWarning, match=SAID) as said:
        found = commands[command]()
    assert max(card.tried) == 4
    assert len(said) == 1
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-6)
