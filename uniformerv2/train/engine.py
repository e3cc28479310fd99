"""The only training loop. A task tells it what a batch costs and how good the model is; it knows none by name."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
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


@dataclass
class Progress:
    """How far an epoch has come."""

    batches: int = 0  # readable or not
    clips: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # over the clips

    def add(self, step: Step | None) -> None:
        """Count a batch, and what came of it."""
        self.batches += 1
        if step is not None:
            self.clips += step.clips
            for name, value in step.means.items():
                self.sums[name] = self.sums.get(name, 0.0) + value * step.clips

    @property
    def means(self) -> dict[str, float]:
        """Over all clips so far."""
        return {name: total / self.clips for name, total in self.sums.items()}


class Task(Protocol):
    """A head, a loss and a metric. Another task is another class; the loop stays as it is."""

    monitor: str  # the metric of `evaluate` that decides which epoch was best; more is better

    def cost(self, model: nn.Module, batch: Any) -> Cost | None:
        """The loss of a batch, called under autocast; None if nothing in the batch could be read."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out metrics; empty where nothing is held out."""


class Trainer:
    """Trains a model for a task and keeps the folder of the run.

    The order of an epoch follows from (seed, epoch) alone, and everything else is saved after each epoch and from time
    to time inside one, so a run that was killed and is resumed has the loss curve of an unbroken one.

    Args:
        model: on the device that computes.
        task: what to train it for.
        loader: training batches; its sampler has `set_epoch`, as `EpochSampler`.
        optimization: rates, lengths, and a precision that is no longer "auto".
        run: the folder, already created.
        save: writes the model to a file.
        console: shows the progress; None shows nothing.
        save_every: seconds after which the state is saved in the middle of an epoch.
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
        save_every: float = 600.0,
    ) -> None:
        self.model, self.task, self.loader, self.optimization = model, task, loader, optimization
        self.run, self.save, self.console, self.save_every = run, save, console, save_every
        self.optimizer = build_optimizer(model, optimization)
        self.finished_epochs = 0
        self.best: float | None = None  # the monitored metric of the best epoch so far
        self._begun: Progress | None = None  # of an epoch that was broken off
        self._generators: list[Tensor] = []  # as they were then

    def resume(self) -> None:
        """Go back to the last state that was saved, if there is one. Raises CheckpointError."""
        state = self.run.load_state()
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.finished_epochs, self.best = state["epoch"], state["best"]
            if "progress" in state:
                self._begun = Progress(**state["progress"])
                self._generators = state["generators"]

    def fit(self) -> None:
        """Train until the last epoch.

        Raises:
            RecipeError: the loss or the gradient is no longer finite.
            VideoError: not one training video could be read.
        """
        epochs, steps = self.optimization.epochs, len(self.loader)
        finished = self.finished_epochs * steps + (self._begun.batches if self._begun else 0)
        metrics = MetricsFile(self.run.metrics, finished_epochs=self.finished_epochs, finished_steps=finished)
        display = RunDisplay(self.console, epochs=epochs, steps=epochs * steps, finished_steps=finished)
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
        """One pass: the means over all clips of the loss and the task's scalars, and the number of clips seen here."""
        progress, self._begun = self._begun or Progress(), None
        torch.manual_seed(random.Random(f"{self.optimization.seed} {epoch}").getrandbits(32))
        self.loader.sampler.set_epoch(epoch, first_batch=progress.batches)  # type: ignore[attr-defined]
        self.model.train()
        seen, start, saved = progress.clips, time.perf_counter(), time.perf_counter()
        first = (epoch - 1) * len(self.loader)
        batches = iter(self.loader)  # may draw from a generator
        if progress.batches:
            _set_generators(self._generators)
        for batch in batches:
            number = first + progress.batches
            step = self._step(epoch, number, batch)
            if step is not None:
                metrics.write({"kind": "step", "epoch": epoch, "step": number + 1, **step.means, **step.facts})
            progress.add(step)
            now = time.perf_counter()
            display.step(epoch, progress.means, clips_per_second=(progress.clips - seen) / (now - start))
            if now - saved > self.save_every and progress.batches < len(self.loader):
                self._save_state(epoch - 1, progress)
                saved = time.perf_counter()
        if not progress.clips:
            raise VideoError("not one training video could be read; the reasons are above")
        return progress.means, progress.clips - seen

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
        self._save_state(epoch)

    def _save_state(self, epoch: int, progress: Progress | None = None) -> None:
        """What resuming after an epoch needs, or in the middle of the next."""
        state: dict[str, Any] = {"epoch": epoch, "best": self.best, "model": self.model.state_dict()}
        state["optimizer"] = self.optimizer.state_dict()
        if progress is not None:
            state |= {"progress": asdict(progress), "generators": _generators()}
        self.run.save_state(state)


def _generators() -> list[Tensor]:
    """The states of torch's generators: of the CPU, and of the current GPU where there is one."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])


def _set_generators(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[1])
