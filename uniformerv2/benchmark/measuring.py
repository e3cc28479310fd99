"""What can be measured, in turn, each in a process of its own, and the machine that it is measured on.

Memory is measured apart, and changes of load hit all alike.
"""

from __future__ import annotations

import importlib.util
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from uniformerv2.benchmark.reference import build_reference
from uniformerv2.data.processes import Crash, Worker
from uniformerv2.device import peak_memory_mib
from uniformerv2.errors import ProcessError, RecipeError, UniFormerV2Error
from uniformerv2.inference.cpu import PackedLinear, can_pack
from uniformerv2.inference.optimize import PRECISIONS, Backend, optimize
from uniformerv2.inference.precision import InferencePrecision, has_bf16
from uniformerv2.machine import processor_name
from uniformerv2.model.counting import count_multiply_adds
from uniformerv2.progress import say
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


@dataclass(frozen=True)
class Times:
    """Seconds of the counted runs at one batch size."""

    batch: int
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half of the distance between the quartiles, as a share of the median."""
        if len(self.seconds) < 3:
            return (max(self.seconds) - min(self.seconds)) / 2 / self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median


@dataclass(frozen=True)
class Measured:
    """The figures of a contender."""

    contender: Contender
    parameters: int
    multiply_adds: int  # for one clip
    memory_mib: float  # of the process at most, or of its tensors on a GPU, with one clip at a time
    times: tuple[Times, ...]

    @property
    def latency(self) -> float:
        """Seconds for one clip alone."""
        return self.times[0].median

    @property
    def throughput(self) -> Times:
        """At the batch size that gives the most clips per second."""
        return min(self.times, key=lambda times: times.median / times.batch)


def measure(
    contenders: Sequence[Contender],
    case: Case,
    device: torch.device,
    *,
    batch_sizes: Sequence[int] = (1, 4),
    rounds: int = 5,
    progress: bool = False,
) -> tuple[list[Measured], list[str]]:
    """Time all contenders in turn, A B C A B C ...; in each turn a contender runs twice, and the second run counts.

    Args:
        batch_sizes: clips at a time; 1 comes first.
        rounds: turns of each contender.
        progress: print a line about each step.

    Returns:
        What was measured, and a line for each contender that failed.

    Raises:
        RecipeError: impossible batch sizes or rounds.
    """
    if tuple(batch_sizes[:1]) != (1,) or min(batch_sizes) < 1 or rounds < 1:
        raise RecipeError(
            f"need batch sizes that begin with 1, and 1 round or more, got {tuple(batch_sizes)} and {rounds}"
        )
    workers: dict[Contender, Worker[str | int]] = {}
    failed: list[str] = []
    facts: dict[Contender, Any] = {}
    seconds: dict[tuple[Contender, int], list[float]] = defaultdict(list)

    def ask(contender: Contender, what: str | int) -> Any:
        """The answer of a contender; one that fails is left out from then on."""
        try:
            return _ask(workers[contender], what)
        except UniFormerV2Error as error:
            failed.append(f"{contender.name}: {error}")
            workers.pop(contender).stop()

    try:
        for contender in contenders:
            say(f"building {contender.name}", progress=progress)
            process = _Process(contender, case, str(device))
            workers[contender] = Worker(process, threads=torch.get_num_threads(), start_method="spawn")
            ask(contender, "build")
        for batch in batch_sizes:
            say(f"timing {len(workers)} contenders, batch size {batch}", progress=progress)
            for _ in range(rounds):
                for contender in list(workers):
                    seconds[contender, batch].append(ask(contender, batch))
            if batch == 1:
                facts = {contender: ask(contender, "facts") for contender in list(workers)}
        times = {
            contender: tuple(Times(batch, tuple(seconds[contender, batch])) for batch in batch_sizes)
            for contender in workers
        }
    finally:
        for worker in workers.values():
            worker.stop()
    return [Measured(contender, times=times[contender], **facts[contender]) for contender in times], failed


def _ask(worker: Worker[str | int], what: str | int) -> Any:
    worker.give(what)
    while not (answers := worker.receive()):
        pass
    if isinstance(answers[0][1], Crash):
        raise ProcessError(f"its process ended ({answers[0][1].cause})")
    return answers[0][1]


class _Process:
    """What a process does that holds a contender: "build" it, time it at a batch size, and then report "facts"."""

    def __init__(self, contender: Contender, case: Case, device: str) -> None:
        self.contender, self.case, self.device = contender, case, torch.device(device)

    def __call__(self, what: str | int) -> Any:
        if what == "build":
            self.built = build(self.contender, self.case, self.device)
            return None
        if isinstance(what, int):
            clips = self.case.clips(what).to(self.device)
            with torch.inference_mode():
                self.built.run(clips)  # the turns of the others have emptied the caches
                return _seconds(self.built.run, clips, self.device)
        facts = {"memory_mib": peak_memory_mib(self.device), "parameters": self.built.parameters}
        return {**facts, "multiply_adds": self.built.multiply_adds()}


@torch.inference_mode()
def product_limit(dtype: torch.dtype, device: torch.device, *, repeats: int = 7) -> float:
    """Operations per second, two a multiply-add, that this machine reaches in large matrix products at best.

    On a CPU the faster of PyTorch's own products and oneDNN's with weights in its own layout.
    """
    best = 0.0
    for rows, inside, columns in ((2048, 2048, 2048), (1536, 768, 3072)):
        factor = torch.randn(rows, inside, device=device).to(dtype)
        layer = nn.Linear(inside, columns, device=device).to(dtype)
        ways: list[nn.Module] = [layer]
        if device.type == "cpu" and can_pack(dtype):
            ways.append(PackedLinear(layer))
        for way in ways:
            seconds = min(_seconds(way, factor, device) for _ in range(repeats))
            best = max(best, 2 * rows * inside * columns / seconds)
    return best


def _seconds(run: Callable[[Tensor], object], argument: Tensor, device: torch.device) -> float:
    start = time.perf_counter()
    run(argument)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def machine() -> str:
    """The machine, its threads and the versions that matter, in one line."""
    return (
        f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()}"
    )
