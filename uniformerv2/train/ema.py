"""A running average of the weights, which is often better than the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


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
                averages.append(self.average[name])
                weights.append(tensor)
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

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs."""
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a former state."""
        self.updates = state["updates"]
        for name, tensor in self.average.items():
            tensor.copy_(state["average"][name])
