"""One step of training: from micro-batches to updated weights, in one process or in several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from uniformerv2.device import keep_freed_memory, model_device, number_type, read_later
from uniformerv2.distributed import Ranks, current_ranks
from uniformerv2.errors import RecipeError
from uniformerv2.train.ema import WeightAverage
from uniformerv2.train.optim import (
    build_optimizer,
    load_optimizer_tensors,
    optimizer_templates,
    optimizer_tensors,
    set_learning_rate,
)
from uniformerv2.train.parallel import Parallel, SharedModel, whole_tensor
from uniformerv2.train.precision import allow_tf32, autocast, loss_scaler
from uniformerv2.train.recipe import Optimization
from uniformerv2.train.state import add_prefix, strip_prefix
from uniformerv2.train.task import BatchLoss, Task

NOTHING_BAD = "the loss itself"
BAD_CLIPS = "the clips themselves"


class NotFiniteError(RecipeError):
    """A loss or a gradient is not finite. The weights are as they were before the step."""


@dataclass
class Totals:
    """Sums over clips."""

    clips: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, means: Mapping[str, float], clips: int) -> None:
        """Add the means over so many clips."""
        self.clips += clips
        for name, value in means.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * clips

    @property
    def means(self) -> dict[str, float]:
        """Over all clips so far."""
        return {name: total / self.clips for name, total in self.sums.items()}


@dataclass(frozen=True)
class StepResult:
    """What a step did, over all ranks. Without a clip nothing was updated.

    `means` and `facts` wait for the device that computes: ask once it has something else to do. All ranks ask together.
    Raises NotFiniteError when asked.
    """

    clips: int
    signals: tuple[bool, ...] = ()  # which signals any rank has given
    read: Callable[[], tuple[dict[str, float], dict[str, Any]]] = lambda: ({}, {})

    @cached_property
    def _numbers(self) -> tuple[dict[str, float], dict[str, Any]]:
        return self.read()

    @property
    def means(self) -> dict[str, float]:
        """Over the clips: the loss and the scalars of the task."""
        return self._numbers[0]

    @property
    def facts(self) -> dict[str, Any]:
        """lr, clips, and grad_norm or overflow."""
        return self._numbers[1]


class TrainingStep:
    """Forward and backward passes of a step's micro-batches, and one update of the weights.

    The gradient is that of the mean loss of all clips of the step, of all micro-batches and ranks, and clipped as one.
    What micro-batches share differs from one large batch: BatchNorm normalises each with its own statistics, which are
    those of all ranks. A rank whose batch is empty runs the model on the task's `empty_input`, as gradients are
    exchanged in the backward pass.

    Nothing is read back from the device at once. The device itself decides whether loss and gradient are finite, and
    leaves out the update where they are not, and all updates after it; so the weights are as they were before the bad
    step when it is read, however late, and raises NotFiniteError. (The statistics of BatchNorm belong to the forward
    pass: they have seen those clips.)

    All ranks make a step of equal models, and call it together.

    Args:
        model: on the device that computes; it may be changed, see `SharedModel`.
        task: what it is trained for.
        optimization: learning rates are given to each step; precision and compile are no longer "auto".
        batch_size: clips of a full micro-batch.
        parallel: how several processes share the model.

    Attributes:
        average: of the weights, where the optimization has an `ema`.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimization: Optimization,
        *,
        batch_size: int,
        parallel: Parallel = "ddp",
    ) -> None:
        self.ranks, self.device = current_ranks(), model_device(model)
        self.model, self.task, self.optimization, self.batch_size = model, task, optimization, batch_size
        allow_tf32(optimization.precision)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.shared = SharedModel(
            model, self.ranks, parallel=parallel, precision=optimization.precision, compile=optimization.compile is True
        )
        self.optimizer = build_optimizer(model, optimization)
        self.scaler = loss_scaler(optimization.precision, self.device)
        self.average = WeightAverage(model, optimization.ema) if optimization.ema else None
        self._failed = torch.zeros((), device=self.device)  # 1 from a step on that was not finite

    def __call__(
        self,
        batches: Iterable[Any],
        *,
        count: int = 1,
        lr: float,
        name: str = "",
        signals: Callable[[], Sequence[bool]] = tuple,
    ) -> StepResult:
        """Take a step.

        Args:
            batches: its micro-batches, `count` of them.
            count: see above.
            lr: learning rate.
            name: of the step, for errors: " at step 3, epoch 1".
            signals: asked once the micro-batches are through; as many on every rank.

        Returns:
            What it did; its numbers raise NotFiniteError if the loss or the gradient is not finite.

        Raises:
            RecipeError: the model cannot be compiled here.
        """
        seen, clips, sums = [], 0, self._no_sums()
        self.optimizer.zero_grad()
        for batch in batches:
            seen.append((batch, get_generators()))
            with self.shared.gradient_sync(len(seen) == count):
                found = self._loss(self.shared.called, batch)
                if found is not None:
                    clips += found.clips
                    means = [found.loss.detach(), *(found.scalars[name] for name in self.task.scalars)]
                    sums += torch.stack(means).to(sums.dtype) * found.clips
                    self.scaler.scale(found.loss * (found.clips / self.batch_size)).backward()
        total, *counts = self.ranks.sums([clips, *signals()])
        given = tuple(number > 0 for number in counts)
        if not total:
            return StepResult(0, given)
        self.ranks.add_up(sums)
        set_learning_rate(self.optimizer, lr)
        # the gradient is a sum over micro-batches and a mean over ranks
        norm = self._clip_gradient(total / (self.batch_size * self.ranks.world))
        self._update(sums[0], norm)
        numbers = read_later(torch.cat([sums, torch.stack([norm, self._failed]).to(sums.dtype)]))
        return StepResult(int(total), given, lambda: self._read(numbers(), int(total), lr, name, seen))

    def _no_sums(self) -> Tensor:
        """Zeros (1 + scalars), to add up the loss and the scalars of the task in."""
        return torch.zeros(1 + len(self.task.scalars), dtype=number_type(self.device), device=self.device)

    def _update(self, loss: Tensor, norm: Tensor) -> None:
        """Update the weights and their average, unless the device finds the loss, the gradient or a step before bad."""
        bad = ~norm.isfinite()
        failed = bad
        if self.scaler.is_enabled():  # the gradient may only have overflowed: the scale is lowered for the next step
            scale = self.scaler._get_scale_async()
            assert scale is not None
            failed = bad & (scale <= 1)
        self._failed = torch.maximum(self._failed, (failed | ~loss.isfinite()).float())
        skipped = torch.maximum(self._failed, bad.float())
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]  # what GradScaler sets
        self.optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()
        if self.average is not None:
            self.average.update(skipped)

    def _read(
        self, numbers: Sequence[float], clips: int, lr: float, name: str, seen: Sequence[tuple[Any, list[Tensor]]]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Means and facts of a step."""
        *sums, norm, failed = numbers
        means = {key: total / clips for key, total in zip(("loss", *self.task.scalars), sums, strict=True)}
        if failed:
            loss = means["loss"]
            raise NotFiniteError(f"loss {loss} and gradient norm {norm}{name}; {self._first_not_finite(seen)}")
        return means, {"lr": lr, "clips": clips} | ({"grad_norm": norm} if math.isfinite(norm) else {"overflow": True})

    def _loss(self, model: nn.Module, batch: Any) -> BatchLoss | None:
        try:
            with autocast(self.optimization.precision, self.device):
                found = self.task.loss(model, batch)
                return self._empty_loss(model) if found is None and self.ranks.world > 1 else found
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = str(error).strip().splitlines()[0]
            raise RecipeError(f"the model cannot be compiled here ({reason}); train without compile") from error

    def _empty_loss(self, model: nn.Module) -> BatchLoss:
        """Of no clip, with a gradient of zeros for every parameter."""
        outputs = tensors_of(model(self.task.empty_input(self.model)))
        loss = torch.stack([output.float().sum() for output in outputs]).sum()
        return BatchLoss(loss, dict.fromkeys(self.task.scalars, torch.zeros_like(loss.detach())), 0)

    def _clip_gradient(self, weight: float) -> Tensor:
        """Divide the gradient by a weight and scale it down to the largest norm; returns the norm before."""
        self.scaler.unscale_(self.optimizer)
        if weight != 1:
            gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
            torch._foreach_div_(gradients, weight)
        return whole_tensor(clip_grad_norm_(self.model.parameters(), self.optimization.clip_norm))

    def _first_not_finite(self, seen: Sequence[tuple[Any, list[Tensor]]]) -> str:
        """Which layer turned bad first, on which files, and what to do about it."""
        reason, files = NOTHING_BAD, ""
        for batch, generators in seen:
            set_generators(generators)  # the same dropout
            with self.shared.gradient_sync(False):
                found = first_bad(self.model, partial(self._bare_loss, batch), self.ranks)
            every = self.ranks.gather((found, ", ".join(self.task.files(batch)) or "unknown"))
            # what one rank has from another may turn bad in both
            reason, files = min(every, key=lambda found: (found[0] != BAD_CLIPS, found[0] == NOTHING_BAD))
            if reason != NOTHING_BAD:
                break
        return (
            f"the first that is not finite: {reason}; files of the batch: {files}; start again with a lower lr than "
            f"{self.optimization.lr} or precision fp32 (it was {self.optimization.precision})"
        )

    def _bare_loss(self, batch: Any) -> Tensor | None:
        found = self._loss(self.model, batch)
        return None if found is None else found.loss

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """Inside, the model that is evaluated, with the average of the weights if there is one; see `SharedModel`."""
        with self.average.applied() if self.average is not None else nullcontext():
            yield self.shared.evaluated(self.task.empty_input)

    # --- the state of it, to be saved and resumed

    def facts(self) -> dict[str, Any]:
        """What is no tensor, as JSON has it."""
        return {"scaler": self.scaler.state_dict(), "updates": self.average.updates if self.average else 0}

    def tensors(self) -> dict[str, Tensor]:
        """Weights, their average, and the state of the optimizer."""
        return self._weights() | add_prefix("optimizer", optimizer_tensors(self.model, self.optimizer))

    def load(
        self, facts: Mapping[str, Any], shapes: Mapping[str, torch.Size], read: Callable[[dict[str, Tensor]], None]
    ) -> None:
        """Go back to a state.

        Args:
            facts: that `facts` gave.
            shapes: of the tensors that were saved.
            read: fills tensors from those of the same names.
        """
        optimizer = optimizer_templates(self.model, strip_prefix("optimizer", shapes))
        read(self._weights() | add_prefix("optimizer", optimizer))
        load_optimizer_tensors(self.model, self.optimizer, optimizer)
        self.scaler.load_state_dict(facts["scaler"])
        if self.average is not None:
            self.average.updates = facts["updates"]

    def _weights(self) -> dict[str, Tensor]:
        average = self.average.average if self.average else {}
        return add_prefix("model", self.model.state_dict()) | add_prefix("average", average)


def get_generators() -> list[Tensor]:
    """The states of torch's generators: of the CPU, and of the current GPU where there is one."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])


def set_generators(states: list[Tensor]) -> None:
    """Go back to what `get_generators` gave."""
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[1])


