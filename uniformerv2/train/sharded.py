"""Sharded weights (FSDP), evaluated and saved without a whole copy of the model on any device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from uniformerv2.distributed import Ranks


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
