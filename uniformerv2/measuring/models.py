"""The model that measures: a checkpoint or a live model, on this process's device and in a precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from uniformerv2.device import model_device
from uniformerv2.distributed import rank_device
from uniformerv2.inference.optimize import Backend, check_gives_features, optimize, pick_backend, rewritten
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


class Computing(NamedTuple):
    """What computes, in eval mode, and how."""

    model: UniFormerV2
    precision: InferencePrecision
    backend: Backend

    @property
    def identity(self) -> dict[str, str]:
        """What decides the last digits of its results."""
        return {"precision": self.precision} | ({"backend": self.backend} if self.backend != "torch" else {})


def computing(
    model: UniFormerV2, *, precision: InferencePrecision | Literal["auto"], backend: Backend | Literal["auto"]
) -> Computing:
    """The model that computes in a precision, by a backend that gives features.

    Args:
        model: stays as it is, in its mode.
        precision, backend: as of `optimize`.

    Raises:
        RecipeError: as `optimize`, or a backend that gives logits alone.
    """
    device = model_device(model)
    chosen, _ = pick_inference_precision(precision, device)
    by, _ = pick_backend(backend, device, reduces=False)
    check_gives_features(by)
    if by == "torch" and chosen == "fp32":
        return Computing(inference_copy(model), chosen, by)
    return Computing(rewritten(optimize(model, precision=chosen, backend=by)), chosen, by)
