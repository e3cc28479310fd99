"""What is trained, with which weight decay, and the learning rate of each step."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from uniformerv2.model.uniblocks import LocalAggregator
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.train.recipe import Optimization

BLOCK = re.compile(r"(?:.*\.)?backbone\.blocks\.(\d+)\.(?!local\d)")  # of the image transformer; local blocks are new
STEM = re.compile(r"(?:.*\.)?backbone\.(class_token|registers|position_embedding|patch_embedding\.|pre_norm\.)")


def freeze_backbone(model: UniFormerV2) -> None:
    """Leave the image transformer as it is, its stem included; what arming added to it is trained all the same."""
    model.backbone.requires_grad_(False)
    for part in model.backbone.modules():
        if isinstance(part, LocalAggregator):
            part.requires_grad_(True)


def freeze_unused(model: UniFormerV2) -> None:
    """Leave out what does not reach the output, as in the frozen variant: its gradient would be awaited in vain where
    processes share gradients."""
    if model.mix is None and model.config.global_after:
        backbone = model.backbone
        for part in (backbone.post_norm, backbone.pool_norm, backbone.pool):
            if part is not None:
                part.requires_grad_(False)
        backbone.blocks[model.config.global_after[-1] + 1 :].requires_grad_(False)


def train_mode(model: nn.Module) -> None:
    """Training mode for the parts that are trained, evaluation mode for those of which no parameter is.

    So the BatchNorm of a frozen part keeps its statistics, and neither dropout nor drop path disturbs it. A part
    without parameters does as the part that it belongs to.
    """
    model.train()
    if all(parameter.requires_grad for parameter in model.parameters()):
        return
    for part in model.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            part.eval()


def build_optimizer(model: nn.Module, optimization: Optimization) -> AdamW:
    """AdamW over everything that is trained, in the groups of `parameter_groups`."""
    return AdamW(parameter_groups(model, optimization), lr=optimization.lr, betas=optimization.betas, fused=True)


def parameter_groups(model: nn.Module, optimization: Optimization) -> list[dict[str, Any]]:
    """What AdamW takes; `set_learning_rate` heeds the `lr_scale` of each group.

    Parameters of fewer than two dimensions do not decay: biases, norms, the class token, the mix. Position embeddings,
    queries and convolutions do. So it is in the official code.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for scale, parameter in _with_scales(model, optimization.layer_decay):
        groups.setdefault((scale, parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": groups[key], "lr_scale": key[0], "weight_decay": optimization.weight_decay if key[1] else 0.0}
        for key in sorted(groups, reverse=True)  # the same order in each process, and when a run is resumed
    ]


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give each group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer, by the name of a parameter and what is kept of it: "head.linear.bias exp_avg"."""
    return {
        f"{name} {kind}": tensor
        for name, parameter in model.named_parameters()
        for kind, tensor in optimizer.state.get(parameter, {}).items()
    }


def optimizer_templates(model: nn.Module, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Empty tensors for what `optimizer_tensors` gave, divided among processes as the parameters are.

    Raises:
        KeyError: of a parameter that the model does not have.
    """
    parameters = dict(model.named_parameters())
    return {
        key: torch.empty_like(parameter) if shape == parameter.shape else torch.empty(shape)
        for key, shape in shapes.items()
        for parameter in [parameters[key.rsplit(" ", 1)[0]]]
    }


def load_optimizer_tensors(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Go back to what `optimizer_tensors` gave."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    kept: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, kind = key.rsplit(" ", 1)
        kept.setdefault(name, {})[kind] = tensor
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {number: kept[names[weight]] for number, weight in enumerate(parameters) if names[weight] in kept}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _with_scales(model: nn.Module, decay: float) -> Iterator[tuple[float, nn.Parameter]]:
    """The trained parameters, each with its learning rate relative to that of the parts that arming added.

    Block n of N has decay^(N - n), n from 0, and what comes before the blocks decay^(N + 1), as BEiT and MAE have it.
    A parameter with an attribute `lr_scale` has that share of it.
    """
    named = list(model.named_parameters())
    blocks = [int(match[1]) for name, _ in named if (match := BLOCK.match(name))]
    depth = max(blocks, default=-1) + 1
    for name, parameter in named:
        if parameter.requires_grad:
            block = BLOCK.match(name)
            below = depth - int(block[1]) if block else depth + 1 if STEM.match(name) else 0
            yield decay**below * getattr(parameter, "lr_scale", 1.0), parameter


def learning_rate(step: int, *, steps_per_epoch: int, optimization: Optimization) -> float:
    """Linear warm-up from start_lr to lr, then a half cosine towards end_lr, in epochs and fractions of them.

    As the official code has it: the last step is still a step away from end_lr.

    Args:
        step: optimizer step, from 0, counted over the whole run.
        steps_per_epoch: optimizer steps of an epoch.
        optimization: rates and lengths.
    """
    epoch, warmup = step / steps_per_epoch, optimization.warmup_epochs
    if epoch < warmup:
        return optimization.start_lr + (optimization.lr - optimization.start_lr) * epoch / warmup
    progress = (epoch - warmup) / max(optimization.epochs - warmup, 1e-9)  # a run may be all warm-up
    return optimization.end_lr + (optimization.lr - optimization.end_lr) * (1 + math.cos(math.pi * progress)) / 2
