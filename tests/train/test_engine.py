"""The loop, driven by a task that has nothing to do with video."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

from uniformerv2.data.order import EpochSampler
from uniformerv2.distributed import Ranks
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.train.engine import Cost, Trainer
from uniformerv2.train.log import TIMINGS, read_metrics
from uniformerv2.train.recipe import Optimization
from uniformerv2.train.run_folder import RunFolder


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
    save = lambda model, path: save_file(model.state_dict(), path)  # noqa: E731
    return Trainer(model, task, loader, optimization, run=RunFolder(folder), save=save, **options)


def state_of(folder: Path) -> dict[str, Any]:
    facts = RunFolder(folder).open_states(Ranks()).facts()
    assert facts is not None
    return facts


def curve(folder: Path) -> list[dict[str, Any]]:
    """Everything that was logged but the timings."""
    return [
        {name: value for name, value in record.items() if name not in TIMINGS}
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
    assert state_of(tmp_path)["epoch"] == 1


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


# --- accumulation, scaling, averaging


def weights_after(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Of a run without BatchNorm, in which a step is eight points."""
    folder.mkdir()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.GELU(), nn.Linear(16, 1))
    optimization = Optimization(epochs=6, batch_size=8, lr=0.05, warmup_epochs=1, precision="fp32", **options)
    sampler = EpochSampler(8, seed=optimization.seed, batch_size=8)
    loader = DataLoader(Points(), batch_size=8 // optimization.accumulate, sampler=sampler)
    Trainer(model, Regression(), loader, optimization, run=RunFolder(folder), save=lambda model, path: None).fit()
    return model.state_dict()


@pytest.mark.parametrize("clip_norm", [20.0, 0.1])
def test_accumulated_batches_are_one_batch(tmp_path: Path, clip_norm: float) -> None:
    whole = weights_after(tmp_path / "whole", clip_norm=clip_norm)
    records = curve(tmp_path / "whole")
    for parts in (2, 8):
        split = weights_after(tmp_path / f"{parts}", accumulate=parts, clip_norm=clip_norm)
        for name, tensor in split.items():
            torch.testing.assert_close(tensor, whole[name], rtol=1e-4, atol=1e-6)
        for one, other in zip(curve(tmp_path / f"{parts}"), records, strict=True):  # as many steps, of as many clips
            assert one.pop("kind") == other["kind"]
            assert one == pytest.approx({name: value for name, value in other.items() if name != "kind"}, rel=1e-4)


def test_batches_of_different_sizes_weigh_as_many_clips_as_they_have(tmp_path: Path) -> None:
    class Short(Regression):
        """Of the first batch of a step, one point can be read; of the last, none."""

        def cost(self, model: nn.Module, batch: Any) -> Cost | None:
            points, targets = batch
            some = [slice(0, 1), slice(None), slice(0, 0)][self.steps % 3]
            seen.append((points[some], targets[some]))
            if some == slice(0, 0):
                self.steps += 1
                return None
            return super().cost(model, seen[-1])

    seen: list[Any] = []
    model = nn.Linear(3, 1)
    optimization = Optimization(epochs=1, batch_size=6, accumulate=3, warmup_epochs=0, precision="fp32", clip_norm=1e9)
    loader = DataLoader(Points(), batch_size=2, sampler=EpochSampler(8, seed=0, batch_size=6))
    trainer = Trainer(model, Short([0.0]), loader, optimization, run=RunFolder(tmp_path), save=lambda model, path: None)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer.fit()
    gradient = model.weight.grad
    model.load_state_dict(start)
    points, targets = (torch.cat([one[number] for one in seen]) for number in (0, 1))
    assert len(points) == 3
    model.zero_grad()
    (model(points) - targets).square().mean().backward()
    assert gradient is not None
    assert model.weight.grad is not None
    torch.testing.assert_close(gradient, model.weight.grad)
    step = curve(tmp_path)[0]
    assert step["clips"] == 3
    assert step["loss"] == pytest.approx((model(points) - targets).square().mean().item(), rel=1e-5)


def test_a_killed_run_that_accumulates_and_averages_resumes(tmp_path: Path) -> None:
    optimization = Optimization(
        epochs=4, batch_size=4, accumulate=2, lr=0.05, warmup_epochs=1, precision="fp32", ema=0.9
    )

    def trainer(folder: Path, die_at: int = -1) -> Trainer:
        built = build(folder, Regression(before_step=lambda step: _stop(step == die_at)), optimization, save_every=0.0)
        sampler = EpochSampler(8, seed=optimization.seed, batch_size=4)
        built.loader = DataLoader(Points(), batch_size=2, sampler=sampler)
        return built

    unbroken = trainer(tmp_path / "unbroken")
    unbroken.fit()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "killed", die_at=8).fit()  # between the two batches of step 4
    assert len(curve(tmp_path / "killed")) == 4  # three steps and an epoch
    resumed = trainer(tmp_path / "killed")
    resumed.resume()
    resumed.fit()
    assert curve(tmp_path / "killed") == curve(tmp_path / "unbroken")
    for file in ("last", "best"):
        assert (tmp_path / "killed" / f"{file}.safetensors").read_bytes() == (
            tmp_path / "unbroken" / f"{file}.safetensors"
        ).read_bytes()


