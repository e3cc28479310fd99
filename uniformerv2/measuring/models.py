"""The model that measures: a checkpoint or a live model, on this process's device and in a precision."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from uniformerv2.device import model_device
from uniformerv2.distributed import rank_device
from uniformerv2.inference.optimize import optimize
from uniformerv2.inference.precision import InferencePrecision, pick_inference_precision
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.weights.loading import resolve_model


def on_rank_device(model: str | Path | UniFormerV2, *, device: str, head: str | None = None) -> UniFormerV2:
    """`resolve_model`, in eval mode; of several GPUs, the processes on one machine take one each."""
    stays = device == "auto" and isinstance(model, UniFormerV2)
    return resolve_model(model, device=device if stays else str(rank_device(device)), head=head).eval()


def in_precision(
    model: UniFormerV2, precision: InferencePrecision | Literal["auto"]
) -> tuple[UniFormerV2, InferencePrecision]:
    """The model that computes in a precision, and which it is; the plain model in fp32.

    Args:
        model: in eval mode; stays as it is.
        precision: "fp32", "bf16" or "auto".

    Raises:
        RecipeError: the device does not compute in this precision.
    """
    chosen, _ = pick_inference_precision(precision, model_device(model))
    if chosen == "fp32":
        return model, chosen
    optimized = optimize(model, precision=chosen).classify
    assert isinstance(optimized, UniFormerV2)
    return optimized, chosen
