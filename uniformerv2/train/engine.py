"""The only training loop: epochs, evaluation, saving, resuming and logging around `TrainingStep`."""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from uniformerv2.distributed import Ranks
from uniformerv2.errors import AnnotationError
from uniformerv2.machine import starved
from uniformerv2.progress import say
from uniformerv2.train.log import LoggerName, RunLog, Speed
from uniformerv2.train.optim import learning_rate, train_mode
from uniformerv2.train.parallel import Parallel
from uniformerv2.train.recipe import Optimization
from uniformerv2.train.run_folder import RunFolder
from uniformerv2.train.state import StateFolder, add_prefix, strip_prefix
from uniformerv2.train.step import NotFiniteError, StepResult, Totals, TrainingStep, get_generators, set_generators
from uniformerv2.train.task import Task, TrainingLoader

SAVE_EVERY_SECONDS = 600.0
STARVED_SECONDS = 5.0  # of an epoch, after which its processor time tells something
TERMINATED = 128 + signal.SIGTERM  # the exit status that shells report of a process that was terminated


@dataclass
class EpochProgress(Totals):
    """How far an epoch has come."""

    steps: int = 0  # those without a readable clip too


class Trainer:
    """Trains a model for a task and keeps the folder of the run, in one process or in several that train as one.

    The order of an epoch follows from (seed, epoch) alone, and everything else is saved after each epoch and from time
    to time inside one, so a run that was killed and is resumed has the loss curve of an unbroken one. After a SIGTERM
    the state is saved, and the process ends.

    A step takes `accumulate` batches of the loader, see `TrainingStep`. Where the optimization has an `ema`, the
    average of the weights is evaluated and saved as the model; the state has both.

    All ranks make a trainer, of equal models, and call its methods together. A state that any number of processes has
    saved can be resumed by any other number: where it was saved in the middle of an epoch, only dropout and drop path
    are then drawn anew. Rank zero writes and shows.

    Args:
        model: on the device that computes.
        task: what to train it for.
        loader: training batches; a batch of its sampler is a step.
        optimization: rates, lengths; precision and compile are no longer "auto".
        run: the folder, already created.
        save: writes a model to a file.
        parallel: how several processes share the model, see `SharedModel`.
        save_every_seconds: after which the state is saved in the middle of an epoch.
        loggers: that show curves, see `open_loggers`.
        recipe: that is run, for the loggers.
        progress: whether to show anything.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        loader: TrainingLoader,
        optimization: Optimization,
        *,
        run: RunFolder,
        save: Callable[[Any, Path], None],
        parallel: Parallel = "ddp",
        save_every_seconds: float = SAVE_EVERY_SECONDS,
        loggers: Sequence[LoggerName] = (),
        recipe: Mapping[str, Any] = MappingProxyType({}),
        progress: bool = False,
    ) -> None:
        self.step = TrainingStep(model, task, optimization, batch_size=loader.batch_size, parallel=parallel)
        self.model, self.task, self.loader, self.optimization = model, task, loader, optimization
        self.run, self.save, self.save_every_seconds = run, save, save_every_seconds
        self.loggers, self.recipe, self.progress = loggers, recipe, progress
        self.ranks = self.step.ranks
        self.steps_per_epoch = math.ceil(len(loader) / optimization.accumulate)
        self.finished_epochs = 0
        self.best: float | None = None  # the monitored metric of the best epoch so far
        self.stalled = 0  # evaluations since then
        self._states = StateFolder(run.states, self.ranks)
        self._epoch = EpochProgress()  # of the epoch that runs
        self._unread: Callable[[], None] | None = None  # logs the latest step, whose numbers are read a step later
        self._generators: list[Tensor] = []  # as they were when a resumed epoch was broken off
        self._starved = ""  # what was said of too little processor time
        self._termination = Termination()
        self._saved = time.perf_counter()

    @property
    def finished_steps(self) -> int:
        return self.finished_epochs * self.steps_per_epoch + self._epoch.steps

    def fit(self) -> None:
        """Train until the last epoch, or until evaluations get no better if the optimization stops early.

        Raises:
            NotFiniteError: the loss or the gradient is no longer finite.
            AnnotationError: nothing of the training data could be read.
            CheckpointError: a file of the run could not be written.
            Terminated: after a SIGTERM.
        """
        epochs = self.optimization.epochs
        log = RunLog(
            self.run,
            loggers=self.loggers,
            recipe=self.recipe,
            epochs=epochs,
            steps_per_epoch=self.steps_per_epoch,
            finished_epochs=self.finished_epochs,
            finished_steps=self.finished_steps,
            progress=self.progress,
        )
        with log, self._termination:
            try:
                for epoch in range(self.finished_epochs + 1, epochs + 1):
                    if self._stops_early():
                        break
                    self._run_epoch(epoch, log)
                self._termination.check_all(self.ranks)
            except (Terminated, Interrupted) as stopped:
                self._save_state()
                steps = f"step {self.finished_steps} of {epochs * self.steps_per_epoch}"
                say(f"stopped by {stopped.signal} after {steps}; it can go on with --resume", progress=self.progress)
                raise
            finally:
                self._states.finish()

    def _stops_early(self) -> bool:
        patience = self.optimization.early_stop
        if not patience or self.stalled < patience:
            return False
        say(
            f"stopped early after epoch {self.finished_epochs}: {self.stalled} evaluations without a better "
            f"{self.task.monitor} than {self.best:.4g}",
            progress=self.progress,
        )
        return True

    def _run_epoch(self, epoch: int, log: RunLog) -> None:
        speed = Speed(self.step.device)
        self._train_epoch(epoch, log, speed)
        with self.step.evaluated() as model:
            means = self._epoch.means | self._evaluate(model, epoch)
            log.epoch(epoch, means, speed)
            self._save_models(means)
        self.finished_epochs, self._epoch = epoch, EpochProgress()
        self._save_state()

    def _train_epoch(self, epoch: int, log: RunLog, speed: Speed) -> None:
        self._saved, processor = time.perf_counter(), time.process_time()
        batches = speed.waiting(self._batches(epoch))
        while True:
            with self._stopping_at_once():
                batch = next(batches, None)
            if batch is None:
                break
            result = self._take_step(epoch, chain([batch], islice(batches, self.optimization.accumulate - 1)))
            self._epoch.steps += 1
            self._read_step()
            self._unread = partial(self._log_step, log, epoch, self.finished_steps, result, *_timings(speed, result))
            due, stop = result.signals
            if stop:
                raise self._termination.asked or Terminated
            if due and self._epoch.steps < self.steps_per_epoch:
                self._save_state()
                self._saved = time.perf_counter()
        self._read_step()
        speed.step(0)  # a device may have computed until now
        self._say_if_starved(speed, time.process_time() - processor)
        if not self._epoch.clips:
            raise AnnotationError(f"nothing to train on in epoch {epoch}: no file could be read; the reasons are above")

    def _say_if_starved(self, speed: Speed, processor: float) -> None:
        """Once, and only of a CPU that has computed for some seconds."""
        if self.step.device.type != "cpu" or self._starved or speed.computing < STARVED_SECONDS:
            return
        self._starved = starved(processor, speed.computing, torch.get_num_threads())
        say(self._starved, progress=self.progress and bool(self._starved) and self.ranks.first, style="yellow")

    def _read_step(self) -> None:
        """Read and log the numbers of the latest step. Raises NotFiniteError."""
        unread, self._unread = self._unread, None
        if unread is not None:
            unread()

    def _log_step(
        self,
        log: RunLog,
        epoch: int,
        number: int,
        result: StepResult,
        figures: Mapping[str, float],
        speed: Mapping[str, float],
    ) -> None:
        try:
            if result.clips:
                self._epoch.add(result.means, result.clips)
        except NotFiniteError as error:
            kept = f"the files of the run hold the {epoch - 1} epochs before"
            raise NotFiniteError(f"{self.run.path}: {error}; {kept}") from error
        log.step(epoch, number, result, self._epoch.means, figures, speed)

    def _stopping_at_once(self) -> AbstractContextManager[None]:
        """Around what SIGTERM may break off. Several processes stop together, after a step."""
        return self._termination.at_once() if self.ranks.world == 1 else nullcontext()

    def _batches(self, epoch: int) -> Iterator[Any]:
        """The batches of an epoch that are still to come, with torch's generators where they belong."""
        rank = f" {self.ranks.rank}" if self.ranks.rank else ""  # each process drops out something else
        torch.manual_seed(random.Random(f"{self.optimization.seed} {epoch}{rank}").getrandbits(32))
        self.loader.set_epoch(epoch, first_batch=self._epoch.steps)
        train_mode(self.model)
        batches = iter(self.loader)  # may draw from a generator
        if self._epoch.steps and self._generators:
            set_generators(self._generators)
        return batches

    def _take_step(self, epoch: int, batches: Iterator[Any]) -> StepResult:
        """A step, with what all ranks have to decide together: whether a save is due, and whether to stop."""
        accumulate, number = self.optimization.accumulate, (epoch - 1) * self.steps_per_epoch + self._epoch.steps
        return self.step(
            batches,
            count=min(accumulate, len(self.loader) - self._epoch.steps * accumulate),
            lr=learning_rate(number, steps_per_epoch=self.steps_per_epoch, optimization=self.optimization),
            name=f" at step {number + 1}, epoch {epoch}",
            signals=lambda: (
                self.ranks.first and time.perf_counter() - self._saved > self.save_every_seconds,
                self._termination.asked is not None and self.ranks.world > 1,
            ),
        )

    def _evaluate(self, model: nn.Module, epoch: int) -> dict[str, float]:
        last = epoch == self.optimization.epochs
        if not last and epoch % self.optimization.evaluate_every:
            return {}
        with self._stopping_at_once():
            return self.task.evaluate(model)

    def _save_models(self, metrics: Mapping[str, float]) -> None:
        files = [self.run.last]
        score = metrics.get(self.task.monitor)
        if score is not None:
            sign = -1 if self.task.lower_is_better else 1
            gain = math.inf if self.best is None else sign * (score - self.best)
            self.stalled = 0 if gain > 0 else self.stalled + 1
            if gain >= 0:  # of equals the later, trained longer
                self.best = score
                files.append(self.run.best)
        model = self.step.shared.saved()
        for file in files if self.ranks.first else ():
            with self.run.saving(file):
                self.save(model, file)

    def _save_state(self) -> None:
        """What resuming needs, after an epoch or after a step of the next."""
        self._read_step()  # so that no bad step is saved, and metrics.jsonl has all that is
        facts = {
            "epoch": self.finished_epochs,
            "best": self.best,
            "stalled": self.stalled,
            "progress": asdict(self._epoch),
            "world": self.ranks.world,
            **self.step.facts(),
        }
        generators = {f"{self.ranks.rank}/{number}": state for number, state in enumerate(get_generators())}
        tensors = self.step.tensors() | add_prefix("generators", generators)
        self._states.save(f"{self.finished_epochs:06}-{self._epoch.steps:08}", facts, tensors)

    def resume(self) -> None:
        """Go back to the last state that was saved, if there is one. Raises CheckpointError."""
        facts = self._states.facts()
        if facts is None:
            return
        with self._states.reading():
            shapes = self._states.shapes()
            generators = {
                name: torch.empty(shape, dtype=torch.uint8)
                for name, shape in strip_prefix("generators", shapes).items()
            }
            saved = add_prefix("generators", generators)
            self.step.load(facts, shapes, lambda tensors: self._states.load(tensors | saved))
            self.finished_epochs, self.best, self.stalled = facts["epoch"], facts["best"], facts["stalled"]
            self._epoch = EpochProgress(**facts["progress"])
            if facts["world"] == self.ranks.world:
                own = strip_prefix(str(self.ranks.rank), generators)
                self._generators = [own[name] for name in sorted(own)]  # a state has no order


