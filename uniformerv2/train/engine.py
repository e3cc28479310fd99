"""The only training loop. A task tells it what a batch costs and how good the model is; it knows none by name."""

from __future__ import annotations

import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

from uniformerv2.device import model_device
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.train.checkpoint import RunFolder
from uniformerv2.train.log import MetricsFile, RunDisplay
from uniformerv2.train.optim import build_optimizer, learning_rate
from uniformerv2.train.precision import autocast
from uniformerv2.train.recipe import Optimization


@dataclass(frozen=True)
class Cost:
    """What a batch costs."""

    loss: Tensor  # scalar: the mean over the clips
    scalars: Mapping[str, float]  # means over the clips, to be logged
    clips: int


@dataclass(frozen=True)
class Step:
    """What came of one optimizer step."""

    means: Mapping[str, float]  # the loss and the task's scalars
    facts: Mapping[str, float]  # learning rate, gradient norm before clipping, clips
    clips: int


class Task(Protocol):
    """A head, a loss and a metric. Another task is another class; the loop stays as it is."""

    monitor: str  # the metric of `evaluate` that decides which epoch was best; more is better

    def cost(self, model: nn.Module, batch: Any) -> Cost | None:
        """The loss of a batch, called under autocast; None if nothing in the batch could be read."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out metrics; empty where nothing is held out."""


class Trainer:
    """Trains a model for a task and keeps the folder of the run.

    The randomness of an epoch follows from (seed, epoch) alone and everything else is saved after each epoch, so a
    run that was killed and is resumed has the loss curve of an unbroken one.

    Args:
        model: on the device that computes.
        task: what to train it for.
        loader: training batches; its sampler has `set_epoch`.
        optimization: rates, lengths, and a precision that is no longer "auto".
        run: the folder, already created.
        save: writes the model to a file.
        console: shows the progress; None shows nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        loader: DataLoader[Any],
        optimization: Optimization,
        *,
        run: RunFolder,
        save: Callable[[Path], None],
        console: Console | None = None,
    ) -> None:
        self.model, self.task, self.loader, self.optimization = model, task, loader, optimization
        self.run, self.save, self.console = run, save, console
        self.optimizer = build_optimizer(model, optimization)
        self.finished_epochs = 0
        self.best: float | None = None  # the monitored metric of the best epoch so far

    def resume(self) -> None:
        """Go back to the last epoch that was saved, if there is one. Raises CheckpointError."""
        state = self.run.load_state()
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.finished_epochs, self.best = state["epoch"], state["best"]

    def fit(self) -> None:
        """Train until the last epoch.

        Raises:
            RecipeError: the loss or the gradient is no longer finite.
            VideoError: not one training video could be read.
        """
        epochs, steps = self.optimization.epochs, len(self.loader)
        metrics = MetricsFile(self.run.metrics, finished_epochs=self.finished_epochs)
        display = RunDisplay(
            self.console, epochs=epochs, steps=epochs * steps, finished_steps=self.finished_epochs * steps
        )
        try:
            with display:
                for epoch in range(self.finished_epochs + 1, epochs + 1):
                    start = time.perf_counter()
                    means, clips = self._train_epoch(epoch, metrics, display)
                    rate = clips / (time.perf_counter() - start)
                    means |= self._evaluate(epoch)
                    metrics.write({"kind": "epoch", "epoch": epoch, **means, "clips_per_second": rate})
                    self._save(epoch, means)
                    display.epoch(epoch, means, clips_per_second=rate)
        finally:
            metrics.close()

    def _train_epoch(self, epoch: int, metrics: MetricsFile, display: RunDisplay) -> tuple[dict[str, float], int]:
        """One pass: the means over all clips of the loss and the task's scalars, and the number of clips."""
        torch.manual_seed(random.Random(f"{self.optimization.seed} {epoch}").getrandbits(32))
        self.loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        self.model.train()
        sums: dict[str, float] = defaultdict(float)
        clips, start = 0, time.perf_counter()
        first = (epoch - 1) * len(self.loader)
        for number, batch in enumerate(self.loader, first):
            step = self._step(epoch, number, batch)
            if step is not None:
                metrics.write({"kind": "step", "epoch": epoch, "step": number + 1, **step.means, **step.facts})
                clips += step.clips
                for name, value in step.means.items():
                    sums[name] += value * step.clips
            means = {name: total / clips for name, total in sums.items()}
            display.step(epoch, means, clips_per_second=clips / (time.perf_counter() - start))
        if not clips:
            raise VideoError("not one training video could be read; the reasons are above")
        return means, clips

    def _step(self, epoch: int, number: int, batch: Any) -> Step | None:
        """Forward, backward and update; None if there was nothing to learn from."""
        with autocast(self.optimization.precision, model_device(self.model)):
            cost = self.task.cost(self.model, batch)
        if cost is None:
            return None
        rate = learning_rate(number, steps_per_epoch=len(self.loader), optimization=self.optimization)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        cost.loss.backward()
        norm = clip_grad_norm_(self.model.parameters(), self.optimization.clip_norm).item()
        loss = cost.loss.item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise RecipeError(
                f"{self.run.path}: loss {loss} and gradient norm {norm} at step {number + 1}, epoch {epoch}; start "
                f"again with a lower lr than {self.optimization.lr} or precision fp32 (it was "
                f"{self.optimization.precision}); the files of the run hold the {epoch - 1} epochs before"
            )
        self.optimizer.step()
        return Step({"loss": loss, **cost.scalars}, {"lr": rate, "grad_norm": norm, "clips": cost.clips}, cost.clips)

    def _evaluate(self, epoch: int) -> dict[str, float]:
        last = epoch == self.optimization.epochs
        return self.task.evaluate(self.model) if last or epoch % self.optimization.evaluate_every == 0 else {}

    def _save(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self.save(self.run.last)
        score = metrics.get(self.task.monitor)
        if score is not None and (self.best is None or score >= self.best):  # of equals the later, trained longer
            self.best = score
            self.save(self.run.best)
        state = {"epoch": epoch, "best": self.best, "model": self.model.state_dict()}
        self.run.save_state(state | {"optimizer": self.optimizer.state_dict()})
