"""The only training loop. A task tells it what a batch costs and how good the model is; it knows none by name."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from uniformerv2.device import model_device
from uniformerv2.distributed import current_ranks
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.train.ema import WeightAverage
from uniformerv2.train.frozen import train_mode
from uniformerv2.train.guard import BAD_CLIPS, NOTHING_BAD, first_bad
from uniformerv2.train.log import MetricsFile, RunDisplay, Speed
from uniformerv2.train.loggers import Program, Writer, open_writers
from uniformerv2.train.memory import keep_freed_memory
from uniformerv2.train.optim import (
    build_optimizer,
    learning_rate,
    load_optimizer_tensors,
    optimizer_templates,
    optimizer_tensors,
    set_learning_rate,
)
from uniformerv2.train.parallel import Parallel, SharedModel, whole_tensor
from uniformerv2.train.precision import allow_tf32, autocast, loss_scaler
from uniformerv2.train.recipe import Optimization
from uniformerv2.train.run_folder import RunFolder
from uniformerv2.train.state import under, within
from uniformerv2.train.termination import Terminated, Termination

SAVE_EVERY = 600.0  # seconds


@dataclass(frozen=True)
class Cost:
    """What a batch costs."""

    loss: Tensor  # scalar: the mean over the clips
    scalars: Mapping[str, float]  # means over the clips, to be logged
    clips: int


@dataclass
class Totals:
    """Sums over clips."""

    clips: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, means: Mapping[str, float], clips: int) -> None:
        """Count what so many clips have on the average."""
        self.clips += clips
        for name, value in means.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * clips

    @property
    def means(self) -> dict[str, float]:
        """Over all clips so far."""
        return {name: total / self.clips for name, total in self.sums.items()}


@dataclass
class Progress(Totals):
    """How far an epoch has come."""

    steps: int = 0  # with something readable or not


class Loader(Protocol):
    """Training batches, as often as it is iterated."""

    @property
    def batch_size(self) -> int | None:
        """Of a full batch."""

    @property
    def sampler(self) -> Any:
        """Has `set_epoch`, as `EpochSampler`."""

    def __len__(self) -> int:
        """Batches of an epoch."""

    def __iter__(self) -> Iterator[Any]: ...


class Task(Protocol):
    """A head, a loss and a metric. Another task is another class; the loop stays as it is."""

    monitor: str  # the metric of `evaluate` that decides which epoch was best; more is better

    def cost(self, model: nn.Module, batch: Any) -> Cost | None:
        """The loss of a batch, called under autocast; None if nothing in the batch could be read.

        Of several processes each runs the model all the same, on no clip: the others wait for its gradient.
        """

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out metrics; empty where nothing is held out."""


