"""What a training step costs on a GPU: clips per second, memory, and the share of what the card can multiply.

    python benchmarks/gpu_training.py [--models B/16 L/14] [--layouts scene temporal] [--clips 16] [--compile]
    torchrun --nproc-per-node 8 benchmarks/gpu_training.py ...

A step is forward, backward, clipping and AdamW under bf16 autocast. Model FLOP utilisation is what the forward and
backward pass have to multiply (3 times the forward; a multiply-add is two operations) against a large bf16 product
measured on the same card in the same run. Several processes train one model with DDP or, with --parallel fsdp, FSDP2;
--clips is per process. `--device cpu --models Ti/16 --size 32 --clips 1` shows that the script runs.

Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from timing import alternate, machine
from training_steps import OPTIMIZATION, Case, Trained, build_model, measured_limit

from uniformerv2 import named_config
from uniformerv2.device import peak_memory_mib
from uniformerv2.distributed import current_ranks, process_group, rank_device
from uniformerv2.model.config import MODEL_SIZES
from uniformerv2.train.optim import build_optimizer
from uniformerv2.train.parallel import SharedModel

FRAMES = {"scene": 8, "temporal": 16}


def main(arguments: argparse.Namespace) -> None:
    device, ranks = rank_device(arguments.device), current_ranks()
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU: the figures mean nothing"
    limit = measured_limit("bf16", device)
    if ranks.first:
        print(f"{card}; {machine()}; {ranks.world} processes, {arguments.clips} clips each, bf16 autocast")
        print(f"matrix product in bf16: {limit / 1e12:.2f} TFLOP/s\n")
        print("| model | clips/s | step (ms) | peak memory of a process (GiB) | model FLOP utilisation |")
        print("|---|---|---|---|---|")
    for size in arguments.models:
        for layout in arguments.layouts:
            case = make_case(size, layout, arguments.size)
            seconds, memory = measure(case, device, arguments)
            if ranks.first:
                utilisation = case.operations(arguments.clips) / seconds / limit
                print(
                    f"| {case.name} | {ranks.world * arguments.clips / seconds:.2f} | {seconds * 1e3:.1f} | "
                    f"{memory / 2**10:.2f} | {utilisation:.1%} |"
                )


def make_case(size: str, layout: str, pixels: int | None) -> Case:
    config = named_config(size, layout)
    if pixels is not None:
        config = replace(config, image_size=(pixels, pixels))
    frames = FRAMES[layout]
    return Case(f"{size} {layout} {frames}x{config.image_size[0]}", config, frames)


def measure(case: Case, device: torch.device, arguments: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a step, and MiB at most."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model = build_model(case, device)
    shared = SharedModel(
        model, current_ranks(), parallel=arguments.parallel, precision="bf16", compile=arguments.compile
    )
    trained = Trained(shared.called, build_optimizer(model, OPTIMIZATION))
    clips, labels = case.batch(arguments.clips, device)
    times = alternate({"step": lambda: trained.step(clips, labels, "bf16")}, repeats=arguments.rounds)
    return times["step"] / 1e3, peak_memory_mib(device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODEL_SIZES, default=["B/16", "L/14"])
    parser.add_argument("--layouts", nargs="+", choices=FRAMES, default=list(FRAMES))
    parser.add_argument("--clips", type=int, default=16, help="clips of a step, in each process")
    parser.add_argument("--size", type=int, help="pixels; default: those of the model")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds, at least 5")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument("--parallel", choices=["ddp", "fsdp"], default="ddp", help="for several processes")
    parser.add_argument("--device", default="auto")
    with process_group():
        main(parser.parse_args())
