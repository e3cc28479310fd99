"""What localising a drawn film costs: its windows embedded whole, with shared frames, and the head on the embeddings.

    python benchmarks/shared_windows.py [--seconds 600] [--window-seconds 2] [--stride-seconds 0.5] [--threads 1]

The video model is a ViT-Ti/16 with four global stages, 8 frames of 112x112, with random weights, as the head is: its
scores are all alike, so that as many spans are decoded and suppressed as a film may have. Seconds are those of the
processor, which other processes hardly change.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import torch
from timing import machine

from uniformerv2.demo.motions import write_video
from uniformerv2.measuring.features import VideoFeatures, extract_features
from uniformerv2.model.config import ModelConfig, Preprocessing
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.tasks.localisation.films import film_times
from uniformerv2.tasks.localisation.finding import find_spans
from uniformerv2.tasks.localisation.pyramid import SpanHead
from uniformerv2.tasks.localisation.recipe import PyramidConfig

RATE, HEIGHT, WIDTH = 25, 100, 140
CLASSES = 20
Result = TypeVar("Result")


def draw(target: Path, seconds: int) -> None:
    """A bar that crosses a picture, which changes every two seconds."""
    dice = np.random.default_rng(0)
    frames = np.empty((seconds * RATE, 3, HEIGHT, WIDTH), dtype=np.uint8)
    for number, frame in enumerate(frames):
        if number % (2 * RATE) == 0:
            still = dice.integers(0, 256, (3, HEIGHT // 20, WIDTH // 20), dtype=np.uint8).repeat(20, 1).repeat(20, 2)
        frame[:] = still
        frame[:, :, 3 * number % WIDTH :][:, :, :20] = number % 256
    write_video(target, frames, rate=RATE)


def measured(compute: Callable[[], Result]) -> tuple[Result, float]:
    """A result, and the seconds of the processor that it took."""
    start = time.process_time()
    return compute(), time.process_time() - start


def embed(model: UniFormerV2, film: Path, *, share: bool, **windows: float) -> tuple[VideoFeatures, float, int]:
    """Embeddings, seconds, and how many frames were encoded."""
    frames, encode = [0], UniFormerV2._encode

    def counting(self: UniFormerV2, clip: torch.Tensor, add: Any) -> Any:
        frames[0] += clip.shape[0] * clip.shape[2]
        return encode(self, clip, add)

    with ExitStack() as stack:
        stack.enter_context(patch.object(UniFormerV2, "_encode", counting))
        if not share:
            stack.enter_context(patch("uniformerv2.measuring.features.windows_share", lambda *_: False))
        found, seconds = measured(lambda: extract_features(model, [film], workers=0, **windows))
    return found, seconds, frames[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600, help="of the film")
    parser.add_argument("--window-seconds", type=float, default=2.0)
    parser.add_argument("--stride-seconds", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    config = ModelConfig(width=192, depth=12, heads=3, image_size=(112, 112), global_after=(8, 9, 10, 11))
    model = UniFormerV2(config, Preprocessing(8, size=(112, 112))).eval()
    head = SpanHead(PyramidConfig(), embedding_width=config.width, num_classes=CLASSES)
    windows = {"window_seconds": given.window_seconds, "stride_seconds": given.stride_seconds}
    print(f"{machine()}, {given.threads} threads, a film of {given.seconds} s")
    with TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        draw(film, given.seconds)
        whole, seconds, frames = embed(model, film, share=False, **windows)
        print(f"windows embedded whole  {seconds:7.1f} s   {frames:6} frames encoded, {len(whole.embeddings)} windows")
        shared, seconds, frames = embed(model, film, share=True, **windows)
        print(f"with shared frames      {seconds:7.1f} s   {frames:6} frames encoded")
    difference = np.abs(shared.embeddings - whole.embeddings).max() / np.abs(whole.embeddings).max()
    print(f"largest difference      {difference:.1e} of the largest number")
    embeddings, times = torch.from_numpy(shared.embeddings), film_times(shared, given.stride_seconds)
    labels = [f"class {number}" for number in range(CLASSES)]
    spans, cost = measured(lambda: find_spans(head, embeddings, times, labels))
    print(
        f"the head, {len(spans)} spans      {cost:7.1f} s   {cost / seconds:.1%} of the embeddings with shared frames"
    )


if __name__ == "__main__":
    main()
