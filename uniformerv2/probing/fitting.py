"""All settings of a probe, trained in one pass over the tokens and measured on others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW

from uniformerv2.data.loader import Batch, VideoLoader
from uniformerv2.device import fetch_later, keep_freed_memory, model_device, upload
from uniformerv2.model.uniformerv2 import EncodedFrames, UniFormerV2
from uniformerv2.probing.recipe import Setting
from uniformerv2.probing.stacked import SharedTokens, Stacked, stack, stacked_logits
from uniformerv2.progress import track
from uniformerv2.train.optim import learning_rate, set_learning_rate
from uniformerv2.train.recipe import Optimization

Unpack = Callable[[Tensor], EncodedFrames]
Report = Callable[[Batch], None]  # is told of each batch, for the videos that could not be read


class StackedAdamW:
    """torch's AdamW for every setting, with its own learning rate and weight decay, on slices of stacked parameters.

    As in a training, parameters of fewer than two dimensions in the model do not decay.
    """

    def __init__(self, stacked: Stacked, settings: Sequence[Setting], betas: tuple[float, float]) -> None:
        self.stacked = list(stacked.values())
        self._slices = [whole.detach().unbind() for whole in self.stacked]  # of each parameter, of each setting
        groups = [
            {
                "params": [
                    of[number]
                    for whole, of in zip(self.stacked, self._slices, strict=True)
                    if (whole.ndim > 2) == decays  # with the axis of settings
                ],
                "lr_scale": setting.learning_rate,
                "weight_decay": setting.weight_decay if decays else 0.0,
            }
            for number, setting in enumerate(settings)
            for decays in (True, False)
        ]
        self.optimizer = AdamW(groups, betas=betas, fused=True)

    def step(self, losses: Tensor, *, rate: float) -> None:
        """Update all settings.

        Args:
            losses: (settings,). None depends on the parameters of another setting, so one that is not finite leaves the
                others as they are.
            rate: what each learning rate is multiplied by.
        """
        gradients = torch.autograd.grad(losses.sum(), self.stacked)
        for slices, whole in zip(self._slices, gradients, strict=True):
            # the fused step reads memory as it lies, and the gradients of products lie transposed
            for parameter, gradient in zip(slices, whole.contiguous(), strict=True):
                parameter.grad = gradient
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()


def fit(
    model: UniFormerV2,
    loader: VideoLoader,
    settings: Sequence[Setting],
    optimization: Optimization,
    *,
    unpack: Unpack,
    report: Report,
    progress: bool,
) -> dict[str, Tensor]:
    """Train the probe of a model with all settings, on the same batches.

    Args:
        model: gives the first parameters, and stays as it is.
        loader: training batches of tokens.
        settings: learning rate and weight decay of each.
        optimization: epochs, warm-up and betas; its rates, with `lr` 1, are factors of the settings' own.
        unpack: makes the output of `UniFormerV2.encode` of a batch's numbers.
        report: see `Report`.
        progress: whether to show a bar.

    Returns:
        The stacked parameters.
    """
    keep_freed_memory()
    stacked, step = stack(model, len(settings)), 0
    optimizer = StackedAdamW(stacked, settings, optimization.betas)
    for epoch in track(range(1, optimization.epochs + 1), "probing", progress=progress):
        loader.set_epoch(epoch)
        for batch in loader:
            report(batch)
            if len(batch):
                logits = stacked_logits(model.config, stacked, _tokens(model, batch, unpack))
                rate = learning_rate(step, steps_per_epoch=len(loader), optimization=optimization)
                optimizer.step(stacked_losses(logits, upload(batch.labels.flatten(), logits.device)), rate=rate)
            step += 1
    return {name: tensor.detach() for name, tensor in stacked.items()}


def stacked_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross entropy of each setting: (settings, batch, classes), (batch) -> (settings,)."""
    targets = labels.expand(len(logits), -1)
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)


class Scores(NamedTuple):
    """What every setting says of the videos that could be read."""

    probabilities: Tensor  # float32 (settings, videos, classes); NaN where a setting has diverged
    labels: Tensor  # int64 (videos)


@torch.no_grad()
def score(model: UniFormerV2, stacked: Stacked, loader: VideoLoader, *, unpack: Unpack, report: Report) -> Scores:
    """Measure all settings.

    Args:
        model, stacked: as of `fit`.
        loader: batches of tokens, each video once.
        unpack, report: as of `fit`.
    """
    found, labels = [], []
    for batch in loader:
        report(batch)
        if len(batch):
            logits = stacked_logits(model.config, stacked, _tokens(model, batch, unpack))
            found.append(fetch_later(logits.softmax(-1))())
            labels.append(batch.labels.cpu())
    classes = model.config.num_classes
    settings = len(next(iter(stacked.values())))
    return Scores(
        torch.cat([torch.empty(settings, 0, classes), *found], dim=1), torch.cat([torch.empty(0).long(), *labels])
    )


def _tokens(model: UniFormerV2, batch: Batch, unpack: Unpack) -> SharedTokens:
    # (videos, views, numbers) -> (clips, numbers)
    return SharedTokens.of(model, unpack(upload(batch.clips.flatten(0, 1), model_device(model))))
