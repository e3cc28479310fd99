"""BatchNorm over the clips of all processes that train one model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


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
