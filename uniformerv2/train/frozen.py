"""Parts of a model that are not trained."""

from __future__ import annotations

from torch import nn

from uniformerv2.model.uniblocks import LocalAggregator
from uniformerv2.model.uniformerv2 import UniFormerV2


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