class Trainer:
    """Trains a model for a task and keeps the folder of the run, in one process or in several that train as one.

    The order of an epoch follows from (seed, epoch) alone, and everything else is saved after each epoch and from time
    to time inside one, so a run that was killed and is resumed has the loss curve of an unbroken one. After a SIGTERM
    the state is saved, and the process ends.

    A step takes `accumulate` batches of the loader. Its gradient is that of the mean loss of all their clips, clipped
    as one. It differs from that of one large batch in what the batches share: BatchNorm, in the local UniBlocks,
    normalises each with its own statistics.

    Where the optimization has an `ema`, the average of the weights is evaluated and saved as the model; the state has
    both.

    All processes of a group make a trainer, of equal models, and call its methods together. A step takes the batches of
    all of them; the gradient is again that of the mean loss of all clips, and BatchNorm normalises over the processes.
    A state that any number of processes has saved can be resumed by any other number: where it was saved in the middle
    of an epoch, only dropout and drop path are then drawn anew. The first process writes and shows.

    Args:
        model: on the device that computes.
        task: what to train it for.
        loader: training batches; its sampler has `set_epoch`, as `EpochSampler`, and a batch of it is a step.
        optimization: rates, lengths, and a precision that is no longer "auto".
        run: the folder, already created.
        save: writes a model to a file.
        console: shows the progress; None shows nothing.
        save_every: seconds after which the state is saved in the middle of an epoch.
        programs: that show curves, see `open_writers`.
        recipe: what they say is run.
        parallel: how several processes share the model, see `SharedModel`.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        loader: Loader,
        optimization: Optimization,
        *,
        run: RunFolder,
        save: Callable[[Any, Path], None],
        console: Console | None = None,
        save_every: float = SAVE_EVERY,
        programs: Sequence[Program] = (),
        recipe: Mapping[str, Any] = MappingProxyType({}),
        parallel: Parallel = "ddp",
    ) -> None:
        self.ranks = current_ranks()
        self.model, self.task, self.loader, self.optimization = model, task, loader, optimization
        self.run, self.save, self.save_every = run, save, save_every
        self.console = console if self.ranks.first else None
        self.programs, self.recipe = programs if self.ranks.first else (), recipe
        self.device = model_device(model)
        self._shared = SharedModel(
            model,
            self.ranks,
            parallel=parallel,
            precision=optimization.precision,
            compile=optimization.compile,
        )
        self.optimizer = build_optimizer(model, optimization)
        self.scaler = loss_scaler(optimization.precision, self.device)
        self.average = WeightAverage(model, optimization.ema) if optimization.ema else None
        self.steps_per_epoch = math.ceil(len(loader) / optimization.accumulate)
        self.finished_epochs = 0
        self.best: float | None = None  # the monitored metric of the best epoch so far
        self.stalled = 0  # evaluations since then
        self._states = run.open_states(self.ranks)
        self._progress = Progress()  # of the epoch that runs
        self._generators: list[Tensor] = []  # as they were when a resumed epoch was broken off
        self._termination = Termination()
        self._saved, self._save_now, self._stop = time.perf_counter(), False, False
        self._writers: list[Writer] = []

    def resume(self) -> None:
        """Go back to the last state that was saved, if there is one. Raises CheckpointError."""
        facts = self._states.facts()
        if facts is None:
            return
        with self._states.reading():
            shapes = self._states.shapes()
            kept = optimizer_templates(self.model, within("optimizer", shapes))
            generators = {
                name: torch.empty(shape, dtype=torch.uint8) for name, shape in within("generators", shapes).items()
            }
            self._states.load(self._weights() | under("optimizer", kept) | under("generators", generators))
            load_optimizer_tensors(self.model, self.optimizer, kept)
            self.scaler.load_state_dict(facts["scaler"])
            if self.average is not None:
                self.average.updates = facts["updates"]
            self.finished_epochs, self.best, self.stalled = facts["epoch"], facts["best"], facts["stalled"]
            self._progress = Progress(**facts["progress"])
            if facts["world"] == self.ranks.world:
                own = within(str(self.ranks.rank), generators)
                self._generators = [own[name] for name in sorted(own)]  # a state has no order

    def fit(self) -> None:
        """Train until the last epoch, or until evaluations get no better if the optimization stops early.

        Raises:
            RecipeError: the loss or the gradient is no longer finite.
            VideoError: not one training video could be read.
            CheckpointError: a file of the run could not be written.
            Terminated: after a SIGTERM.
        """
        epochs, steps = self.optimization.epochs, self.steps_per_epoch
        finished = self.finished_epochs * steps + self._progress.steps
        metrics: MetricsFile | None = None
        if self.ranks.first:
            metrics = MetricsFile(self.run.metrics, finished_epochs=self.finished_epochs, finished_steps=finished)
        display = RunDisplay(self.console, epochs=epochs, steps=epochs * steps, finished_steps=finished)
        allow_tf32(self.optimization.precision)
        if self.device.type == "cpu":
            keep_freed_memory()
        showing = open_writers(self.programs, self.run.path, self.recipe, finished_steps=finished)
        with closing(metrics) if metrics else nullcontext(), showing as self._writers, display, self._termination:
            try:
                for epoch in range(self.finished_epochs + 1, epochs + 1):
                    if self._stops_early():
                        break
                    self._run_epoch(epoch, metrics, display)
                self._termination.check_all(self.ranks)
            except Terminated:
                self._save_state()
                done = self.finished_epochs * steps + self._progress.steps
                self._say(f"stopped by SIGTERM after step {done} of {epochs * steps}; it can go on with --resume")
                raise
            finally:
                self._states.finish()

    def _stops_early(self) -> bool:
        patience = self.optimization.early_stop
        if not patience or self.stalled < patience:
            return False
        self._say(
            f"stopped early after epoch {self.finished_epochs}: {self.stalled} evaluations without a better "
            f"{self.task.monitor} than {self.best:.4g}"
        )
        return True

    def _run_epoch(self, epoch: int, metrics: MetricsFile | None, display: RunDisplay) -> None:
        """Train, measure, save."""
        speed = Speed(self.device)
        self._train_epoch(epoch, metrics, display, speed)
        with self.evaluated() as model:
            means = self._progress.means | self._evaluate(model, epoch)
            self._record(metrics, {"kind": "epoch", "epoch": epoch, **means, **speed.total})
            self._save_models(model, means)
        self.finished_epochs, self._progress = epoch, Progress()
        self._save_state()
        display.epoch(epoch, means, speed.total)

    def _train_epoch(self, epoch: int, metrics: MetricsFile | None, display: RunDisplay, speed: Speed) -> None:
        """One pass over the training files, or what is left of it."""
        progress, self._saved = self._progress, time.perf_counter()
        batches = speed.waiting(self._batches(epoch))
        while True:
            with self._stopping_at_once():
                batch = next(batches, None)
            if batch is None:
                break
            number = (epoch - 1) * self.steps_per_epoch + progress.steps
            means, facts = self._step(epoch, number, chain([batch], islice(batches, self.optimization.accumulate - 1)))
            progress.steps += 1
            if clips := facts.get("clips", 0):
                progress.add(means, clips)
                timings = speed.step(clips)
                self._record(metrics, {"kind": "step", "epoch": epoch, "step": number + 1, **means, **facts, **timings})
            display.step(epoch, progress.means, facts, speed.total)
            if self._stop:
                raise Terminated
            if self._save_now and progress.steps < self.steps_per_epoch:
                self._save_state()
                self._saved = time.perf_counter()
        if not progress.clips:
            raise VideoError("not one training video could be read; the reasons are above")

    def _stopping_at_once(self) -> AbstractContextManager[None]:
        """Around what SIGTERM may break off. Several processes stop together, after a step."""
        return self._termination.at_once() if self.ranks.world == 1 else nullcontext()

    def _batches(self, epoch: int) -> Iterator[Any]:
        """The batches of an epoch that are still to come, with torch's generators where they belong."""
        rank = f" {self.ranks.rank}" if self.ranks.rank else ""  # each process drops out something else
        torch.manual_seed(random.Random(f"{self.optimization.seed} {epoch}{rank}").getrandbits(32))
        self.loader.sampler.set_epoch(epoch, first_batch=self._progress.steps)
        train_mode(self.model)
        batches = iter(self.loader)  # may draw from a generator
        if self._progress.steps and self._generators:
            set_generators(self._generators)
        return batches

    def _step(self, epoch: int, number: int, batches: Iterable[Any]) -> tuple[dict[str, float], dict[str, Any]]:
        """Forward and backward of each batch, then one update.

        Returns:
            Means over the clips, and what else is worth logging; both empty if there was nothing to learn from.
        """
        seen, total = [], Totals()
        unit = self.loader.batch_size or 1  # whose gradient has the weight 1
        accumulate = self.optimization.accumulate
        in_step = min(accumulate, len(self.loader) - self._progress.steps * accumulate)
        self.optimizer.zero_grad()
        for batch in batches:
            seen.append((batch, get_generators()))
            with self._shared.exchanging(len(seen) == in_step):
                cost = self._cost(self._shared.called, batch)
                if cost is not None:
                    total.add({"loss": cost.loss.item(), **cost.scalars}, cost.clips)
                    self.scaler.scale(cost.loss * (cost.clips / unit)).backward()
        total = self._of_all_processes(total)
        if not total.clips:
            return {}, {}
        rate = learning_rate(number, steps_per_epoch=self.steps_per_epoch, optimization=self.optimization)
        set_learning_rate(self.optimizer, rate)
        # the gradient is a sum over batches and a mean over processes
        loss, norm = total.means["loss"], self._clip(total.clips / (unit * self.ranks.world))
        finite = math.isfinite(norm)
        if not math.isfinite(loss) or not (finite or self._may_overflow()):
            raise RecipeError(self._not_finite(loss, norm, number, epoch, seen))
        self._update(finite)
        return total.means, {"lr": rate, "clips": total.clips} | ({"grad_norm": norm} if finite else {"overflow": True})

    def _of_all_processes(self, total: Totals) -> Totals:
        """What the processes have seen together; they agree too on whether to save now and whether to stop."""
        due = self.ranks.first and time.perf_counter() - self._saved > self.save_every
        stop = self._termination.asked and self.ranks.world > 1
        clips, save, end, *sums = self.ranks.sums([total.clips, due, stop, *total.sums.values()])
        self._save_now, self._stop = save > 0, end > 0
        return Totals(int(clips), dict(zip(total.sums, sums, strict=True)))

    def _cost(self, model: nn.Module, batch: Any) -> Cost | None:
        try:
            with autocast(self.optimization.precision, self.device):
                return self.task.cost(model, batch)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = str(error).strip().splitlines()[0]
            raise RecipeError(f"the model cannot be compiled here ({reason}); train without compile") from error

    def _clip(self, weight: float) -> float:
        """Divide the gradient by a weight and scale it down to the largest norm; returns the norm before."""
        self.scaler.unscale_(self.optimizer)
        if weight != 1:
            torch._foreach_div_([one.grad for one in self.model.parameters() if one.grad is not None], weight)
        return whole_tensor(clip_grad_norm_(self.model.parameters(), self.optimization.clip_norm)).item()

    def _may_overflow(self) -> bool:
        """Whether a gradient that is not finite is only one that was scaled too much; the scaler then leaves it out."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    def _update(self, finite: bool) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None and finite:
            self.average.update()

    def _not_finite(self, loss: float, norm: float, number: int, epoch: int, seen: Sequence[tuple[Any, Any]]) -> str:
        """The error of a step: which layer turned bad first, on which files, and what to do."""
        reason, files = NOTHING_BAD, ""
        for batch, generators in seen:
            set_generators(generators)  # the same dropout
            with self._shared.exchanging(False):
                found = first_bad(self.model, partial(self._loss, batch), self.ranks)
            named = ", ".join(str(path) for path in getattr(batch, "paths", ())) or "unknown"
            every = self.ranks.gather((found, named))
            # what one process has from another may turn bad in both
            reason, files = min(every, key=lambda one: (one[0] != BAD_CLIPS, one[0] == NOTHING_BAD))
            if reason != NOTHING_BAD:
                break
        return (
            f"{self.run.path}: loss {loss} and gradient norm {norm} at step {number + 1}, epoch {epoch}; the first "
            f"that is not finite: {reason}; files of the batch: {files}; start again with a lower lr than "
            f"{self.optimization.lr} or precision fp32 (it was {self.optimization.precision}); the files of the run "
            f"hold the {epoch - 1} epochs before"
        )

    def _loss(self, batch: Any) -> Tensor | None:
        cost = self._cost(self.model, batch)
        return None if cost is None else cost.loss

    def _evaluate(self, model: nn.Module, epoch: int) -> dict[str, float]:
        last = epoch == self.optimization.epochs
        if not last and epoch % self.optimization.evaluate_every:
            return {}
        with self._stopping_at_once():
            return self.task.evaluate(model)

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """Inside, the model that is evaluated and saved: undivided, with the average of the weights if there is one."""
        with self.average.applied() if self.average is not None else nullcontext():
            yield self._shared.whole()

    def _save_models(self, model: nn.Module, metrics: Mapping[str, float]) -> None:
        """The last, and the best if it is that."""
        self._save_model(model, self.run.last)
        score = metrics.get(self.task.monitor)
        if score is not None:
            self.stalled = 0 if self.best is None or score > self.best else self.stalled + 1
            if self.best is None or score >= self.best:  # of equals the later, trained longer
                self.best = score
                self._save_model(model, self.run.best)

    def _save_model(self, model: nn.Module, file: Path) -> None:
        if self.ranks.first:
            with self.run.saving(file):
                self.save(model, file)

    def _save_state(self) -> None:
        """What resuming needs, after an epoch or after a step of the next."""
        facts = {
            "epoch": self.finished_epochs,
            "best": self.best,
            "stalled": self.stalled,
            "scaler": self.scaler.state_dict(),
            "updates": self.average.updates if self.average else 0,
            "progress": asdict(self._progress),
            "world": self.ranks.world,
        }
        generators = {f"{self.ranks.rank}/{number}": state for number, state in enumerate(get_generators())}
        optimizer = optimizer_tensors(self.model, self.optimizer)
        tensors = self._weights() | under("optimizer", optimizer) | under("generators", generators)
        self._states.save(f"{self.finished_epochs:06}-{self._progress.steps:08}", facts, tensors)

    def _weights(self) -> dict[str, Tensor]:
        average = self.average.average if self.average else {}
        return under("model", self.model.state_dict()) | under("average", average)

    def _record(self, metrics: MetricsFile | None, record: Mapping[str, Any]) -> None:
        if metrics is None:  # not the first process
            return
        with self.run.saving(self.run.metrics):
            metrics.write(record)
        numbers = {name: value for name, value in record.items() if name not in ("kind", "epoch", "step")}
        for writer in self._writers:
            writer.write(record["kind"], numbers, record.get("step", record["epoch"] * self.steps_per_epoch))

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
