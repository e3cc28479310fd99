"""What benchmarks/training.py and benchmarks/gpu_training.py share: one training step, and what a device could do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timing import alternate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from uniformerv2 import ModelConfig, UniFormerV2
from uniformerv2.device import keep_freed_memory
from uniformerv2.model.counting import count_multiply_adds
from uniformerv2.train.optim import build_optimizer
from uniformerv2.train.precision import autocast
from uniformerv2.train.recipe import Optimization, TrainingPrecision

OPTIMIZATION = Optimization(lr=1e-5, weight_decay=0.05, clip_norm=20.0)
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """A model and the clips that it is trained on."""

    name: str
    config: ModelConfig
    frames: int

    def operations(self, clips: int) -> float:
        """Floating-point operations of a step: a multiply-add is two, the backward pass twice the forward.

        Counted is what our forward pass multiplies; what the backward pass computes anew, no step is credited with.
        """
        return 3 * 2 * count_multiply_adds(self.config, self.frames) * clips

    def batch(self, clips: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Random clips, (clips, 3, frames, height, width) and normalised, and their labels."""
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(clips, 3, self.frames, *self.config.image_size, generator=generator)
        labels = torch.randint(self.config.num_classes, (clips,), generator=generator)
        return pixels.to(device), labels.to(device)


@dataclass(frozen=True)
class Trained:
    """A model that learns, and what makes it learn."""

    model: nn.Module
    optimizer: Optimizer

    def step(self, clips: Tensor, labels: Tensor, precision: TrainingPrecision) -> float:
        """Forward, backward, clipping, update; returns the loss once all of it is done."""
        self.optimizer.zero_grad()
        with autocast(precision, clips.device):
            loss = F.cross_entropy(self.model(clips).float(), labels)
        loss.backward()
        clip_grad_norm_(self.model.parameters(), OPTIMIZATION.clip_norm)
        self.optimizer.step()
        synchronise(clips.device)
        return loss.item()


def build_model(case: Case, device: torch.device) -> UniFormerV2:
    """Our model, with weights that follow from the seed and are nowhere zero, in training mode."""
    torch.manual_seed(0)
    model = UniFormerV2(case.config).to(device).train()
    for parameter in model.parameters():
        if not parameter.any():  # what arming starts at zero would make gradients vanish
            nn.init.normal_(parameter, std=0.02)
    return model


def ours(case: Case, device: torch.device) -> Trained:
    """Our model, trained as the trainer does."""
    if device.type == "cpu":
        keep_freed_memory()
    model = build_model(case, device)
    return Trained(model, build_optimizer(model, OPTIMIZATION))


def measured_limit(precision: TrainingPrecision, device: torch.device) -> float:
    """Floating-point operations per second of a large matrix product: what no model gets past."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))

    def product() -> None:
        left @ right
        synchronise(device)

    return 2 * size**3 / (alternate({"product": product})["product"] / 1e3)


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
