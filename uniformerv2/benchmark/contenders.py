"""What can be measured, and how each is built in a process of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from uniformerv2.benchmark.reference import build_reference
from uniformerv2.inference.optimize import PRECISIONS, Backend, optimize
from uniformerv2.inference.precision import InferencePrecision, has_bf16
from uniformerv2.model.counting import count_multiply_adds
from uniformerv2.weights.loading import load_model

CALIBRATION_CLIPS = 2  # of noise: enough to know the speed, which is all that is measured here


@dataclass(frozen=True)
class Case:
    """What all contenders are given."""

    checkpoint: Path  # ours
    official: Path | None  # the same weights in the official format
    reference: Path | None  # a checkout of the official code
    num_frames: int
    size: tuple[int, int]  # pixels

    def clips(self, batch: int) -> Tensor:
        """Normalised floats of noise, (batch, 3, frames, height, width)."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, 3, self.num_frames, *self.size, generator=generator)


@dataclass(frozen=True)
class Contender:
    """A model, what runs it and in which precision."""

    model: Literal["plain", "ours", "official", "VideoMAE-B", "TimeSformer-B", "ViViT-B", "V-JEPA 2 L"]
    precision: InferencePrecision
    backend: Backend | None = None  # of "ours"

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.model, self.backend, self.precision) if part)


@dataclass(frozen=True)
class Built:
    """A contender that is ready to run."""

    run: Callable[[Tensor], object]
    parameters: int
    multiply_adds: Callable[[], int]  # for one clip; counting may take memory


def contenders(case: Case, device: torch.device, *, peers: bool) -> tuple[list[Contender], list[str]]:
    """Everything that can run here, the official model first; and what cannot, with the reason."""
    found: list[Contender] = []
    left_out: list[str] = []
    narrow: list[InferencePrecision] = ["fp32", "bf16"] if has_bf16(device) else ["fp32"]
    if len(narrow) == 1:
        left_out.append("bf16: the processor does not multiply it in hardware")
    if case.reference is None:
        left_out.append("the official model: give a checkout of it with --reference")
    else:
        found += [Contender("official", precision) for precision in narrow]
    found.append(Contender("plain", "fp32"))
    for backend, needed in NEEDED.items():
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing or (device.type != "cpu" and needed):
            reason = f"{' and '.join(missing)} not installed" if missing else "runs on a CPU only"
            left_out.append(f"backend {backend}: {reason}")
            continue
        found += [Contender("ours", precision, backend) for precision in PRECISIONS[backend] if precision in narrow]
        if "int8" in PRECISIONS[backend]:
            if importlib.util.find_spec("nncf") is None:
                left_out.append(f"int8 with {backend}: nncf not installed")
            else:
                found.append(Contender("ours", "int8", backend))
    if not peers:
        left_out.append("other models: ask for them with --peers")
    elif importlib.util.find_spec("transformers") is None:
        left_out.append("other models: transformers not installed")
    else:
        found += [Contender(name, "fp32") for name in PEERS]  # type: ignore[arg-type]
    return found, left_out


NEEDED: dict[Backend, tuple[str, ...]] = {
    "torch": (),
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
}


def build(contender: Contender, case: Case, device: torch.device) -> Built:
    """Load and prepare a contender, in this process."""
    if contender.model in PEERS:
        return _built(PEERS[contender.model](case), case, device, swapped=True)
    if contender.model == "official":
        return _official(case, contender.precision, device)
    model = load_model(case.checkpoint).to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    multiply_adds = partial(count_multiply_adds, model.config, case.num_frames, case.size)
    if contender.backend is None:
        return Built(model.eval(), parameters, multiply_adds)
    calibration = [case.clips(CALIBRATION_CLIPS)] if contender.precision == "int8" else []
    optimized = optimize(model, backend=contender.backend, precision=contender.precision, calibration_clips=calibration)
    return Built(optimized, parameters, multiply_adds)


def _official(case: Case, precision: InferencePrecision, device: torch.device) -> Built:
    assert case.reference is not None
    assert case.official is not None
    config = load_model(case.checkpoint).config
    model = build_reference(case.reference, config, num_frames=case.num_frames)
    state = torch.load(case.official, weights_only=True)["model_state"]
    model.load_state_dict({name.removeprefix("backbone."): tensor for name, tensor in state.items()})
    return _built(model, case, device, autocast=precision == "bf16")


def _built(
    model: nn.Module, case: Case, device: torch.device, *, autocast: bool = False, swapped: bool = False
) -> Built:
    """A module of others; `swapped`: it takes (batch, frames, 3, height, width)."""
    model = model.to(device).eval()

    def run(clips: Tensor) -> Any:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            return model(clips.transpose(1, 2) if swapped else clips)

    def count() -> int:
        # the counter does not see fused attention
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run(case.clips(1).to(device))
        return counter.get_total_flops() // 2

    return Built(run, sum(parameter.numel() for parameter in model.parameters()), count)


def _peer(name: str, **sizes: int) -> nn.Module:
    """A video classifier of transformers with random weights, its own defaults but for `sizes`."""
    import transformers

    config = getattr(transformers, f"{name}Config")(**sizes)
    return getattr(transformers, f"{name}ForVideoClassification")(config)


# on as many frames and pixels as ours
PEERS: dict[str, Callable[[Case], nn.Module]] = {
    "VideoMAE-B": lambda case: _peer("VideoMAE", image_size=case.size[0], num_frames=case.num_frames),
    "TimeSformer-B": lambda case: _peer("Timesformer", image_size=case.size[0], num_frames=case.num_frames),
    "ViViT-B": lambda case: _peer("Vivit", image_size=case.size[0], num_frames=case.num_frames),
    "V-JEPA 2 L": lambda case: _peer("VJEPA2", crop_size=case.size[0], frames_per_clip=case.num_frames),
}
