"""optimize(): a trained model, made fast for this machine, and how far its output differs from the plain one's."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from uniformerv2.device import model_device
from uniformerv2.errors import RecipeError
from uniformerv2.inference.cpu import can_pack, compute_in_chunks, pack
from uniformerv2.inference.fold import Rewrite, fold
from uniformerv2.inference.mapped import release_mapped_weights
from uniformerv2.inference.precision import InferencePrecision, pick_inference_precision, to_bfloat16
from uniformerv2.inference.reduction import Reduction, reduce_tokens
from uniformerv2.model.uniformerv2 import UniFormerV2

Classifier = Callable[[Tensor], Tensor]  # clips (batch, 3, frames, height, width) -> logits (batch, classes)


@dataclass(frozen=True)
class Limits:
    """Limits on the changes by a rewrite."""

    deviation: float  # of a logit, relative to the largest logit
    flips: float  # share of the clips whose most likely class changes


LIMITS: dict[InferencePrecision, Limits] = {
    "fp32": Limits(1e-4, 0.0),  # sums in another order
    "bf16": Limits(0.02, 0.01),
    "int8": Limits(0.25, 0.02),
}
REDUCED_LIMITS = Limits(float("inf"), 0.02)  # fewer tokens change every logit
NO_LIMITS = Limits(float("inf"), 1.0)


@dataclass(frozen=True)
class Comparison:
    """Differences between a rewritten model and the plain one on clips."""

    clips: int
    deviation: float  # largest difference of a logit, relative to the plain model's largest
    flips: int  # clips whose most likely class changes

    def within(self, limits: Limits) -> bool:
        return self.deviation <= limits.deviation and self.flips <= limits.flips * self.clips

    def __str__(self) -> str:
        return f"logits differ by {self.deviation:.1e} of the largest, {self.flips} of {self.clips} clips change class"


@torch.inference_mode()
def compare(rewritten: Classifier, plain: Classifier, clips: Iterable[Tensor]) -> Comparison:
    """Run both on the same clips.

    Args:
        clips: batches (n, 3, frames, height, width), at least one.
    """
    pairs = [(rewritten(batch).float().cpu(), plain(batch).float().cpu()) for batch in clips]
    ours, theirs = (torch.cat(logits) for logits in zip(*pairs, strict=True))
    deviation = (ours - theirs).abs().max() / theirs.abs().max()
    flips = (ours.argmax(-1) != theirs.argmax(-1)).sum()
    # NaN must not pass for a small deviation
    return Comparison(len(ours), float(deviation.nan_to_num(nan=float("inf"))), int(flips))


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
    """A model for inference, called with clips like the model itself."""

    classify: Classifier
    backend: Backend
    precision: InferencePrecision
    comparison: Comparison | None  # with the plain model; None without validation clips
    note: str = ""  # why "auto" is this precision

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
    """Make a model fast, and measure what that changes.

    Args:
        model: not changed. "torch" and "compile" run on its device, the others on the CPU only.
        backend: "torch" (exact rewrites, oneDNN's layout), "compile" (torch.compile, needs a C++ compiler),
            "openvino" or "onnxruntime" (an exported graph, for clips of the preprocessing's shape).
        precision: "fp32"; "bf16" (norms, softmax and classifier in float32); "int8" (linear layers, calibrated); or
            "auto", see `pick_inference_precision`.
        reduction: compute fewer tokens, with backend "torch".
        calibration_clips: for "int8", some dozens of clips like those of the application, in batches (n, 3, frames,
            height, width).
        validation_clips: batches of clips on which the result is compared with the model. Without any, an exported
            graph in fp32 is compared on a random clip.
        limits: of the differences; None: LIMITS of the precision, or REDUCED_LIMITS. NO_LIMITS accepts all.

    Raises:
        RecipeError: the backend is not installed or cannot run in this precision, the processor lacks it, no clips to
            calibrate on, the model cannot reduce its tokens, or differences beyond the limits.
    """
    if backend not in PRECISIONS:
        raise RecipeError(f"backend must be one of {', '.join(PRECISIONS)}, got {backend!r}")
    chosen, note = pick_inference_precision(precision, model_device(model))
    if chosen not in PRECISIONS[backend]:
        able = [name for name, precisions in PRECISIONS.items() if chosen in precisions]
        raise RecipeError(f"backend {backend} does not run in {chosen}; {' and '.join(able)} would")
    if chosen == "int8" and not calibration_clips:
        raise RecipeError("int8 needs clips to calibrate on: some dozens like those of the application")
    if reduction is not None and backend != "torch":
        raise RecipeError(f"backend {backend} does not reduce tokens; torch does")
    plain = model.eval()
    classify = _build(plain, backend, chosen, calibration_clips)
    if reduction is not None:
        assert isinstance(classify, UniFormerV2)
        classify = reduce_tokens(classify, reduction)
    if not validation_clips and backend in ("openvino", "onnxruntime") and chosen == "fp32":
        # OpenVINO 2026.4 is wrong for two frames of 2x2 patches: no graph is used without a comparison
        validation_clips = [torch.randn(1, 3, plain.preprocessing.num_frames, *plain.preprocessing.size)]
    comparison = compare(classify, plain, validation_clips) if validation_clips else None
    release_mapped_weights(plain)  # the comparison has read them
    if comparison is not None:
        variant = f"{backend} in {chosen}" + (f" with {reduction}" if reduction else "")
        allowed = limits or (REDUCED_LIMITS if reduction else LIMITS[chosen])
        if not comparison.within(allowed):
            raise RecipeError(
                f"{variant} is refused: {comparison}; at most {allowed.deviation:g} and {allowed.flips:.1%} of "
                "the clips are allowed; take another precision, other calibration clips or wider limits"
            )
    return Optimized(classify, backend, chosen, comparison, note)


def _build(
    model: UniFormerV2, backend: Backend, precision: InferencePrecision, calibration_clips: Sequence[Tensor]
) -> Classifier:
    if backend == "torch":
        return in_torch(model, precision)
    if backend == "compile":
        if shutil.which("g++") is None and shutil.which("clang++") is None:
            raise RecipeError("backend compile needs a C++ compiler (g++ or clang++) on the PATH; take backend torch")
        # freezing: weights are constants, whose layout may change, as in `pack`
        return torch.compile(_folded(model, precision), options={"freezing": True})
    if model_device(model).type != "cpu":
        raise RecipeError(f"backend {backend} runs on the CPU here, and the model is on another device; move it")
    # imports large packages
    from uniformerv2.inference.exported import OnnxRuntimeModel, OpenVinoModel

    return OnnxRuntimeModel(model) if backend == "onnxruntime" else OpenVinoModel(model, precision, calibration_clips)


def in_torch(model: UniFormerV2, precision: InferencePrecision) -> UniFormerV2:
    """The folded model in a precision; on a CPU it computes in chunks, with packed layers."""
    on_cpu = model_device(model).type == "cpu"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rewrites = [compute_in_chunks] if on_cpu else []
    return _folded(model, precision, *rewrites, *([pack] if on_cpu and can_pack(dtype) else []))


def _folded(model: UniFormerV2, precision: InferencePrecision, *rewrites: Rewrite) -> UniFormerV2:
    cast = [to_bfloat16] if precision == "bf16" else []
    # otherwise the original weights would stay in memory
    return fold(model, *cast, *rewrites, lambda _: release_mapped_weights(model))
