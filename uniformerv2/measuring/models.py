"""The model that measures: a checkpoint or a live model, on this process's device and in a precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import nn

from uniformerv2.device import model_device
from uniformerv2.distributed import rank_device
from uniformerv2.inference.optimize import optimize, rewritten
from uniformerv2.inference.precision import InferencePrecision, pick_inference_precision
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.model.wrappers import inference_copy
from uniformerv2.weights.loading import resolve_model


def on_rank_device(
    model: str | Path | nn.Module, *, device: str, head: str | None = None, **options: Any
) -> UniFormerV2:
    """`resolve_model`; of several GPUs, the processes on one machine take one each."""
    stays = device == "auto" and isinstance(model, nn.Module)
    return resolve_model(model, device=device if stays else str(rank_device(device)), head=head, **options)


def in_precision(
    model: UniFormerV2, precision: InferencePrecision | Literal["auto"]
) -> tuple[UniFormerV2, InferencePrecision]:
    """The model that computes in a precision, in eval mode, and which precision it is.

    Args:
        model: stays as it is, in its mode.
        precision: "fp32", "bf16" or "auto".

    Raises:
        RecipeError: the device does not compute in this precision.
    """
    chosen, _ = pick_inference_precision(precision, model_device(model))
    return inference_copy(model) if chosen == "fp32" else rewritten(optimize(model, precision=chosen)), chosen
