"""The time for a new frame of a stream where windows share frames, against that for the whole window.

    python benchmarks/streaming.py [--model B/16] [--window 8] [--precision fp32] [--rounds 5] [--reference CHECKOUT]

The model classifies the window of the last frames at every new frame (stride 1), with random weights, as
`StreamPredictor` does. The ways take turns, so that a change in the load of the machine meets all of them; the median
of the rounds counts. `--reference` is a clone of OpenGVLab/UniFormerV2, which computes the whole window in float32 with
the same weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch
from timing import alternate, machine
from torch import Tensor

from uniformerv2.benchmark.reference import load_reference
from uniformerv2.inference.optimize import in_torch
from uniformerv2.inference.sharing import SharedFrames
from uniformerv2.model.config import named_config
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.video.transforms import test_frame


def build(name: str) -> UniFormerV2:
    """A model of the scene layout in which nothing is hidden behind a zero."""
    torch.manual_seed(0)
    model = UniFormerV2(named_config(name)).eval()
    for parameter in model.global_blocks.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def ways(model: UniFormerV2, frames: Tensor, window: int) -> dict[str, Callable[[], object]]:
    """The calls to time, by name; `frames` are (3, frames, height, width), at least two windows."""
    shared = SharedFrames(model)
    shared.add(dict(enumerate(frames.unbind(1)[: window - 1])))
    numbers = count(window - 1)

    def new_frame() -> Tensor:
        newest = next(numbers)
        first = newest - window + 1
        shared.drop_before(first)
        shared.add({newest: frames[:, newest % frames.shape[1]]})
        return model.head(shared.clip(range(first, newest + 1)).pooled)

    clip = frames[None, :, :window]
    encoded = model.encode(clip)
    picture = torch.randint(0, 256, (360, 640, 3), dtype=torch.uint8).permute(2, 0, 1)
    return {
        "whole window": lambda: model(clip),
        "new frame": new_frame,
        "  its encoding": lambda: model.encode(clip[:, :, :1]),
        "  its global stages": lambda: model.aggregate(encoded),
        "  resizing it from 640x360": lambda: test_frame(picture, model.preprocessing),
    }


def deviation(model: UniFormerV2, plain: UniFormerV2, frames: Tensor, window: int) -> float:
    """Largest difference of the logits of shared windows from those of the plain model, relative to the largest."""
    shared = SharedFrames(model)
    whole, parts = [], []
    for first in range(frames.shape[1] - window + 1):
        numbers = range(first, first + window)
        shared.add({number: frames[:, number] for number in numbers})
        parts.append(model.head(shared.clip(numbers).pooled))
        whole.append(plain(frames[None, :, first : first + window]))
    expected = torch.cat(whole)
    return float((torch.cat(parts) - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="B/16", help="a named size")
    parser.add_argument("--window", type=int, default=8, help="frames of a window")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of ours")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median counts")
    parser.add_argument("--reference", type=Path, help="a clone of OpenGVLab/UniFormerV2")
    given = parser.parse_args()
    print(f"{machine()}, {given.precision}, {given.model} {given.window}x224, median of {given.rounds}")
    plain = build(given.model)
    model = in_torch(plain, given.precision)
    frames = torch.randn(3, given.window + 2, *model.config.image_size)
    worst = deviation(model, plain, frames, given.window)
    print(f"largest deviation from the plain model on whole windows: {worst:.1e} of the largest logit")
    timed = ways(model, frames, given.window)
    if given.reference:
        official = load_reference(given.reference, plain, num_frames=given.window)
        clip = frames[None, :, : given.window]
        timed = {"official, whole window": lambda: official(clip), **timed}
    times = alternate(timed, repeats=given.rounds, inner=1)
    for name, milliseconds in times.items():
        print(f"{name:28} {milliseconds:9.1f} ms   {milliseconds / times['new frame']:6.2f} x new frame")


if __name__ == "__main__":
    main()
