"""All tables of one GPU: inference, training, and the start of a command.

    python benchmarks/gpu.py [--reference CHECKOUT] [--json RESULT.json] [--no-compile]
    python benchmarks/gpu.py --tables training --models K400-B/16      # a part of it
    python benchmarks/gpu.py --tiny     # the same on small models: shows on a CPU that the script runs

Ours in each way against the official model file (with --reference, a checkout of its repository) under the same bf16
autocast, in one process, taking turns, medians of seven calls (training: five). The share is what our forward pass has
to multiply, three times in training, over a large bf16 product of the same run. The memory is the most that a way
allocates beyond what all hold. `predict` is timed as a whole process, twice: the second start finds what the first
compiled. Weights and clips are random. Most of the time goes into compiling: on an H100 with 16 cores it took a minute
and more for each model and table, and what was compiled is found the next time.

On a CPU all of it is float32, since bfloat16 is slow on many.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import av
import numpy as np
import torch
from timing import machine
from torch import Tensor, nn
from training_steps import OPTIMIZATION, Case, Trained, build_model, measured_limit, ours, synchronise

from uniformerv2 import named_config, save_model
from uniformerv2.benchmark.reference import load_reference
from uniformerv2.device import model_device, pick_device
from uniformerv2.inference.optimize import optimize
from uniformerv2.inference.precision import has_fp8
from uniformerv2.train.optim import parameter_groups
from uniformerv2.train.precision import allow_tf32, autocast

Precision = Literal["fp32", "bf16"]

INFERENCE = {"K400-B/16": (1, 8, 32), "SSv2-B/16": (1, 16), "K400-L/14": (8,)}  # clips at once
TRAINING = {"K400-B/16": 32, "SSv2-B/16": 16}
ROUNDS = {"inference": 7, "training": 5}
TABLES = ("inference", "training", "start")


@dataclass(frozen=True)
class Row:
    """What one way of computing one batch costs."""

    table: str
    model: str
    way: str
    clips: int
    milliseconds: float
    share: float  # of the products that the device can make
    gib: float  # allocated at most, beyond what was before

    def __str__(self) -> str:
        rate = self.clips / self.milliseconds * 1e3
        return (
            f"| {self.table} | {self.model} | {self.way} | {self.clips} | {self.milliseconds:.2f} | {rate:.1f} | "
            f"{self.share:.1%} | {self.gib:.2f} |"
        )


def case(name: str, tiny: bool) -> Case:
    layout, size = name.split("-")
    config = named_config("Ti/16" if tiny else size, "temporal" if layout == "SSv2" else "scene")
    if tiny:
        config = replace(config, image_size=(32, 32))
    return Case(name, config, 16 if layout == "SSv2" else 8)


def inference_ways(
    model: nn.Module, official: nn.Module | None, precision: Precision, compiled: bool
) -> dict[str, Callable[[Tensor], Tensor]]:
    def plain(called: nn.Module) -> Callable[[Tensor], Tensor]:
        def run(clips: Tensor) -> Tensor:
            with torch.inference_mode(), autocast(precision, clips.device):
                return called(clips)

        return run

    ways = {"ours": plain(model), "ours, optimize": optimize(model, precision=precision)}
    if compiled:
        ways["ours, compile"] = optimize(model, backend="compile", precision=precision)
        if has_fp8(model_device(model)):
            ways["ours, compile, fp8"] = optimize(model, backend="compile", precision="fp8")
    if official is not None:
        ways = {"official": plain(official)} | ways
        if compiled:
            ways["official compiled"] = plain(torch.compile(official))  # type: ignore[arg-type]
    return ways


def training_ways(given: Case, device: torch.device, reference: Path | None, compiled: bool) -> dict[str, Trained]:
    def with_model(model: nn.Module, called: nn.Module) -> Trained:
        optimizer = torch.optim.AdamW(parameter_groups(model, OPTIMIZATION), lr=OPTIMIZATION.lr)
        return Trained(called, optimizer)

    ways = {"ours": ours(given, device)}
    if compiled:
        own = ours(given, device)
        ways["ours compiled"] = Trained(torch.compile(own.model), own.optimizer)  # type: ignore[arg-type]
    if reference is not None:
        official = load_reference(reference, build_model(given, device), num_frames=given.frames).to(device).train()
        ways = {"official": with_model(official, official)} | ways
    return ways


def rows(arguments: argparse.Namespace, device: torch.device, precision: Precision, limit: float) -> Iterator[Row]:
    for name, sizes in INFERENCE.items() if "inference" in arguments.tables else ():
        if name not in arguments.models:
            continue
        given = case(name, arguments.tiny)
        model = build_model(given, device).eval()
        official = None
        if arguments.reference:
            official = load_reference(arguments.reference, model, num_frames=given.frames).to(device).eval()
        ways = inference_ways(model, official, precision, arguments.compile)
        for clips in sizes[:1] if arguments.tiny else sizes:
            batch, _ = given.batch(clips, device)
            runs = {way: lambda run=run, batch=batch: run(batch) for way, run in ways.items()}
            yield from timed("inference", given, clips, given.operations(clips) / 3 / limit, runs, device)
    for name, clips in TRAINING.items() if "training" in arguments.tables else ():
        if name not in arguments.models:
            continue
        given, clips = case(name, arguments.tiny), 2 if arguments.tiny else clips
        pixels, labels = given.batch(clips, device)
        steps = {
            way: lambda trained=trained, pixels=pixels, labels=labels: trained.step(pixels, labels, precision)
            for way, trained in training_ways(given, device, arguments.reference, arguments.compile).items()
        }
        yield from timed("training", given, clips, given.operations(clips) / limit, steps, device)


def timed(
    table: str, given: Case, clips: int, least: float, runs: dict[str, Callable[[], object]], device: torch.device
) -> Iterator[Row]:
    """Run the ways in turn; `least`: seconds that the products alone take."""
    seconds: dict[str, list[float]] = {way: [] for way in runs}
    memory = dict.fromkeys(runs, 0.0)
    for number in range(ROUNDS[table] + 2):
        for way, run in runs.items():
            before = allocated(device, reset=True)
            start = time.perf_counter()
            run()
            synchronise(device)
            if number > 1:  # two rounds to compile and to warm up
                seconds[way].append(time.perf_counter() - start)
                memory[way] = max(memory[way], allocated(device) - before)
    for way, measured in seconds.items():
        median = statistics.median(measured)
        yield Row(table, given.name, way, clips, 1e3 * median, least / median, memory[way] / 2**30)
    gc.collect()


def allocated(device: torch.device, *, reset: bool = False) -> float:
    """Bytes on a card: now, counting from here; or at most since then."""
    if device.type != "cuda":
        return 0.0
    if reset:
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return torch.cuda.max_memory_allocated(device)


def starts(tiny: bool) -> list[float]:
    """Seconds of `predict` of one video as a whole process, the first time and the second."""
    with TemporaryDirectory() as folder:
        checkpoint, video = Path(folder, "model.safetensors"), Path(folder, "a.mp4")
        save_model(build_model(case("K400-B/16", tiny), torch.device("cpu")).eval(), checkpoint)
        with av.open(str(video), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
            for number in range(50):
                image = np.full((256, 340, 3), 5 * number, dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        seconds = []
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(Path(folder, "compiled"))}
        for _ in range(2):
            start = time.perf_counter()
            command = [sys.executable, "-m", "uniformerv2", "predict", str(checkpoint), str(video)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
            seconds.append(time.perf_counter() - start)
    return seconds


def main(arguments: argparse.Namespace) -> None:
    device = pick_device("auto")
    precision: Precision = "bf16" if device.type == "cuda" else "fp32"
    allow_tf32(precision)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU: the figures mean nothing"
    limit = measured_limit(precision, device)
    print(f"{card}; {machine()}\n{precision}; matrix product: {limit / 1e12:.2f} TFLOP/s\n")
    print("| table | model | way | clips | ms | clips/s | of the limit | GiB |")
    print("|---|---|---|---|---|---|---|---|")
    found = []
    for row in rows(arguments, device, precision, limit):
        print(row, flush=True)
        found.append(asdict(row))
    seconds = starts(arguments.tiny) if "start" in arguments.tables else []
    if seconds:
        print("\n`predict` of one video: {:.1f} s, the second time {:.1f} s".format(*seconds))
    if arguments.json:
        result = {"card": card, "machine": machine(), "limit": limit, "rows": found, "predict": seconds}
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="a checkout of the official repository")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--models", nargs="+", choices=INFERENCE, default=list(INFERENCE))
    parser.add_argument("--tiny", action="store_true", help="small models")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without torch.compile")
    main(parser.parse_args())
