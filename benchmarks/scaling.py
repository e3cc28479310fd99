"""How much faster several processes take a training step than one, each bound to a core of its own.

    python benchmarks/scaling.py [--model Ti/16] [--layout temporal] [--size 144] [--frames 8] [--clips 16]

A step is forward, backward, clipping and AdamW on random clips in float32, with one thread a process; several processes
exchange gradients through gloo (--parallel). The groups take turns, step by step, and sleep meanwhile. Prints the
median of each, and how many times as fast as one process it is. Groups that do not exchange anything show what the
cores, which share memory, make possible.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
from multiprocessing.connection import Connection

import torch
from timing import alternate, machine
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from uniformerv2 import UniFormerV2, named_config
from uniformerv2.distributed import process_group
from uniformerv2.train.optim import build_optimizer
from uniformerv2.train.parallel import SharedModel
from uniformerv2.train.recipe import Optimization

CLASSES = 10
SPAWN = multiprocessing.get_context("spawn")


class Group:
    """Processes that take a step whenever they are told to."""

    def __init__(self, world: int, options: argparse.Namespace, *, exchange: bool = True) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.connections: list[Connection] = []
        for rank in range(world):
            ours, theirs = SPAWN.Pipe()
            SPAWN.Process(target=take_steps, args=(rank, world, port, theirs, options, exchange), daemon=True).start()
            self.connections.append(ours)

    def step(self) -> None:
        for connection in self.connections:
            connection.send("step")
        for connection in self.connections:
            connection.recv()


def take_steps(
    rank: int, world: int, port: int, connection: Connection, options: argparse.Namespace, exchange: bool
) -> None:
    """The life of a process."""
    os.sched_setaffinity(0, {rank})
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "RANK": str(rank)}
    torch.manual_seed(0)
    side, clips = options.size, options.clips // world
    config = named_config(options.model, options.layout, image_size=(side, side), num_classes=CLASSES)
    with process_group() as ranks:
        model = UniFormerV2(config).train()
        called = SharedModel(model, ranks, parallel=options.parallel, precision="fp32").called if exchange else model
        optimizer = build_optimizer(model, Optimization())
        batch, labels = torch.randn(clips, 3, options.frames, side, side), torch.randint(CLASSES, (clips,))
        while True:
            connection.recv()
            optimizer.zero_grad()
            cross_entropy(called(batch), labels).backward()
            clip_grad_norm_(model.parameters(), 20.0)
            optimizer.step()
            connection.send("done")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Ti/16")
    parser.add_argument("--layout", default="temporal")
    parser.add_argument("--size", type=int, default=144, help="side of a clip, pixels")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--clips", type=int, default=16, help="of a step, of all processes together")
    parser.add_argument("--parallel", default="ddp")
    options = parser.parse_args()
    worlds = [world for world in (1, 2, 4, 8) if world <= len(os.sched_getaffinity(0))]
    groups = {f"{world}": Group(world, options) for world in worlds}
    groups |= {f"{world}, nothing exchanged": Group(world, options, exchange=False) for world in worlds[1:]}
    print(
        f"{machine()}; {options.model} {options.layout} {options.frames}x{options.size}x{options.size}, float32, ",
        end="",
    )
    print(f"{options.clips} clips a step, {options.parallel}, one thread a process, medians of 7")
    times = alternate({name: group.step for name, group in groups.items()}, inner=1)
    for name, milliseconds in times.items():
        print(f"processes: {name:24} {milliseconds:8.1f} ms a step, {times['1'] / milliseconds:.2f} times")
