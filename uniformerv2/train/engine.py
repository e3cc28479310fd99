"""The only training loop. A task tells it what a batch costs and how good the model is; it knows none by name."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
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
from uniformerv2.train.termination import Terminated, Termination

SAVE_EVERY = 600.0  # seconds


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

    steps: int = 0  # with something readable or not
    clips: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # over the clips

    def add(self, step: Step | None) -> None:
        """Count a step, and what came of it."""
        self.steps += 1
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
    to time inside one, so a run that was killed and is resumed has the loss curve of an unbroken one. After a SIGTERM
    the state is saved, and the process ends.

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
        save_every: float = SAVE_EVERY,
    ) -> None:
        self.model, self.task, self.loader, self.optimization = model, task, loader, optimization
        self.run, self.save, self.console, self.save_every = run, save, console, save_every
        self.optimizer = build_optimizer(model, optimization)
        self.steps_per_epoch = len(loader)
        self.finished_epochs = 0
        self.best: float | None = None  # the monitored metric of the best epoch so far
        self._progress = Progress()  # of the epoch that runs
        self._generators: list[Tensor] = []  # as they were when a resumed epoch was broken off
        self._termination = Termination()

    def resume(self) -> None:
        """Go back to the last state that was saved, if there is one. Raises CheckpointError."""
        state = self.run.load_state()
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.finished_epochs, self.best = state["epoch"], state["best"]
            self._progress, self._generators = Progress(**state["progress"]), state["generators"]

    def fit(self) -> None:
        """Train until the last epoch.

        Raises:
            RecipeError: the loss or the gradient is no longer finite.
            VideoError: not one training video could be read.
            CheckpointError: a file of the run could not be written.
            Terminated: after a SIGTERM.
        """
        epochs, steps = self.optimization.epochs, self.steps_per_epoch
        finished = self.finished_epochs * steps + self._progress.steps
        metrics = MetricsFile(self.run.metrics, finished_epochs=self.finished_epochs, finished_steps=finished)
        display = RunDisplay(self.console, epochs=epochs, steps=epochs * steps, finished_steps=finished)
        try:
            with display, self._termination:
                for epoch in range(self.finished_epochs + 1, epochs + 1):
                    self._run_epoch(epoch, metrics, display)
        except Terminated:
            self._save_state()
            done = self.finished_epochs * steps + self._progress.steps
            self._say(f"stopped by SIGTERM after step {done} of {epochs * steps}, and saved: continue with --resume")
            raise
        finally:
            metrics.close()

    def _run_epoch(self, epoch: int, metrics: MetricsFile, display: RunDisplay) -> None:
        """Train, measure, save."""
        start, seen = time.perf_counter(), self._progress.clips
        self._train_epoch(epoch, metrics, display)
        means = self._progress.means
        rate = (self._progress.clips - seen) / (time.perf_counter() - start)
        means |= self._evaluate(epoch)
        self._record(metrics, {"kind": "epoch", "epoch": epoch, **means, "clips_per_second": rate})
        self._save_epoch(epoch, means)
        display.epoch(epoch, means, clips_per_second=rate)

    def _train_epoch(self, epoch: int, metrics: MetricsFile, display: RunDisplay) -> None:
        """One pass over the training files, or what is left of it."""
        progress, termination = self._progress, self._termination
        first, seen, start = (epoch - 1) * self.steps_per_epoch, progress.clips, time.perf_counter()
        batches = self._batches(epoch)
        saved = time.perf_counter()
        while True:
            with termination.at_once():
                batch = next(batches, None)
            if batch is None:
                break
            number = first + progress.steps
            step = self._step(epoch, number, batch)
            if step is not None:
                self._record(metrics, {"kind": "step", "epoch": epoch, "step": number + 1, **step.means, **step.facts})
            progress.add(step)
            now = time.perf_counter()
            display.step(epoch, progress.means, clips_per_second=(progress.clips - seen) / (now - start))
            if now - saved > self.save_every and progress.steps < self.steps_per_epoch:
                self._save_state()
                saved = time.perf_counter()
        if not progress.clips:
            raise VideoError("not one training video could be read; the reasons are above")

    def _batches(self, epoch: int) -> Iterator[Any]:
        """The batches of an epoch that are still to come, with torch's generators where they belong."""
        torch.manual_seed(random.Random(f"{self.optimization.seed} {epoch}").getrandbits(32))
        self.loader.sampler.set_epoch(epoch, first_batch=self._progress.steps)  # type: ignore[attr-defined]
        self.model.train()
        batches = iter(self.loader)  # may draw from a generator
        if self._progress.steps:
            set_generators(self._generators)
        return batches

    def _step(self, epoch: int, number: int, batch: Any) -> Step | None:
        """Forward, backward and update; None if there was nothing to learn from."""
        with autocast(self.optimization.precision, model_device(self.model)):
            cost = self.task.cost(self.model, batch)
        if cost is None:
            return None
        rate = learning_rate(number, steps_per_epoch=self.steps_per_epoch, optimization=self.optimization)
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
        if not last and epoch % self.optimization.evaluate_every:
            return {}
        with self._termination.at_once():
            return self.task.evaluate(self.model)

    def _save_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self._save_model(self.run.last)
        score = metrics.get(self.task.monitor)
        if score is not None and (self.best is None or score >= self.best):  # of equals the later, trained longer
            self.best = score
            self._save_model(self.run.best)
        self.finished_epochs, self._progress = epoch, Progress()
        self._save_state()

    def _save_model(self, file: Path) -> None:
        with self.run.saving(file):
            self.save(file)

    def _save_state(self) -> None:
        """What resuming needs, after an epoch or after a step of the next."""
        self.run.save_state(
            {
                "epoch": self.finished_epochs,
                "best": self.best,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "progress": asdict(self._progress),
                "generators": get_generators(),
            }
        )

    def _record(self, metrics: MetricsFile, record: Mapping[str, Any]) -> None:
        with self.run.saving(self.run.metrics):
            metrics.write(record)

    def _say(self, line: str) -> None:
        if self.console is not None:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def get_generators() -> list[Tensor]:
    """The states of torch's generators: of the CPU, and of the current GPU where there is one."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])


def set_generators(states: list[Tensor]) -> None:
    """Go back to what `get_generators` gave."""
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[1])
