"""optimize(): a trained model, made fast for this machine, and how far its output differs from the plain one's."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from uniformerv2.attention_choice import measured_choices
from uniformerv2.device import model_device
from uniformerv2.errors import RecipeError
from uniformerv2.inference.compile_cache import use_cache
from uniformerv2.inference.compiled import compiled
from uniformerv2.inference.cpu import can_pack, compute_in_chunks, pack
from uniformerv2.inference.float8 import to_float8
from uniformerv2.inference.fold import Rewrite, fold
from uniformerv2.inference.mapped import release_mapped_weights
from uniformerv2.inference.precision import InferencePrecision, pick_inference_precision, to_bfloat16
from uniformerv2.inference.reduction import Reduction, reduce_tokens
from uniformerv2.model.attention import attention_cases, choose_kernels
from uniformerv2.model.kernels import can_compile
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.model.wrappers import inference_copy, plain_model

Classifier = Callable[[Tensor], Tensor]  # clips (batch, 3, frames, height, width) -> logits (batch, classes)


@dataclass(frozen=True)
class Limits:
    """Limits on the changes by a rewrite."""

    deviation: float  # of a logit, relative to the largest logit
    flips: float  # share of the clips whose most likely class changes


LIMITS: dict[InferencePrecision, Limits] = {
    "fp32": Limits(1e-4, 0.0),  # sums in another order
    "bf16": Limits(0.02, 0.01),
    "fp8": Limits(0.25, 0.02),
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
    "torch": ("fp32", "bf16", "fp8"),
    "compile": ("fp32", "bf16", "fp8"),
    "openvino": ("fp32", "bf16", "int8"),
    "onnxruntime": ("fp32",),
}


@dataclass(frozen=True, eq=False)
class Optimized:
    """A model for inference, called with clips like the model itself. It can be pickled and copied.

    What computes is a rewritten copy of the model's weights as they were, and made again wherever this is unpickled.

    Raises:
        RecipeError: the weights of the model changed since; or, when it is unpickled, as `optimize`.
    """

    model: UniFormerV2 = field(repr=False)  # as it was given: to save, train, wrap or optimize again
    backend: Backend
    precision: InferencePrecision
    reduction: Reduction | None
    comparison: Comparison | None  # with the plain model; None without validation clips
    note: str  # why "auto" is this backend and this precision
    _classify: Classifier = field(repr=False)
    _versions: tuple[int, ...] = field(repr=False)  # of the model's weights

    @torch.inference_mode()
    def __call__(self, clip: Tensor) -> Tensor:
        """(batch, 3, frames, height, width), uint8 RGB or normalised floats -> float32 logits (batch, classes)."""
        _check_current(self)
        return self._classify(clip)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.precision != "int8":  # calibrated on clips that are gone
            del state["_classify"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _versions=_versions(state["model"]))
        if "_classify" not in state:
            pick_inference_precision(self.precision, model_device(self.model))
            plain = inference_copy(self.model)
            self.__dict__["_classify"] = _build(plain, self.backend, self.precision, self.reduction, ())


def rewritten(optimized: Optimized) -> UniFormerV2:
    """The copy that computes, for parts of the forward pass; it can be neither saved nor trained.

    Raises:
        RecipeError: its backend gives logits of whole clips alone, or the weights of the model changed since.
    """
    _check_current(optimized)
    check_gives_features(optimized.backend)
    assert isinstance(optimized._classify, UniFormerV2)
    return optimized._classify


def check_gives_features(backend: Backend) -> None:
    """Raises RecipeError for a backend that gives logits of whole clips alone: no features, no frames to share."""
    if backend not in ("torch", "compile"):
        raise RecipeError(f"backend {backend} gives the logits of whole clips alone; take torch, compile or auto")


def _check_current(optimized: Optimized) -> None:
    """The copy shares a part of the model's weights, and would compute with a mixture of old and new ones."""
    if _versions(optimized.model) != optimized._versions:
        raise RecipeError(
            "the weights of the model changed since it was optimized; optimize it again, or make another Predictor"
        )


def _versions(model: nn.Module) -> tuple[int, ...]:
    tensors = chain(model.parameters(), model.buffers())
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)


