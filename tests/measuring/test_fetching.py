"""Evaluation and features read the numbers of a batch from the device once the next batch is begun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from readback import ReadBack
from uniformerv2.data.sources import read_annotations
from uniformerv2.measuring import evaluation, features
from uniformerv2.measuring.evaluation import HeldOut, evaluate
from uniformerv2.measuring.features import extract_features
from uniformerv2.model.uniformerv2 import UniFormerV2


def watch(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to the numbers of each batch: "asked" and "read"."""
    happened: list[str] = []

    def watched(tensor: Tensor) -> Callable[[], Tensor]:
        assert tensor.numel() < 1000
        happened.append("asked")

        def fetch() -> Tensor:
            happened.append("read")
            return torch.from_numpy(tensor.numpy().copy())  # it is on the host now

        return fetch

    monkeypatch.setattr(module, "fetch_later", watched)
    return happened


def one_late(batches: int) -> list[str]:
    return ["asked", *["asked", "read"] * (batches - 1), "read"]


def test_an_evaluation_reads_the_scores_of_a_batch_late(
    lively: UniFormerV2, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = evaluate(lively, colours, split="all", batch_size=4, workers=0)
    happened, mode = watch(evaluation, monkeypatch), ReadBack(lively.parameters())
    with mode:
        found = evaluate(lively, colours, split="all", batch_size=4, workers=0)
    assert happened == one_late(4)
    assert not mode.waits
    assert (found.scores == expected.scores).all()


def test_so_do_the_evaluations_of_a_training(
    lively: UniFormerV2, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = HeldOut(lively, read_annotations(colours), batch_size=5, workers=0)
    expected = held_out.evaluate(lively)
    happened, mode = watch(evaluation, monkeypatch), ReadBack(lively.parameters())
    with mode:
        found = held_out.evaluate(lively)
    assert happened == one_late(3)
    assert not mode.waits
    assert (found.scores == expected.scores).all()


@pytest.mark.parametrize("window", [None, 0.6])
def test_features_are_read_late(
    lively: UniFormerV2, colours: Path, monkeypatch: pytest.MonkeyPatch, window: float | None
) -> None:
    videos = sorted(colours.rglob("*.mp4"))[:10]

    def embed() -> features.VideoFeatures:
        return extract_features(lively, videos, window_seconds=window, batch_size=4, workers=0)

    expected = embed()
    happened, mode = watch(features, monkeypatch), ReadBack(lively.parameters())
    with mode:
        found = embed()
    assert happened == one_late(3 if window is None else 10)
    assert not mode.waits
    assert (found.embeddings == expected.embeddings).all()