# --- which layer made numbers that are not finite


def first_bad(model: nn.Module, loss: Callable[[], Tensor | None], ranks: Ranks) -> str:
    """Compute a loss and its gradient once more, and name what turns bad first.

    Args:
        model: its layers are watched; afterwards its gradients mean nothing.
        loss: computes the loss with the model, as it was computed when it turned bad; None if there is none.
        ranks: the processes that do this together, with the same model or parts of it.

    Returns:
        "the clips themselves", "the weights of LAYER", "the output of LAYER", "the gradient at the output of LAYER",
        "the gradient of PARAMETER", or `NOTHING_BAD`: the first of these that is not finite.
    """
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"the weights {name}"
    model.zero_grad()  # what other batches left there may be bad
    found: list[str] = []

    def look_at_clips(_: nn.Module, inputs: Any) -> None:
        if not all(_finite(tensor) for tensor in tensors_of(inputs)):
            found.append(BAD_CLIPS)

    hooks = [model.register_forward_pre_hook(look_at_clips)]
    hooks += [part.register_forward_hook(_output_hook(name, found)) for name, part in model.named_modules() if name]
    try:
        value = loss()
        bad = found or (value is not None and not value.isfinite())
        if not any(ranks.gather(bool(bad))) and value is not None:  # all go backward, or none
            value.backward()
            bad_weights = (name for name, weight in model.named_parameters() if not _finite(weight.grad))
            found += [f"the gradient of {name}" for name in bad_weights]
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else NOTHING_BAD


def _output_hook(name: str, found: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def look_at_gradient(gradient: Tensor) -> None:
        if not _finite(gradient):
            found.append(f"the gradient at the output of {name}")

    def look(_: nn.Module, __: Any, output: Any) -> None:
        for tensor in tensors_of(output):
            if not _finite(tensor):
                found.append(f"the output of {name}")
            elif tensor.requires_grad:
                tensor.register_hook(look_at_gradient)

    return look


def _finite(tensor: Tensor | None) -> bool:
    return tensor is None or bool(tensor.isfinite().all())


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in what a module takes or returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_of(item)
