"""The loop, driven by a task that has nothing to do with video."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

from uniformerv2.data.dataset import EpochSampler
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.train.checkpoint import RunFolder
from uniformerv2.train.engine import Cost, Trainer
from uniformerv2.train.log import read_metrics
from uniformerv2.train.recipe import Optimization


class Points(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Eight points of a plane. The draw of a key blurs them, as augmentation does."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        index, draw = key
        blur = torch.randn(3, generator=torch.Generator().manual_seed(draw)) / 10
        point = torch.randn(3, generator=torch.Generator().manual_seed(index)) + blur
        return point, point.sum(0, keepdim=True)


class Regression:
    """Fits the plane. `before_step` is called with the number of the step, from 1."""

    monitor = "score"

    def __init__(self, scores: list[float] | None = None, before_step: Callable[[int], None] = lambda step: None):
        self.scores = scores
        self.before_step = before_step
        self.steps = self.evaluations = 0
        self.scale = 1.0

    def cost(self, model: nn.Module, batch: Any) -> Cost | None:
        self.steps += 1
        self.before_step(self.steps)
        points, targets = batch
        error = model(points) - targets
        return Cost(error.square().mean() * self.scale, {"error": error.abs().mean().item()}, len(points))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        self.evaluations += 1
        model.eval()
        if self.scores is not None:
            return {"score": self.scores.pop(0)}
        return {"score": -model.state_dict()["0.weight"].square().sum().item()}


OPTIMIZATION = Optimization(epochs=4, batch_size=2, lr=0.05, warmup_epochs=1, precision="fp32", seed=5)


def build(
    folder: Path, task: Any, optimization: Optimization = OPTIMIZATION, *, dropout: float = 0.5, **options: Any
) -> Trainer:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(dropout), nn.Linear(16, 1))
    size = optimization.batch_size
    loader = DataLoader(Points(), batch_size=size, sampler=EpochSampler(8, seed=optimization.seed, batch_size=size))
    save = lambda path: save_file(model.state_dict(), path)  # noqa: E731
    return Trainer(model, task, loader, optimization, run=RunFolder(folder), save=save, **options)


def curve(folder: Path) -> list[dict[str, Any]]:
    """Everything that was logged except how fast it was."""
    return [
        {name: value for name, value in record.items() if name != "clips_per_second"}
        for record in read_metrics(folder / "metrics.jsonl")
    ]


def test_it_learns_and_logs_every_step_and_epoch(tmp_path: Path) -> None:
    build(tmp_path, Regression(), Optimization(epochs=30, batch_size=4, lr=0.05, precision="fp32"), dropout=0).fit()
    records = curve(tmp_path)
    steps = [record for record in records if record["kind"] == "step"]
    epochs = [record for record in records if record["kind"] == "epoch"]
    assert [step["step"] for step in steps] == list(range(1, 61))
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, 31))
    assert epochs[-1]["loss"] < epochs[0]["loss"] / 4
    assert {"loss", "error", "lr", "grad_norm", "clips"} <= steps[0].keys()
    # the epoch's loss is the mean over its clips
    assert epochs[0]["loss"] == pytest.approx(sum(step["loss"] for step in steps[:2]) / 2)


@pytest.mark.parametrize("killed_at_step", [1, 5, 10, 12])
def test_a_killed_and_resumed_run_has_the_curve_of_an_unbroken_one(tmp_path: Path, killed_at_step: int) -> None:
    unbroken = build(tmp_path / "unbroken", Regression())
    unbroken.fit()

    def die(step: int) -> None:
        if step == killed_at_step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "killed", Regression(before_step=die)).fit()
    torch.manual_seed(123)  # a resumed process is in another state
    resumed = build(tmp_path / "killed", Regression())
    resumed.resume()
    assert resumed.finished_epochs == (killed_at_step - 1) // 4
    resumed.fit()

    assert curve(tmp_path / "killed") == curve(tmp_path / "unbroken")
    for name, tensor in unbroken.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert resumed.best == unbroken.best


@pytest.mark.parametrize("killed_at_step", [1, 2, 7, 8, 9, 16])
def test_a_run_that_saves_in_the_middle_of_an_epoch_goes_on_there(tmp_path: Path, killed_at_step: int) -> None:
    unbroken = build(tmp_path / "unbroken", Regression())
    unbroken.fit()

    def die(step: int) -> None:
        if step == killed_at_step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "killed", Regression(before_step=die), save_every=0.0).fit()
    torch.manual_seed(123)  # a resumed process is in another state
    task = Regression()
    resumed = build(tmp_path / "killed", task, save_every=0.0)
    resumed.resume()
    resumed.fit()

    assert task.steps == 16 - (killed_at_step - 1)  # no step twice
    assert curve(tmp_path / "killed") == curve(tmp_path / "unbroken")
    for name, tensor in unbroken.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_epochs_and_seeds_differ_in_what_is_dropped(tmp_path: Path) -> None:
    class Masks(Regression):
        def cost(self, model: nn.Module, batch: Any) -> Cost | None:
            masks.append(nn.functional.dropout(torch.ones(64)).tolist())
            return super().cost(model, batch)

    masks: list[list[float]] = []
    build(tmp_path / "a", Masks()).fit()
    build(tmp_path / "b", Masks(), Optimization(epochs=4, batch_size=2, lr=0.05, precision="fp32", seed=6)).fit()
    assert len(masks) == 32
    assert len({tuple(mask) for mask in masks}) == 32


def test_best_is_the_epoch_with_the_best_metric_and_last_the_last(tmp_path: Path) -> None:
    weights = []

    class Remember(Regression):
        def evaluate(self, model: nn.Module) -> dict[str, float]:
            weights.append(model.state_dict()["0.weight"].clone())
            return super().evaluate(model)

    build(tmp_path, Remember([0.5, 0.9, 0.9, 0.7])).fit()
    best, last = (load_file(tmp_path / f"{name}.safetensors")["0.weight"] for name in ("best", "last"))
    assert torch.equal(best, weights[2])  # of equals the later
    assert torch.equal(last, weights[3])


def test_a_resumed_run_keeps_an_earlier_best(tmp_path: Path) -> None:
    first = build(tmp_path, Regression([0.9, 0.1], before_step=lambda step: _stop(step == 9)))
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    before = (tmp_path / "best.safetensors").read_bytes()
    second = build(tmp_path, Regression([0.3, 0.8]))
    second.resume()
    second.fit()
    assert second.best == 0.9
    assert (tmp_path / "best.safetensors").read_bytes() == before


def _stop(now: bool) -> None:
    if now:
        raise KeyboardInterrupt


@pytest.mark.parametrize(("every", "evaluated"), [(1, [1, 2, 3, 4]), (3, [3, 4]), (9, [4])])
def test_evaluates_as_often_as_the_recipe_says_and_at_the_end(tmp_path: Path, every: int, evaluated: list[int]) -> None:
    optimization = Optimization(epochs=4, batch_size=2, precision="fp32", evaluate_every=every)
    build(tmp_path, Regression(), optimization).fit()
    assert [r["epoch"] for r in curve(tmp_path) if r["kind"] == "epoch" and "score" in r] == evaluated


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_spoils_the_weights(tmp_path: Path, bad: float) -> None:
    task = Regression()

    def spoil(step: int) -> None:
        task.scale = bad if step == 6 else 1.0

    task.before_step = spoil
    trainer = build(tmp_path, task)
    with pytest.raises(RecipeError, match=rf"{tmp_path}: loss {bad} .*step 6, epoch 2.*lower lr than 0.05"):
        trainer.fit()
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())
    assert RunFolder(tmp_path).load_state()["epoch"] == 1


def test_gradients_are_scaled_down_to_the_largest_norm(tmp_path: Path) -> None:
    task = Regression()
    task.scale = 1e4
    trainer = build(
        tmp_path, task, Optimization(epochs=1, batch_size=2, precision="fp32", clip_norm=0.5, warmup_epochs=0)
    )
    trainer.fit()
    norms = [record["grad_norm"] for record in curve(tmp_path) if record["kind"] == "step"]
    assert min(norms) > 0.5  # what is logged is the norm before
    left = torch.stack([parameter.grad.norm() for parameter in trainer.model.parameters()]).norm()
    assert left.item() == pytest.approx(0.5, rel=1e-4)


def test_batches_that_cannot_be_read_are_no_steps(tmp_path: Path) -> None:
    class Broken(Regression):
        def cost(self, model: nn.Module, batch: Any) -> Cost | None:
            cost = super().cost(model, batch)
            return None if self.steps % 2 else cost

    build(tmp_path / "half", Broken()).fit()
    steps = [record["step"] for record in curve(tmp_path / "half") if record["kind"] == "step"]
    assert steps == list(range(2, 17, 2))

    class AllBroken(Regression):
        def cost(self, model: nn.Module, batch: Any) -> Cost | None:
            return None

    with pytest.raises(VideoError, match="not one training video"):
        build(tmp_path / "all", AllBroken()).fit()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_task_is_called_in_the_precision_of_the_recipe(tmp_path: Path, precision: Any) -> None:
    seen = []

    class Watch(Regression):
        def cost(self, model: nn.Module, batch: Any) -> Cost | None:
            seen.append(model[0](batch[0]).dtype)
            return super().cost(model, batch)

        def evaluate(self, model: nn.Module) -> dict[str, float]:
            evaluated.append(model[0](torch.zeros(1, 3)).dtype)
            return super().evaluate(model)

    evaluated: list[torch.dtype] = []
    build(tmp_path, Watch(), Optimization(epochs=1, batch_size=2, warmup_epochs=0, precision=precision)).fit()
    assert set(seen) == {{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]}
    assert set(evaluated) == {torch.float32}


def test_a_line_per_epoch_where_there_is_no_terminal(tmp_path: Path) -> None:
    text = io.StringIO()
    build(tmp_path, Regression(), console=Console(file=text, force_terminal=False)).fit()
    lines = text.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"epoch {epoch}/4" for epoch in range(1, 5)]
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"loss {last['loss']:.3f}  error {last['error']:.3f}  score {last['score']:.3f}" in lines[-1]
    assert "clips/s" in lines[-1]
    assert lines[-1].endswith("0:00:00 left")


def test_a_terminal_shows_a_bar_with_loss_speed_and_time_left(tmp_path: Path) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=140, legacy_windows=False)
    build(tmp_path, Regression(), console=console).fit()
    assert "━" in text.getvalue()
    assert "left" in text.getvalue()
    assert text.getvalue().count("clips/s") >= 4
