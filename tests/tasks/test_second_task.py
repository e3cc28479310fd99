"""Another task is a class and a line in the table: everything else takes it as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import tiny_recipe
from uniformerv2.data.loader import Batch
from uniformerv2.distributed import forward_passes
from uniformerv2.tasks import table
from uniformerv2.tasks.rehearsal import dry_run, find_batch_size, overfit_batch
from uniformerv2.tasks.run import train_model
from uniformerv2.tasks.video_task import VideoTask
from uniformerv2.train.recipe import Recipe
from uniformerv2.train.task import BatchLoss


@dataclass(frozen=True)
class Margin:
    """By how much the right class is ahead, on the average."""

    margin: float
    summary = "a margin"

    def to_json(self) -> dict[str, Any]:
        return {"margin": self.margin}


class Presence(VideoTask):
    """Each class is present or not."""

    monitor = "margin"
    scalars = ("present", "absent")

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss | None:
        self.report(batch)
        if not len(batch):
            return None
        logits = model(self.unpack(batch.clips.flatten(0, 1)))
        targets = F.one_hot(batch.labels, logits.shape[1]).float()
        present, absent = (logits.detach()[where].mean() for where in (targets > 0, targets == 0))
        loss = F.binary_cross_entropy_with_logits(logits, targets)
        return BatchLoss(loss, {"present": present, "absent": absent}, len(logits))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return self.measure(model).to_json()

    def measure(self, model: nn.Module) -> Margin:
        model.eval()
        with forward_passes(model), torch.inference_mode():
            logits = model(self.empty_input(model).new_zeros(1, 3, 4, 32, 32))[0]
        return Margin((logits.max() - logits.mean()).item())

    def random_labels(self, clips: int) -> Tensor:
        return torch.randint(self.model.config.num_classes, (clips,))


@pytest.fixture(autouse=True)
def presence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(table.TASKS, "presence", Presence)


@pytest.fixture
def recipe(image_model: Path) -> Recipe:
    return tiny_recipe(image_model, epochs=2, warmup_epochs=0, layout="scene", global_after=(1, 2))


def test_it_is_trained_from_cached_features_too(colours: Path, recipe: Recipe, tmp_path: Path) -> None:
    cached = recipe.vary(frozen_backbone=True, fixed_views=1, cache_features="fp32")
    for name, chosen in (("clips", recipe), ("features", cached)):
        result = train_model(colours, chosen, tmp_path / name, workers=0, task="presence")
        assert result.history[0]["loss"] > result.history[1]["loss"]
        assert {"present", "absent", "margin"} <= result.history[1].keys()
        assert json.loads((tmp_path / name / "evaluation.json").read_text()) == result.evaluation.to_json()


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_process_without_a_readable_video_waits_for_the_others(
    together: Callable[..., list[Any]], colours: Path, recipe: Recipe, tmp_path: Path, way: Any
) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    files = [*sorted(colours.rglob("*[01].mp4")), tmp_path / "broken.mp4"]
    rows = [f"{file},{'red' if file.stem == 'broken' else file.parent.name},train" for file in files]
    rows += [f"{file},{file.parent.name},val" for file in sorted(colours.rglob("*2.mp4"))]
    (tmp_path / "videos.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    whole = recipe.vary(batch_size=2, epochs=1)  # a video for each process

    def work() -> tuple[Any, ...]:
        table.TASKS["presence"] = Presence
        result = train_model(tmp_path / "videos.csv", whole, tmp_path / "run", workers=0, parallel=way, task="presence")
        return result.history[0]["loss"], result.evaluation.to_json(), [video.path for video in result.skipped]

    first, second = together(2, work)
    assert first == second
    assert first[2] == [str(tmp_path / "broken.mp4")]


def test_it_is_rehearsed(colours: Path, recipe: Recipe) -> None:
    assert overfit_batch(colours, recipe, workers=0, task="presence").learned
    assert dry_run(colours, recipe, workers=0, task="presence").steps == 3
    assert find_batch_size(colours, recipe, largest=2, task="presence").largest == 2
