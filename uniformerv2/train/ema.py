"""A running average of the weights, which is often better than the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from uniformerv2.device import model_device, number_type
from uniformerv2.train.parallel import local_tensor


class WeightAverage:
    """The exponential moving average of a model's weights and BatchNorm statistics (Polyak averaging).

    After update n, counted from 0, average = decay_n · average + (1 - decay_n) · weights with
    decay_n = min(decay, (1 + n) / (10 + n)), so that short runs do not keep the weights that they began with.
    Whole numbers, such as BatchNorm's count of batches, are those of the model.

    Args:
        model: what to average.
        decay: in [0, 1); what the average keeps of itself in a step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.average: dict[str, Tensor] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        device = model_device(model)
        self._updates = torch.zeros((), dtype=number_type(device), device=device)

    @property
    def updates(self) -> int:
        """How many there were; with `average`, all that has to be kept to go on. Waits for the device."""
        return int(self._updates.item())

    @updates.setter
    def updates(self, count: int) -> None:
        self._updates.fill_(count)

    @torch.no_grad()
    def update(self, skipped: Tensor | None = None) -> None:
        """Count the weights as they are now.

        Args:
            skipped: float32 () on the device of the model; where it is 1, nothing is counted. The device decides.
        """
        share = 1 - ((1 + self._updates) / (10 + self._updates)).clamp(max=self.decay)
        counted = torch.ones_like(share) if skipped is None else (1 - skipped).to(share.dtype)
        self._updates += counted
        share = (share * counted).float()
        averages, weights = [], []
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point():
                averages.append(local_tensor(self.average[name]))
                weights.append(local_tensor(tensor))
            else:
                self.average[name].copy_(torch.where(counted > 0, tensor, self.average[name]))
        torch._foreach_lerp_(averages, weights, [share] * len(weights))

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
