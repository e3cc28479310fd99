"""How fast a model is in every backend and precision, and beside others."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from uniformerv2.benchmark.contenders import Case, Contender, contenders
from uniformerv2.benchmark.measuring import machine, measure, product_limit
from uniformerv2.benchmark.tables import Report
from uniformerv2.device import model_device, pick_device
from uniformerv2.errors import CheckpointError
from uniformerv2.inference.precision import has_bf16
from uniformerv2.model.config import MODEL_SIZES, Layout, Preprocessing, named_config
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.progress import say
from uniformerv2.weights.checkpoint import save_model
from uniformerv2.weights.convert import convert
from uniformerv2.weights.loading import resolve_model

MEASURED_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def benchmark(
    model: str | Path | UniFormerV2,
    *,
    title: str = "",
    layout: Layout = "scene",
    num_frames: int = 8,
    reference: Path | None = None,
    peers: bool = False,
    only: Callable[[Contender], bool] = lambda contender: True,
    batch_sizes: Sequence[int] = (1, 4),
    rounds: int = 5,
    device: str = "auto",
    progress: bool = False,
) -> Report:
    """Measure a model in every backend and precision that is installed, and others beside it.

    Args:
        model: a checkpoint, a model, or a named size such as "B/16", which gets random weights.
        title: what it is called in the report; default: `model`.
        layout, num_frames: of a named size.
        reference: a checkout of the official code, which runs the same weights.
        peers: also other models, from transformers.
        only: which contenders.
        batch_sizes, rounds: as of `measure`.
        device: that computes, see `resolve_model`.
        progress: print a line about each step.

    Raises:
        RecipeError: impossible batch sizes or rounds, a device that is not here, or `reference` has no model file.
        CheckpointError: the checkpoint cannot be read.
    """
    title = title or ("model" if isinstance(model, UniFormerV2) else str(model))
    if str(model) in MODEL_SIZES:
        model = _random_model(str(model), layout, num_frames).to(pick_device(device))
    model = resolve_model(model, device=device)
    place, preprocessing = model_device(model), model.preprocessing
    with tempfile.TemporaryDirectory() as folder:
        ours = Path(folder) / "ours.safetensors"
        save_model(model, ours)
        case = Case(ours, None, None, preprocessing.num_frames, preprocessing.size)
        left_out: list[str] = []
        if reference is not None:
            try:
                convert(ours, official := ours.with_name("official.pyth"), to="official")
                case = Case(ours, official, reference, case.num_frames, case.size)
            except CheckpointError as error:
                left_out.append(f"the official model: {error}")
        found, missing = contenders(case, place, peers=peers)
        chosen = [contender for contender in found if only(contender)]
        measured, failed = measure(chosen, case, place, batch_sizes=batch_sizes, rounds=rounds, progress=progress)
    say("measuring matrix products", progress=progress)
    dtypes = MEASURED_DTYPES if has_bf16(place) else {"fp32": torch.float32}
    limits = {precision: product_limit(dtype, place) for precision, dtype in dtypes.items()}
    height, width = preprocessing.size
    what = f"{title}, {preprocessing.num_frames} frames of {height}x{width}"
    return Report(machine(), what, limits, measured, [*left_out, *missing, *failed])


def _random_model(size: str, layout: Layout, num_frames: int) -> UniFormerV2:
    config = named_config(size, layout)
    return UniFormerV2(config, Preprocessing(num_frames=num_frames, size=config.image_size))
