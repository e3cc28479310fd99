"""A model that several processes train as one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from uniformerv2.distributed import Ranks
from uniformerv2.errors import RecipeError
from uniformerv2.train.batch_norm import synchronise_batch_norm
from uniformerv2.train.recipe import TrainingPrecision
from uniformerv2.train.sharded import ShardedWeights, blocks

Parallel = Literal["ddp", "fsdp"]


def check_parallel(parallel: Parallel) -> None:
    """Raises RecipeError for what is no way to share a training."""
    if parallel not in get_args(Parallel):
        raise RecipeError(f"processes share a training by {' or '.join(get_args(Parallel))}, got {parallel!r}")


class SharedModel:
    """A model that all processes of a group train together, each having built it alike. One process is a group, too.

    The gradient is the mean over the processes, and BatchNorm sees the clips of all of them, as if one process had the
    whole batch. Every process has to run the model as often as the others, be it on no clip.

    Args:
        model: on the device that computes. It is changed, but for its names and its function.
        ranks: the processes.
        parallel: "ddp", every process has all of it (DistributedDataParallel); "fsdp", weights, gradients and the state
            of the optimizer are sharded, block by block (FSDP2, `fully_shard`).
        precision: of the training. In "bf16" and "fp16" sharded weights travel in that type, gradients in float32.
        compile: whether to compile it.

    Attributes:
        called: what is called in training.
    """

    def __init__(
        self, model: nn.Module, ranks: Ranks, *, parallel: Parallel, precision: TrainingPrecision, compile: bool = False
    ) -> None:
        self.model = model
        self._replicated: DistributedDataParallel | None = None
        self._sharded: ShardedWeights | None = None
        if ranks.world > 1:
            synchronise_batch_norm(model)
            if parallel == "fsdp":
                self._sharded = ShardedWeights(model, ranks)
                _shard(model, precision)
            else:
                self._replicated = _replicate(model)
        called = self._replicated or model
        self.called: nn.Module = torch.compile(called) if compile else called  # type: ignore[assignment]

    def gradient_sync(self, last: bool) -> AbstractContextManager[object]:
        """Around a batch of a step: processes exchange gradients in the backward pass of the last, and not before."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
        return nullcontext() if last or self._replicated is None else self._replicated.no_sync()

    def evaluated(self, empty_input: Callable[[nn.Module], Any]) -> nn.Module:
        """The model that is evaluated; of a sharded one, see `ShardedWeights.evaluated`."""
        return self.model if self._sharded is None else self._sharded.evaluated(empty_input)

    def saved(self) -> nn.Module | None:
        """The model that rank zero saves; of a sharded one a copy on the CPU, and None on the other ranks.

        All ranks call this.
        """
        return self.model if self._sharded is None else self._sharded.on_cpu()


def _shard(model: nn.Module, precision: TrainingPrecision) -> None:
    narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    # inputs keep their type: autocast decides what is computed in which, as in one process
    policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks(model):
        fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)


def _replicate(model: nn.Module) -> DistributedDataParallel:
    # of an axis of length 1, whose stride means nothing
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    device = next(model.parameters()).device
    with warnings.catch_warnings():  # older torch has no other name for it
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,  # the statistics are the same everywhere
        )
