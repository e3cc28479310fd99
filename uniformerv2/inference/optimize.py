"""optimize(): a trained model -> the same model, made fast for the machine at hand."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from uniformerv2.errors import RecipeError
from uniformerv2.inference.bfloat16 import to_bfloat16
from uniformerv2.inference.chunks import compute_in_chunks
from uniformerv2.inference.comparison import LIMITS, REDUCED, Classifier, Comparison, Limits, compare
from uniformerv2.inference.fold import Rewrite, fold
from uniformerv2.inference.mapped import release_mapped_weights
from uniformerv2.inference.packed import can_pack, pack
from uniformerv2.inference.precision import InferencePrecision, pick_inference_precision
from uniformerv2.inference.reduction import Reduction, reduce_tokens
from uniformerv2.model.uniformerv2 import UniFormerV2

Backend = Literal["torch", "compile", "openvino", "onnxruntime"]

# what each backend can run
PRECISIONS: dict[Backend, tuple[InferencePrecision, ...]] = {
    "torch": ("fp32", "bf16"),
    "compile": ("fp32", "bf16"),
    "openvino": ("fp32", "bf16", "int8"),
    "onnxruntime": ("fp32",),
}


@dataclass(frozen=True)
class Optimized:
    """A model for inference. Call it with clips as the model itself: logits come out."""

    classify: Classifier
    backend: Backend
    precision: InferencePrecision
    comparison: Comparison | None  # with the plain model; None where no clips were given
    note: str = ""  # why the precision was chosen

    @torch.inference_mode()
    def __call__(self, clip: Tensor) -> Tensor:
        """(batch, 3, frames, height, width), uint8 RGB or normalised floats -> float32 logits (batch, classes)."""
        return self.classify(clip)


def optimize(
    model: UniFormerV2,
    *,
    backend: Backend = "torch",
    precision: InferencePrecision | Literal["auto"] = "fp32",
    reduction: Reduction | None = None,
    calibration_clips: Sequence[Tensor] = (),
    validation_clips: Sequence[Tensor] = (),
    limits: Limits | None = None,
) -> Optimized:
    """Make a model fast, and see what that changes.

    Args:
        model: stays as it is, on its device; only "torch" and "compile" run on another one than the CPU.
        backend: "torch" (exact rewrites, oneDNN's layout), "compile" (torch.compile, needs a C++ compiler),
            "openvino" or "onnxruntime" (an exported graph, for clips of the shape that the preprocessing says).
        precision: "fp32"; "bf16" (norms, softmax and classifier in float32); "int8" (linear layers, calibrated); or
            "auto", see `pick_inference_precision`.
        reduction: compute fewer tokens, with backend "torch".
        calibration_clips: for "int8", batches of clips (n, 3, frames, height, width) like those to come, some dozens.
        validation_clips: batches of clips on which the result is compared with the model; an exported graph in fp32 is
            compared on
            a random clip if none are given.
        limits: what may differ there; None: LIMITS of the precision, or REDUCED. ANYTHING accepts everything.

    Raises:
        RecipeError: the backend is not installed or cannot run in this precision, the processor lacks it, no clips to
            calibrate on, the model cannot reduce its tokens, or more differs than the limits allow.
    """
    device = next(model.parameters()).device
    if backend not in PRECISIONS:
        raise RecipeError(f"backend must be one of {', '.join(PRECISIONS)}, got {backend!r}")
    chosen, note = pick_inference_precision(precision, device)
    if chosen not in PRECISIONS[backend]:
        able = [name for name, precisions in PRECISIONS.items() if chosen in precisions]
        raise RecipeError(f"backend {backend} does not run in {chosen}; {' and '.join(able)} would")
    if chosen == "int8" and not calibration_clips:
        raise RecipeError("int8 needs clips to calibrate on: give some dozens like those to come")
    if reduction is not None and backend != "torch":
        raise RecipeError(f"backend {backend} does not reduce tokens; torch does")
    plain = model.eval()
    classify = _build(plain, backend, chosen, calibration_clips)
    if reduction is not None:
        assert isinstance(classify, UniFormerV2)
        classify = reduce_tokens(classify, reduction)
    if not validation_clips and backend in ("openvino", "onnxruntime") and chosen == "fp32":
        # OpenVINO 2026.4 computes something else for two frames of 2x2 patches: no graph is trusted unseen
        validation_clips = [torch.randn(1, 3, plain.preprocessing.num_frames, *plain.preprocessing.size)]
    comparison = compare(classify, plain, validation_clips) if validation_clips else None
    release_mapped_weights(plain)  # which the comparison has read
    limits = limits or (REDUCED if reduction else LIMITS[chosen])
    if comparison is not None and not comparison.within(limits):
        variant = f"{backend} in {chosen}" + (f" with {reduction}" if reduction else "")
        raise RecipeError(
            f"{variant} is refused: {comparison}; at most {limits.deviation:g} and {limits.flips:.1%} of "
            "the clips are allowed; take another precision, other calibration clips or wider limits"
        )
    return Optimized(classify, backend, chosen, comparison, note)


def _build(
    model: UniFormerV2, backend: Backend, precision: InferencePrecision, calibration_clips: Sequence[Tensor]
) -> Classifier:
    if backend == "torch":
        return in_torch(model, precision)
    if backend == "compile":
        return _compiled(model, precision)
    if next(model.parameters()).device.type != "cpu":
        raise RecipeError(f"backend {backend} runs on the CPU here, and the model is on another device; move it")
    # heavy packages, imported for those who ask for them
    from uniformerv2.inference.exported import OnnxRuntimeModel, OpenVinoModel

    return OnnxRuntimeModel(model) if backend == "onnxruntime" else OpenVinoModel(model, precision, calibration_clips)


def in_torch(model: UniFormerV2, precision: InferencePrecision) -> UniFormerV2:
    """The folded model in a precision; on a CPU it computes in chunks, with packed layers."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rewrites = [compute_in_chunks] if on_cpu else []
    return _folded(model, precision, *rewrites, *([pack] if on_cpu and can_pack(dtype) else []))


def _compiled(model: UniFormerV2, precision: InferencePrecision) -> Classifier:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise RecipeError("backend compile needs a C++ compiler (g++ or clang++) on the PATH; take backend torch")
    # constant weights may be laid out anew, as `pack` does
    return torch.compile(_folded(model, precision), options={"freezing": True})


def _folded(model: UniFormerV2, precision: InferencePrecision, *rewrites: Rewrite) -> UniFormerV2:
    cast = [to_bfloat16] if precision == "bf16" else []
    # the weights that a block was made of would stay in memory beside it
    return fold(model, *cast, *rewrites, lambda _: release_mapped_weights(model))