def _timings(speed: Speed, result: StepResult) -> tuple[dict[str, float], dict[str, float]]:
    """The figures of a step and of the epoch so far, now that it is given to the device."""
    figures = speed.step(result.clips) if result.clips else {}
    return figures, speed.total


# --- SIGTERM and Ctrl-C: a run that is asked to end stops where it can go on later


class Terminated(SystemExit):
    """Ends the process after a SIGTERM, with all that is open closed."""

    signal = "SIGTERM"

    def __init__(self) -> None:
        super().__init__(TERMINATED)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, once what resuming needs can be saved."""

    signal = "Ctrl-C"


class Termination:
    """While it is entered, signals are noted: `check` heeds them, and `at_once` marks where they are heeded at once.

    A second Ctrl-C ends a run at once, as do all signals in a thread that is not the main one.
    """

    def __init__(self) -> None:
        self.asked: type[Terminated | Interrupted] | None = None
        self._waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            self._before = {signal.SIGTERM: signal.signal(signal.SIGTERM, self._note)}
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if exception[0] is None:
            self.check()

    def check(self) -> None:
        """Raises Terminated after a SIGTERM, Interrupted after Ctrl-C."""
        if self.asked:
            raise self.asked

    def check_all(self, ranks: Ranks) -> None:
        """Raises the same in all processes after a signal to one of them."""
        if asked := next(filter(None, ranks.gather(self.asked)), None):
            raise asked

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Around what may be broken off anywhere, as nothing is lost with it: signals are heeded here at once."""
        self._waiting = True
        try:
            self.check()
            yield
        finally:
            self._waiting = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.asked is Interrupted:
            raise KeyboardInterrupt
        self.asked = Interrupted if number == signal.SIGINT else Terminated
        if self._waiting:
            raise self.asked