def optimize(
    model: nn.Module,
    *,
    backend: Backend | Literal["auto"] = "torch",
    precision: InferencePrecision | Literal["auto"] = "fp32",
    reduction: Reduction | None = None,
    calibration_clips: Sequence[Tensor] = (),
    validation_clips: Sequence[Tensor] = (),
    limits: Limits | None = None,
) -> Optimized:
    """Make a model fast, and measure what that changes.

    Args:
        model: not changed, nor its mode; may be wrapped as for `Predictor`. "torch" and "compile" run on its device,
            the others on the CPU only.
        backend: "torch" (exact rewrites, oneDNN's layout), "compile" (torch.compile, needs a C++ compiler),
            "openvino" or "onnxruntime" (an exported graph, for clips of the preprocessing's shape); or "auto", see
            `pick_backend`.
        precision: "fp32"; "bf16" (norms, softmax and classifier in float32); "fp8" (linear layers, the rest as in bf16;
            on a GPU); "int8" (linear layers, calibrated); or "auto", see `pick_inference_precision`.
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
    chosen, note = pick_inference_precision(precision, model_device(model))
    backend, why = pick_backend(backend, model_device(model), reduces=reduction is not None)
    if chosen not in PRECISIONS[backend]:
        able = [name for name, precisions in PRECISIONS.items() if chosen in precisions]
        raise RecipeError(f"backend {backend} does not run in {chosen}; {' and '.join(able)} would")
    if chosen == "int8" and not calibration_clips:
        raise RecipeError("int8 needs clips to calibrate on: some dozens like those of the application")
    if reduction is not None and backend != "torch":
        raise RecipeError(f"backend {backend} does not reduce tokens; torch does")
    given = plain_model(model)
    plain = inference_copy(given)
    classify = _build(plain, backend, chosen, reduction, calibration_clips)
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
    notes = "; ".join(filter(None, (why, note)))
    return Optimized(given, backend, chosen, reduction, comparison, notes, classify, _versions(given))


def pick_backend(wanted: Backend | Literal["auto"], device: torch.device, *, reduces: bool) -> tuple[Backend, str]:
    """The backend to run, and why "auto" is that, in a line; empty for any other backend.

    "auto" is "compile" on a GPU where torch.compile works, else "torch".

    Args:
        wanted: by name, or "auto".
        device: that computes.
        reduces: whether tokens are reduced, which "torch" alone does.

    Raises:
        RecipeError: no such backend.
    """
    if wanted not in (*PRECISIONS, "auto"):
        raise RecipeError(f"backend must be one of auto, {', '.join(PRECISIONS)}, got {wanted!r}")
    if wanted != "auto":
        return wanted, ""
    if reduces:
        return "torch", "backend auto is torch, which alone reduces tokens"
    if device.type != "cuda":
        return "torch", f"backend auto is torch: compiling gains nothing on device {device}"
    use_cache()
    if not can_compile(device):
        return "torch", f"backend auto is torch: torch.compile does not work on device {device}"
    return "compile", f"backend auto is compile: torch.compile works on device {device}; the first batch takes a minute"


def _build(
    model: UniFormerV2,
    backend: Backend,
    precision: InferencePrecision,
    reduction: Reduction | None,
    calibration_clips: Sequence[Tensor],
) -> Classifier:
    if backend == "torch":
        fast = in_torch(model, precision)
        return fast if reduction is None else reduce_tokens(fast, reduction)
    if backend == "compile":
        if shutil.which("g++") is None and shutil.which("clang++") is None:
            raise RecipeError("backend compile needs a C++ compiler (g++ or clang++) on the PATH; take backend torch")
        device, _ = model_device(model), use_cache()
        if device.type == "cuda" and not can_compile(device):
            raise RecipeError(f"torch.compile does not work on device {device}; take backend torch")
        return compiled(_folded(model, precision))
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
    fast = _folded(model, precision, *rewrites, *([pack] if on_cpu and can_pack(dtype) else []))
    if on_cpu and dtype == torch.bfloat16:
        clip = model.preprocessing
        cases = attention_cases(model.config, clip.num_frames, clip.size, training=False)
        choose_kernels(fast, measured_choices(cases))
    return fast


def _folded(model: UniFormerV2, precision: InferencePrecision, *rewrites: Rewrite) -> UniFormerV2:
    casts: dict[str, list[Rewrite]] = {"fp8": [to_float8, to_bfloat16], "bf16": [to_bfloat16]}
    # otherwise the original weights would stay in memory
    return fold(model, *casts.get(precision, []), *rewrites, lambda _: release_mapped_weights(model))
