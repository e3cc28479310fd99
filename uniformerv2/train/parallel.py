"""A model that several processes train as one."""

from __future__ import annotations

import copy
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from uniformerv2.distributed import Ranks
from uniformerv2.errors import RecipeError
from uniformerv2.train.recipe import TrainingPrecision

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
            of the optimizer are divided, block by block (FSDP2, `fully_shard`).
        precision: of the training. In "bf16" and "fp16" divided weights travel in that type, gradients in float32.
        compile: whether to compile it.

    Attributes:
        called: what is called in training.
    """

    def __init__(
        self, model: nn.Module, ranks: Ranks, *, parallel: Parallel, precision: TrainingPrecision, compile: bool = False
    ) -> None:
        self.model = self._whole = model
        self._replicated: DistributedDataParallel | None = None
        if ranks.world > 1:
            synchronise_batch_norm(model)
            if parallel == "fsdp":
                self._whole = copy.deepcopy(model)
                _divide(model, precision)
            else:
                self._replicated = _replicate(model)
        called = self._replicated or model
        self.called: nn.Module = torch.compile(called) if compile else called  # type: ignore[assignment]

    def gradient_sync(self, last: bool) -> AbstractContextManager[object]:
        """Around a batch of a step: processes exchange gradients in the backward pass of the last, and not before."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
        return nullcontext() if last or self._replicated is None else self._replicated.no_sync()

    @torch.no_grad()
    def whole(self) -> nn.Module:
        """The model undivided, with the weights that it has now."""
        if self._whole is not self.model:
            targets = self._whole.state_dict()
            for name, tensor in self.model.state_dict().items():
                targets[name].copy_(whole_tensor(tensor))
        return self._whole


def _divide(model: nn.Module, precision: TrainingPrecision) -> None:
    narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    # inputs keep their type: autocast decides what is computed in which, as in one process
    policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in _blocks(model):
        fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)


def _replicate(model: nn.Module) -> DistributedDataParallel:
    # of an axis of length 1, whose stride says nothing
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


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The units of sharding: what is called one after the other."""
    return [block for part in model.modules() if isinstance(part, nn.ModuleList) for block in part]


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor, gathered from the processes if it is divided among them, who then all have to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, as a view; all of it if it is not divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


# --- BatchNorm over processes


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the processes, and of its gradient: each process's loss depends on all summands."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


class SynchronizedBatchNorm(nn.BatchNorm1d):
    """`nn.SyncBatchNorm` for CPUs, where torch has none. A process may have no rows at all."""

    def forward(self, x: Tensor) -> Tensor:
        """(rows, channels) -> the same shape."""
        if not self.training:
            return super().forward(x)
        rows = x.float()
        # (channels + 1,): sums and how many rows, of all processes
        totals = _Sum.apply(torch.cat([rows.sum(0), rows.new_tensor([len(rows)])]))
        mean, count = totals[:-1] / totals[-1], totals[-1]
        # the squares of differences, not the difference of squares: that would lose digits
        variance = _Sum.apply((rows - mean).square().sum(0)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return ((rows - mean) * scale + self.bias).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def synchronise_batch_norm(model: nn.Module) -> None:
    """Let every BatchNorm inside a model see the rows of all processes. Names, weights and statistics stay the same."""
    if next(model.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for part in list(model.modules()):
        for name, norm in part.named_children():
            if isinstance(norm, nn.BatchNorm1d):
                synchronized = SynchronizedBatchNorm(norm.num_features, norm.eps, norm.momentum)
                for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                    setattr(synchronized, kind, getattr(norm, kind))
                setattr(part, name, synchronized.train(norm.training))
