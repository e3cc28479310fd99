"""A model that several processes train as one: DDP or FSDP, BatchNorm over all of them, sharded weights evaluated."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
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
        self.called: nn.Module = FullBatchesCompiled(called) if compile else called

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


class FullBatchesCompiled(nn.Module):
    """A model that is compiled for the largest batch that it has seen.

    A smaller one, which a video that cannot be read leaves behind, is computed without: compiling once more takes a
    minute on a GPU, and code for any size is slower.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self._largest = model, 0
        self._compiled = torch.compile(model, dynamic=False)

    def forward(self, x: Any) -> Any:
        """As the model; anything but a tensor is compiled in any size."""
        clips = len(x) if isinstance(x, Tensor) else self._largest
        self._largest = max(clips, self._largest)
        return (self.model if clips < self._largest else self._compiled)(x)


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


# --- sharded weights (FSDP), evaluated and saved without a whole copy of the model on any device


class ShardedWeights:
    """What evaluates and saves a model whose weights are sharded.

    Args:
        model: before it is sharded.
        ranks: the processes that share its weights.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self.model, self.ranks = model, ranks
        shared = {id(buffer): buffer for buffer in model.buffers()}
        self._bare = copy.deepcopy(model, shared | _placeholders(model))
        self._skeleton = copy.deepcopy(model, shared | _placeholders(model))
        self._joins = False
        self._skeleton.register_forward_pre_hook(self._announce)
        units = blocks(self._skeleton)
        inside = {id(module) for unit in units for module in unit.modules()}
        names = {id(module): name for name, module in self._skeleton.named_modules()}
        for unit in (*units, self._skeleton):
            outside = () if unit is not self._skeleton else inside
            _Gathering(unit, [part for part in unit.modules() if id(part) not in outside], names, self._weight)

    def evaluated(self, empty_input: Callable[[nn.Module], Any]) -> nn.Module:
        """The model as an ordinary module in float32, whose weights are there only while a block computes with them.

        Its buffers are those of the training. Every forward pass gathers weights from all ranks, so that ranks have to
        run it equally often: see `distributed.forward_passes`.

        Args:
            empty_input: makes an input without a clip.
        """

        def join() -> None:
            self._joins = True
            with torch.inference_mode():
                while self.ranks.sums([0])[0]:
                    self._skeleton(empty_input(self._skeleton))
            self._joins = False

        self._skeleton.join_forward_passes = join  # type: ignore[assignment]
        return self._skeleton

    def _announce(self, *_: object) -> None:
        """Before a forward pass: ranks that have none left run one for the others."""
        if not self._joins:
            self.ranks.sums([1])

    @torch.inference_mode(False)  # in which a DTensor cannot be gathered
    @torch.no_grad()
    def _weight(self, name: str) -> nn.Parameter:
        return nn.Parameter(whole_tensor(self.model.get_parameter(name)), requires_grad=False)

    @torch.no_grad()
    def on_cpu(self) -> nn.Module | None:
        """A copy on the CPU of rank zero, gathered tensor by tensor; None on the other ranks. All ranks call this."""
        whole = {}
        for name, tensor in self.model.state_dict().items():
            gathered = whole_tensor(tensor)
            if self.ranks.first:
                whole[name] = gathered.to("cpu", copy=True)
        if not self.ranks.first:
            return None
        copies: dict[int, Tensor] = {id(tensor): whole.get(name, tensor) for name, tensor in self._bare.named_buffers()}
        for name, weight in self._bare.named_parameters():
            copies[id(weight)] = nn.Parameter(whole[name], weight.requires_grad)
        return copy.deepcopy(self._bare, copies)


class _Gathering:
    """Hooks of a unit of sharding: its weights are gathered before its forward pass and released after it."""

    def __init__(
        self, unit: nn.Module, modules: list[nn.Module], names: dict[int, str], weight: Callable[[str], nn.Parameter]
    ) -> None:
        self.weight = weight
        self.places = [
            (module, name, f"{names[id(module)]}.{name}".removeprefix("."), placeholder)
            for module in modules
            for name, placeholder in module.named_parameters(recurse=False)
        ]
        unit.register_forward_pre_hook(self._gather)
        unit.register_forward_hook(self._release, always_call=True)

    def _gather(self, *_: object) -> None:
        for module, name, full_name, _placeholder in self.places:
            module._parameters[name] = self.weight(full_name)

    def _release(self, *_: object) -> None:
        for module, name, _full_name, placeholder in self.places:
            module._parameters[name] = placeholder


def _placeholders(model: nn.Module) -> dict[int, nn.Parameter]:
    """By id of a parameter, another of its shape, type and device that takes no memory."""
    return {
        id(weight): nn.Parameter(weight.new_empty(()).expand(weight.shape), weight.requires_grad)
        for weight in model.parameters()
    }


def blocks(model: nn.Module) -> list[nn.Module]:
    """The units of sharding: modules that are called one after the other."""
    return [block for part in model.modules() if isinstance(part, nn.ModuleList) for block in part]


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor, gathered from all ranks if it is sharded; then all of them have to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, as a view; all of it if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


# --- BatchNorm over the clips of all processes


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