def test_the_average_of_the_weights_is_evaluated_and_saved_and_both_are_kept(tmp_path: Path) -> None:
    class Remember(Regression):
        def cost(self, model: nn.Module, batch: Any) -> Cost | None:
            trained.append(model.state_dict()["0.weight"].clone())
            return super().cost(model, batch)

        def evaluate(self, model: nn.Module) -> dict[str, float]:
            evaluated.append(model.state_dict()["0.weight"].clone())
            return super().evaluate(model)

    trained: list[torch.Tensor] = []
    evaluated: list[torch.Tensor] = []
    trainer = build(tmp_path, Remember(), Optimization(epochs=2, batch_size=2, precision="fp32", ema=0.5))
    trainer.fit()
    trained.append(trainer.model.state_dict()["0.weight"])
    average = trained[0]
    for number, weights in enumerate(trained[1:]):
        decay = min(0.5, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * weights
    torch.testing.assert_close(evaluated[-1], average)
    assert torch.equal(load_file(tmp_path / "last.safetensors")["0.weight"], evaluated[-1])
    states = RunFolder(tmp_path).open_states(Ranks())
    saved = {name: torch.empty(16, 3) for name in ("model/0.weight", "average/0.weight")}
    states.load(saved)
    assert torch.equal(saved["model/0.weight"], trained[-1])
    assert torch.equal(saved["average/0.weight"], evaluated[-1])


def test_a_run_stops_when_it_gets_no_better(tmp_path: Path) -> None:
    optimization = Optimization(epochs=9, batch_size=2, precision="fp32", early_stop=2)
    text = io.StringIO()
    scores = [0.5, 0.9, 0.9, 0.8, 1.0]
    build(tmp_path, Regression(scores), optimization, console=Console(file=text)).fit()
    assert scores == [1.0]  # never asked for
    assert text.getvalue().splitlines()[-1] == (
        "stopped early after epoch 4: 2 evaluations without a better score than 0.9"
    )
    resumed = build(tmp_path, Regression([1.0]), optimization)
    resumed.resume()
    resumed.fit()
    assert resumed.finished_epochs == 4  # it does not go on


def test_fp16_scales_the_loss_and_leaves_out_steps_that_overflow(tmp_path: Path) -> None:
    task = Regression()
    trainer = build(tmp_path, task, Optimization(epochs=2, batch_size=2, precision="fp16", ema=0.9), dropout=0)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # too much for half precision
    before = trainer.model.state_dict()["0.weight"].clone()
    weights = []
    task.before_step = lambda step: weights.append(trainer.model.state_dict()["0.weight"].clone())
    trainer.fit()
    steps = [record for record in curve(tmp_path) if record["kind"] == "step"]
    overflowed = [bool(step.get("overflow")) for step in steps]
    assert overflowed[0]
    assert torch.equal(weights[1], before)
    assert trainer.average is not None
    assert trainer.average.updates == overflowed.count(False)
    assert trainer.scaler.get_scale() == 2.0 ** (40 - overflowed.count(True))
    assert state_of(tmp_path)["scaler"]["scale"] == trainer.scaler.get_scale()


def test_what_is_compiled_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Watch(Regression):
        def cost(self, model: nn.Module, batch: Any) -> Cost | None:
            seen.append(type(model).__name__)
            return super().cost(model, batch)

    seen: list[str] = []
    build(tmp_path / "plain", Watch(), dropout=0).fit()
    assert set(seen) == {"Sequential"}
    seen.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    optimization = replace(OPTIMIZATION, compile=True)
    build(tmp_path / "compiled", Watch(), optimization, dropout=0).fit()
    assert set(seen) == {"OptimizedModule"}
    assert curve(tmp_path / "compiled") == curve(tmp_path / "plain")


# --- numbers that are not finite


@dataclass
class Files:
    """A batch that says where it comes from."""

    points: torch.Tensor
    targets: torch.Tensor
    paths: list[str]


class Named(Regression):
    def cost(self, model: nn.Module, batch: Any) -> Cost | None:
        return super().cost(model, (batch.points, batch.targets))


class Explodes(nn.Module):
    """Fine but for the one point whose first coordinate is 7."""

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return points / torch.where(points[:, :1] == 7, 0.0, 1.0)


def test_the_error_names_the_step_the_files_and_the_first_bad_layer(tmp_path: Path) -> None:
    def collate(samples: Any) -> Files:
        points, targets = (torch.stack([sample[number] for sample in samples]) for number in (0, 1))
        return Files(points, targets, [f"{point[0]:.3f}.mp4" for point in points])

    class OneBad(Points):
        def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
            point, target = super().__getitem__(key)
            return (torch.tensor([7.0, 1.0, 1.0]), target) if key[0] == 3 else (point, target)

    model = nn.Sequential(Explodes(), nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimization = Optimization(epochs=1, batch_size=4, accumulate=2, warmup_epochs=0, precision="fp32")
    loader = DataLoader(OneBad(), batch_size=2, sampler=EpochSampler(8, seed=0, batch_size=4), collate_fn=collate)
    trainer = Trainer(model, Named(), loader, optimization, run=RunFolder(tmp_path), save=lambda model, path: None)
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
