"""One benchmark from beginning to end."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from uniformerv2.benchmark.contenders import Case, Contender, contenders
from uniformerv2.benchmark.machine import machine
from uniformerv2.benchmark.measuring import measure, product_limit
from uniformerv2.benchmark.tables import Report
from uniformerv2.errors import CheckpointError
from uniformerv2.inference.precision import has_bf16
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.weights.checkpoint import save_model
from uniformerv2.weights.convert import convert

MEASURED_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def benchmark(
    model: UniFormerV2,
    title: str,
    *,
    device: torch.device,
    reference: Path | None = None,
    peers: bool = False,
    only: Callable[[Contender], bool] = lambda contender: True,
    batch_sizes: Sequence[int] = (1, 4),
    repeats: int = 5,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """Measure a model in every backend and precision that is here, and others beside it.

    Args:
        model: its preprocessing says what a clip is.
        title: what it is called in the report.
        reference: a checkout of the official code, which runs the same weights.
        peers: also other models, from transformers.
        only: which contenders.
        batch_sizes, repeats, tell: as of `measure`.

    Raises:
        RecipeError: `reference` has no model file.
    """
    preprocessing = model.preprocessing
    with tempfile.TemporaryDirectory() as folder:
        ours = Path(folder) / "ours.safetensors"
        save_model(model, ours)
        case = Case(ours, None, None, preprocessing.num_frames, preprocessing.size)
        left_out: list[str] = []
        if reference is not None:
            try:
                convert(ours, official := ours.with_name("official.pyth"), "official")
                case = Case(ours, official, reference, case.num_frames, case.size)
            except CheckpointError as error:
                left_out.append(f"the official model: {error}")
        found, missing = contenders(case, device, peers=peers)
        measured, failed = measure(
            [one for one in found if only(one)], case, device, batch_sizes=batch_sizes, repeats=repeats, tell=tell
        )
    tell("measuring matrix products")
    dtypes = MEASURED_DTYPES if has_bf16(device) else {"fp32": torch.float32}
    limits = {precision: product_limit(dtype, device) for precision, dtype in dtypes.items()}
    height, width = preprocessing.size
    what = f"{title}, {preprocessing.num_frames} frames of {height}x{width}"
    return Report(machine(), what, limits, measured, [*left_out, *missing, *failed])
