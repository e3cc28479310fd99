"""A localiser that is trained once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from drawn_films import Trained, drawn_stretches, write_film
from uniformerv2.data.annotations import Annotation
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.tasks.localisation.recipe import LocaliserRecipe, PyramidConfig
from uniformerv2.tasks.localisation.training import train_localiser

RECIPE = LocaliserRecipe(
    window_seconds=1.0,
    stride_seconds=0.25,
    head=PyramidConfig(width=32, heads=2, levels=5, embedding_dropout=0.0, classifier_share=0.0),
    epochs=10,
    batch_size=1,
    lr=3e-3,
    warmup_epochs=1.0,
    evaluate_every=10,
)


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Annotation]:
    """The spans of seven training films and of three that are held out; one of each shows nothing."""
    folder = tmp_path_factory.mktemp("films")
    found = []
    for number in range(6):
        found += write_film(folder / f"train{number}.mp4", drawn_stretches(number), "train")
    write_film(folder / "pause.mp4", [(None, 100)])
    found.append(Annotation(folder / "pause.mp4", "", split="train"))
    for number in range(2):
        found += write_film(folder / f"val{number}.mp4", drawn_stretches(100 + number), "val")
    empty = folder / "empty.mp4"
    write_film(empty, [(None, 90)])
    return [*found, Annotation(empty, "", split="val")]


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many windows were embedded, call by call."""
    calls: list[int] = []
    forward_features = UniFormerV2.forward_features

    def counting(self: UniFormerV2, clip: Tensor, **options: Any) -> Any:
        calls.append(len(clip))
        return forward_features(self, clip, **options)

    monkeypatch.setattr(UniFormerV2, "forward_features", counting)
    return calls


@pytest.fixture(scope="session")
def trained(checkpoint: Path, rows: list[Annotation], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("localisers")
    cache = folder / "embeddings"
    result = train_localiser(checkpoint, rows, RECIPE, folder / "run", workers=0, feature_cache=cache)
    return Trained(checkpoint, rows, RECIPE, result, cache)
