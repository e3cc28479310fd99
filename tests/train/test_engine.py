"""The loop, driven by a task that has nothing to do with video."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

from helpers import interrupt, logged
from uniformerv2.data.order import EpochSampler
from uniformerv2.distributed import Ranks
from uniformerv2.errors import AnnotationError, RecipeError
from uniformerv2.train.engine import Trainer
from uniformerv2.train.recipe import Optimization
from uniformerv2.train.run_folder import RunFolder
from uniformerv2.train.state import StateFolder
from uniformerv2.train.task import BatchLoss


class Points(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Eight points of a plane. The draw of a key blurs them, as augmentation does."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        index, draw = key
        blur = torch.randn(3, generator=torch.Generator().manual_seed(draw)) / 10
        point = torch.randn(3, generator=torch.Generator().manual_seed(index)) + blur
        return point, point.sum(0, keepdim=True)


class Epochs(DataLoader[Any]):
    """A loader that can be told the epoch."""

    def set_epoch(self, epoch: int, *, first_batch: int = 0) -> None:
        self.sampler.set_epoch(epoch, first_batch=first_batch)  # type: ignore[attr-defined]


class Regression:
    """Fits the plane. `before_step` is called with the number of the batch, from 1, and the model."""

    monitor, lower_is_better = "score", False
    scalars = ("error",)

    def __init__(
        self,
        scores: list[float] | None = None,
        before_step: Callable[[int, nn.Module], object] = lambda step, model: None,
    ) -> None:
        self.scores, self.before_step = scores, before_step
        self.steps = 0
        self.scale = 1.0

    def loss(self, model: nn.Module, batch: Any) -> BatchLoss | None:
        self.steps += 1
        self.before_step(self.steps, model)
        points, targets = batch
        error = model(points) - targets
        return BatchLoss(error.square().mean() * self.scale, {"error": error.detach().abs().mean()}, len(points))

    def empty_input(self, model: nn.Module) -> torch.Tensor:
        return torch.empty(0, 3)

    def files(self, batch: Any) -> Sequence[str]:
        return [f"{point[0]:.3f}.mp4" for point in batch[0]]

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        model.eval()
        if self.scores is not None:
            return {"score": self.scores.pop(0)}
        return {"score": -model.state_dict()["0.weight"].square().sum().item()}


OPTIMIZATION = Optimization(epochs=4, batch_size=2, lr=0.05, warmup_epochs=1, precision="fp32", seed=5)


def net(dropout: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(dropout), nn.Linear(16, 1))


def build(
    folder: Path,
    task: Any,
    optimization: Optimization = OPTIMIZATION,
    *,
    model: nn.Module | None = None,
    points: Points | None = None,
    **options: Any,
) -> Trainer:
    folder.mkdir(exist_ok=True)
    size = optimization.batch_size
    sampler = EpochSampler(8, seed=optimization.seed, batch_size=size)
    loader = Epochs(points or Points(), batch_size=size // optimization.accumulate, sampler=sampler)
    save = lambda model, path: save_file(model.state_dict(), path)  # noqa: E731
    return Trainer(model or net(), task, loader, optimization, run=RunFolder(folder), save=save, **options)


def state_of(folder: Path) -> dict[str, Any]:
    return StateFolder(RunFolder(folder).states, Ranks()).facts()


def test_it_learns_and_logs_every_step_and_epoch(tmp_path: Path) -> None:
    optimization = Optimization(epochs=30, batch_size=4, lr=0.05, precision="fp32")
    build(tmp_path, Regression(), optimization, model=net(dropout=0)).fit()
    steps, epochs = logged(tmp_path, "step"), logged(tmp_path, "epoch")
    assert [step["step"] for step in steps] == list(range(1, 61))
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, 31))
    assert epochs[-1]["loss"] < epochs[0]["loss"] / 4
    assert {"loss", "error", "lr", "grad_norm", "clips"} <= steps[0].keys()
    # the epoch's loss is the mean over its clips
    assert epochs[0]["loss"] == pytest.approx(sum(step["loss"] for step in steps[:2]) / 2)


def die(at: int) -> Callable[[int, nn.Module], None]:
    return lambda step, model: interrupt() if step == at else None


ACCUMULATED = replace(OPTIMIZATION, batch_size=4, accumulate=2, ema=0.9)


@pytest.mark.parametrize("save_every_seconds", [600.0, 0.0])
@pytest.mark.parametrize(
    ("optimization", "killed_at"),
    [*((OPTIMIZATION, step) for step in (1, 5, 8, 10, 16)), (ACCUMULATED, 8)],  # 8: between two batches
)
def test_a_killed_and_resumed_run_has_the_curve_of_an_unbroken_one(
    tmp_path: Path, optimization: Optimization, killed_at: int, save_every_seconds: float
) -> None:
    unbroken = build(tmp_path / "unbroken", Regression(), optimization)
    unbroken.fit()
    options = {"save_every_seconds": save_every_seconds}
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "killed", Regression(before_step=die(killed_at)), optimization, **options).fit()
    torch.manual_seed(123)  # a resumed process is in another state
    task = Regression()
    resumed = build(tmp_path / "killed", task, optimization, **options)
    resumed.resume()
    resumed.fit()

    parts = optimization.accumulate
    lost = (killed_at - 1) % parts if not save_every_seconds else (killed_at - 1) % 4  # batches since the last save
    assert task.steps == 16 - (killed_at - 1) + lost  # no other batch twice
    assert logged(tmp_path / "killed") == logged(tmp_path / "unbroken")
    for name, tensor in unbroken.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert resumed.best == unbroken.best
    for file in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "unbroken" / file).read_bytes()


def test_epochs_and_seeds_differ_in_what_is_dropped(tmp_path: Path) -> None:
    masks: list[tuple[float, ...]] = []
    draw = lambda step, model: masks.append(tuple(nn.functional.dropout(torch.ones(64)).tolist()))  # noqa: E731
    build(tmp_path / "a", Regression(before_step=draw)).fit()
    build(tmp_path / "b", Regression(before_step=draw), replace(OPTIMIZATION, seed=6)).fit()
    assert len(masks) == len(set(masks)) == 32


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
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, Regression([0.9, 0.1], before_step=die(9))).fit()
    before = (tmp_path / "best.safetensors").read_bytes()
    second = build(tmp_path, Regression([0.3, 0.8]))
    second.resume()
    second.fit()
    assert second.best == 0.9
    assert (tmp_path / "best.safetensors").read_bytes() == before


@pytest.mark.parametrize(("every", "evaluated"), [(1, [1, 2, 3, 4]), (3, [3, 4]), (9, [4])])
def test_evaluates_as_often_as_the_recipe_says_and_at_the_end(tmp_path: Path, every: int, evaluated: list[int]) -> None:
    build(tmp_path, Regression(), replace(OPTIMIZATION, evaluate_every=every)).fit()
    assert [record["epoch"] for record in logged(tmp_path, "epoch") if "score" in record] == evaluated


def test_batches_that_cannot_be_read_are_no_steps(tmp_path: Path) -> None:
    class Broken(Regression):
        def loss(self, model: nn.Module, batch: Any) -> BatchLoss | None:
            found = super().loss(model, batch)
            return None if self.steps % 2 else found

    build(tmp_path / "half", Broken()).fit()
    assert [record["step"] for record in logged(tmp_path / "half", "step")] == list(range(2, 17, 2))

    class AllBroken(Regression):
        def loss(self, model: nn.Module, batch: Any) -> BatchLoss | None:
            return None

    with pytest.raises(AnnotationError, match="nothing to train on in epoch 1"):
        build(tmp_path / "all", AllBroken()).fit()


def test_a_run_stops_when_it_gets_no_better(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    optimization = replace(OPTIMIZATION, epochs=9, early_stop=2)
    scores = [0.5, 0.9, 0.9, 0.8, 1.0]
    build(tmp_path, Regression(scores), optimization, progress=True).fit()
    assert scores == [1.0]  # never asked for
    said = "stopped early after epoch 4: 2 evaluations without a better score than 0.9"
    assert capsys.readouterr().err.splitlines()[-1] == said
    resumed = build(tmp_path, Regression([1.0]), optimization)
    resumed.resume()
    resumed.fit()
    assert resumed.finished_epochs == 4  # it does not go on


def test_a_line_per_epoch_is_all_that_goes_to_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path, Regression(), progress=True).fit()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"epoch {epoch}/4" for epoch in range(1, 5)]
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"loss {last['loss']:.3f}  error {last['error']:.3f}  score {last['score']:.3f}" in lines[-1]
    assert "clips/s" in lines[-1]
    assert lines[-1].endswith("0:00:00 left")
    build(tmp_path, Regression()).fit()
    assert capsys.readouterr() == ("", "")


# --- the step: precision, accumulation, clipping, averaging


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_task_is_called_in_the_precision_of_the_recipe(tmp_path: Path, precision: Any) -> None:
    class Watch(Regression):
        def evaluate(self, model: nn.Module) -> dict[str, float]:
            evaluated.append(model[0](torch.zeros(1, 3)).dtype)  # type: ignore[operator]
            return super().evaluate(model)

    seen: list[torch.dtype] = []
    evaluated: list[torch.dtype] = []
    watch = Watch(before_step=lambda step, model: seen.append(model[0](torch.zeros(1, 3)).dtype))  # type: ignore[operator]
    build(tmp_path, watch, replace(OPTIMIZATION, precision=precision)).fit()
    assert set(seen) == {{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]}
    assert set(evaluated) == {torch.float32}


def test_gradients_are_scaled_down_to_the_largest_norm(tmp_path: Path) -> None:
    task = Regression()
    task.scale = 1e4
    trainer = build(tmp_path, task, replace(OPTIMIZATION, epochs=1, clip_norm=0.5))
    trainer.fit()
    assert min(step["grad_norm"] for step in logged(tmp_path, "step")) > 0.5  # what is logged is the norm before
    left = torch.stack([parameter.grad.norm() for parameter in trainer.model.parameters()]).norm()
    assert left.item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("clip_norm", [20.0, 0.1])
def test_accumulated_batches_are_one_batch(tmp_path: Path, clip_norm: float) -> None:
    runs = {}
    for parts in (1, 2, 8):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 16), nn.GELU(), nn.Linear(16, 1))  # without BatchNorm
        changed = replace(OPTIMIZATION, epochs=6, batch_size=8, accumulate=parts, clip_norm=clip_norm)
        build(tmp_path / str(parts), Regression(), changed, model=model).fit()
        runs[parts] = model.state_dict()
    for parts in (2, 8):
        for name, tensor in runs[parts].items():
            torch.testing.assert_close(tensor, runs[1][name], rtol=1e-4, atol=1e-6)
        for one, whole in zip(logged(tmp_path / f"{parts}"), logged(tmp_path / "1"), strict=True):  # of as many clips
            assert one.pop("kind") == whole.pop("kind")
            assert one == pytest.approx(whole, rel=1e-4)


def test_batches_of_different_sizes_weigh_as_many_clips_as_they_have(tmp_path: Path) -> None:
    class Short(Regression):
        """Of the first batch of a step, one point can be read; of the last, none."""

        def loss(self, model: nn.Module, batch: Any) -> BatchLoss | None:
            points, targets = batch
            some = [slice(0, 1), slice(None), slice(0, 0)][self.steps % 3]
            seen.append((points[some], targets[some]))
            found = super().loss(model, seen[-1])
            return found if len(seen[-1][0]) else None

    seen: list[Any] = []
    model = nn.Linear(3, 1)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimization = Optimization(epochs=1, batch_size=6, accumulate=3, warmup_epochs=0, precision="fp32", clip_norm=1e9)
    build(tmp_path, Short([0.0]), optimization, model=model).fit()
    gradient = model.weight.grad
    model.load_state_dict(start)
    points, targets = (torch.cat([pair[number] for pair in seen]) for number in (0, 1))
    assert len(points) == 3
    model.zero_grad()
    (model(points) - targets).square().mean().backward()
    torch.testing.assert_close(gradient, model.weight.grad)
    step = logged(tmp_path)[0]
    assert step["clips"] == 3
    assert step["loss"] == pytest.approx((model(points) - targets).square().mean().item(), rel=1e-5)


def test_the_average_of_the_weights_is_evaluated_and_saved_and_both_are_kept(tmp_path: Path) -> None:
    class Remember(Regression):
        def evaluate(self, model: nn.Module) -> dict[str, float]:
            evaluated.append(model.state_dict()["0.weight"].clone())
            return super().evaluate(model)

    trained: list[torch.Tensor] = []
    evaluated: list[torch.Tensor] = []
    task = Remember(before_step=lambda step, model: trained.append(model.state_dict()["0.weight"].clone()))
    trainer = build(tmp_path, task, replace(OPTIMIZATION, epochs=2, ema=0.5))
    trainer.fit()
    trained.append(trainer.model.state_dict()["0.weight"])
    average = trained[0]
    for number, weights in enumerate(trained[1:]):
        decay = min(0.5, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * weights
    torch.testing.assert_close(evaluated[-1], average)
    assert torch.equal(load_file(tmp_path / "last.safetensors")["0.weight"], evaluated[-1])
    saved = {name: torch.empty(16, 3) for name in ("model/0.weight", "average/0.weight")}
    StateFolder(RunFolder(tmp_path).states, Ranks()).load(saved)
    assert torch.equal(saved["model/0.weight"], trained[-1])
    assert torch.equal(saved["average/0.weight"], evaluated[-1])


def test_fp16_scales_the_loss_and_leaves_out_steps_that_overflow(tmp_path: Path) -> None:
    weights: list[torch.Tensor] = []
    task = Regression(before_step=lambda step, model: weights.append(model.state_dict()["0.weight"].clone()))
    trainer = build(tmp_path, task, replace(OPTIMIZATION, precision="fp16", ema=0.9), model=net(dropout=0))
    step = trainer.step
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # too much for half precision
    trainer.fit()
    overflowed = [bool(record.get("overflow")) for record in logged(tmp_path, "step")]
    assert overflowed[0]
    assert torch.equal(weights[1], weights[0])
    assert step.average.updates == overflowed.count(False)
    assert step.scaler.get_scale() == 2.0 ** (40 - overflowed.count(True))
    assert state_of(tmp_path)["scaler"]["scale"] == step.scaler.get_scale()


def test_what_is_compiled_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    watch = lambda step, model: seen.add(type(model).__name__)  # noqa: E731
    build(tmp_path / "plain", Regression(before_step=watch), model=net(dropout=0)).fit()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled = replace(OPTIMIZATION, compile=True)
    build(tmp_path / "compiled", Regression(before_step=watch), compiled, model=net(dropout=0)).fit()
    assert seen == {"Sequential", "FullBatchesCompiled"}
    assert logged(tmp_path / "compiled") == logged(tmp_path / "plain")


# --- numbers that are not finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_spoils_the_weights(tmp_path: Path, bad: float) -> None:
    task = Regression(before_step=lambda step, model: setattr(task, "scale", bad if step == 6 else 1.0))
    trainer = build(tmp_path, task)
    with pytest.raises(RecipeError, match=rf"{tmp_path}: loss {bad} .*step 6, epoch 2.*lower lr than 0.05"):
        trainer.fit()
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())
    assert state_of(tmp_path)["epoch"] == 1


class Explodes(nn.Module):
    """Fine but for the one point whose first coordinate is 7."""

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return points / torch.where(points[:, :1] == 7, 0.0, 1.0)


def test_the_error_names_the_step_the_files_and_the_first_bad_layer(tmp_path: Path) -> None:
    class OneBad(Points):
        def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
            point, target = super().__getitem__(key)
            return (torch.tensor([7.0, 1.0, 1.0]), target) if key[0] == 3 else (point, target)

    model = nn.Sequential(Explodes(), nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    trainer = build(tmp_path, Regression(), ACCUMULATED, model=model, points=OneBad())
    with pytest.raises(
        RecipeError, match=r"at step \d, epoch 1; the first that is not finite: the output of 0; "
    ) as caught:
        trainer.fit()
    message = str(caught.value)
    files = message.partition("files of the batch: ")[2].partition(";")[0].split(", ")
    assert "7.000.mp4" in files
    assert len(files) == 2
    assert "\n" not in message
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
