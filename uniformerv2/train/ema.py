"""A running average of the weights, which is often better than the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from uniformerv2.train.parallel import local_tensor


class WeightAverage:
    """The exponential moving average of a model's weights and BatchNorm statistics (Polyak averaging).

    After update n, counted from 0, average = decay_n · average + (1 - decay_n) · weights with
    decay_n = min(decay, (1 + n) / (10 + n)), so that short runs do not keep the weights that they began with.
    Whole numbers, such as BatchNorm's count of batches, are those of the model.

    Args:
        model: what to average.
        decay: in [0, 1); what the average keeps of itself in a step.

    Attributes:
        updates: how many there were; with `average`, all that has to be kept to go on.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.updates = 0
        self.average: dict[str, Tensor] = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Count the weights as they are now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages, weights = [], []
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point():
                averages.append(local_tensor(self.average[name]))
                weights.append(local_tensor(tensor))
            else:
                self.average[name].copy_(tensor)
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the average for its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, tensor in self.model.state_dict().items():
            weights = tensor.clone()
            tensor.copy_(self.average[name])
            self.average[name].copy_(weights)
