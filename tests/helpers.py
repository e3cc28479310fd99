"""What tests are made of: videos that are drawn, a small image transformer, a model that always answers the same."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import av
import cloudpickle
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from uniformerv2.data.loader import Batch
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.tasks.classification.training import train_classifier
from uniformerv2.timeline import Timeline
from uniformerv2.train.log import TIMINGS, read_metrics
from uniformerv2.train.recipe import ClipRecipe, ModelRecipe, Recipe
from uniformerv2.video.reader import VideoReader

Target = TypeVar("Target", Path, io.BytesIO)
Run = Callable[..., tuple[int, str, str]]  # the fixture `uniformerv2`

train = partial(train_classifier, workers=0)


def tiny_recipe(image_model: Path, **fields: Any) -> Recipe:
    """Of a training of seconds, with these fields."""
    recipe = Recipe(ModelRecipe(arm=str(image_model)), ClipRecipe(num_frames=4, size=32))
    return recipe.vary(**{"batch_size": 4, "lr": 2e-3, "warmup_epochs": 1.0, "precision": "fp32", **fields})


def logged(run: Path, kind: str = "") -> list[dict[str, Any]]:
    """The records of a run, or those of a kind, without the timings."""
    return [
        {name: value for name, value in record.items() if name not in TIMINGS}
        for record in read_metrics(run / "metrics.jsonl")
        if kind in ("", record["kind"])
    ]


# A server forks them that has imported the package and never computed: where forks of the test process itself
# compute, they hang on a lock that another thread of it held.
FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["pytest", "uniformerv2.cli.training", "torch.distributed.checkpoint"])


def write_video(
    target: Target,
    frames: Iterable[np.ndarray],
    *,
    codec: str = "mpeg4",
    rate: int = 10,
    pixels: str = "yuv420p",
    container: str | None = None,
    muxer: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
    prepare: Callable[[av.VideoStream], object] = lambda stream: None,
    **options: str | int,
) -> Target:
    """Encode frames, uint8 RGB (height, width, 3), into a file.

    Args:
        target: file to write, in a folder that may be missing, or memory.
        frames: all of the same size.
        codec, rate: rate in frames/s.
        pixels: pixel format.
        container: format; None: by the suffix of `target`.
        muxer: options of the container.
        times: presentation times in milliseconds; None: as `rate` says.
        size: (height, width) that the frames are resized to.
        prepare: is called with the stream before the first frame is encoded.
        options: of the encoder, with underscores for hyphens.
    """
    if isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
    file = str(target) if isinstance(target, Path) else target
    with av.open(file, "w", format=container, options=muxer or {}) as output:
        settings = {name.replace("_", "-"): str(value) for name, value in options.items()}
        stream = output.add_stream(codec, rate=rate, options=settings)
        stream.pix_fmt = pixels
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        prepare(stream)
        for number, image in enumerate(frames):
            if not number:
                stream.height, stream.width = size or image.shape[:2]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return target


def noise(
    num_frames: int, height: int = 48, width: int = 48, *, brightest: int = 255, seed: int = 0
) -> Iterator[np.ndarray]:
    """Frames of values in [0, brightest)."""
    generator = np.random.default_rng(seed)
    for _ in range(num_frames):
        yield generator.integers(0, brightest, (height, width, 3), dtype=np.uint8)


def coloured(colours: Sequence[int], *, side: int = 48, seed: int = 0) -> Iterator[np.ndarray]:
    """A frame of noise for each colour, with that channel bright: 0 red, 1 green, 2 blue."""
    for colour, frame in zip(colours, noise(len(colours), side, side, brightest=80, seed=seed), strict=True):
        frame[..., colour] += 150
        yield frame


@contextmanager
def decoded_frames() -> Iterator[list[int]]:
    """Receives the number of frames that each video reader has decoded when it is closed."""
    counts: list[int] = []
    close = VideoReader.close

    def counted(reader: VideoReader) -> None:
        counts.append(reader.statistics.frames)
        close(reader)

    with patch.object(VideoReader, "close", counted):
        yield counts


def touch(root: Path, *names: str) -> Path:
    """Make empty files below a folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write_image_model(path: Path, *, width: int = 32, depth: int = 3, heads: int = 2, grid: int = 2) -> Path:
    """A vision transformer of random weights in timm's names, patch 16, which can be armed."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.05

    state = {
        "cls_token": random(1, 1, width),
        "pos_embed": random(1, 1 + grid * grid, width),
        "patch_embed.proj.weight": random(width, 3, 16, 16),
        "patch_embed.proj.bias": random(width),
        "norm.weight": torch.ones(width),
        "norm.bias": random(width),
    }
    for block in (f"blocks.{number}" for number in range(depth)):
        for norm in ("norm1", "norm2"):
            state |= {f"{block}.{norm}.weight": torch.ones(width), f"{block}.{norm}.bias": random(width)}
        for layer, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 2 * width, width),
            ("mlp.fc2", width, 2 * width),
        ):
            state |= {f"{block}.{layer}.weight": random(rows, columns), f"{block}.{layer}.bias": random(rows)}
    save_file(state, path, {"heads": str(heads)})
    return path


class Constant(nn.Module):
    """Gives the same logits for every clip and remembers how many clips it saw at once."""

    thresholds: tuple[float, ...] = ()
    probabilities = UniFormerV2.probabilities

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.seen: list[int] = []

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(clips))
        return self.logits.expand(len(clips), -1)


def batch_of(labels: list[int]) -> Batch:
    """Clips of zeros that have these labels."""
    names = [f"{number}.mp4" for number in range(len(labels))]
    return Batch(torch.zeros(len(labels), 1, 3, 2, 4, 4), torch.tensor(labels), [*range(len(labels))], names)


KINETICS = {"blue": "archery", "green": "bowling", "red": "yoga"}


def as_kinetics(model: UniFormerV2, order: Sequence[str]) -> UniFormerV2:
    """The model of three colours with names of Kinetics for them, and the rows of its head in an order of these."""
    head = nn.Linear(model.config.width, len(order))
    with torch.no_grad():
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, -100)
        rows = [order.index(KINETICS[label]) for label in model.labels]
        head.weight[rows], head.bias[rows] = model.head.linear.weight, model.head.linear.bias
    model.head.linear = head
    model.config, model.labels = replace(model.config, num_classes=len(order)), tuple(order)
    return model


def rising_timeline(windows: int = 5, classes: int = 3) -> Timeline:
    """Windows of a second, every half second; the score of class 1 rises from 0.2 to 0.8, the others have 0.1."""
    start = np.arange(windows) / 2
    scores = np.full((windows, classes), 0.1, dtype=np.float32)
    scores[:, 1] = np.linspace(0.2, 0.8, windows)
    return Timeline("a & b.mp4", tuple(f"class_{number}" for number in range(classes)), start, start + 1, scores)


def start_process(work: Callable[[], object], **environment: str) -> Any:
    """A process that does the work, a function of a test that takes with it what it refers to."""
    process = FRESH.Process(target=run_pickled, args=(cloudpickle.dumps(work), dict(os.environ) | environment))
    process.start()
    return process


def run_pickled(work: bytes, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    cloudpickle.loads(work)()


def before_call(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, event: Callable[[], object]
) -> None:
    """Let something happen before the call of this number, from 1, of a function."""
    function, numbers = getattr(owner, name), count(1)

    def counted(*arguments: Any, **options: Any) -> Any:
        if next(numbers) == number:
            event()
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after(moments: int) -> None:
    """Kill this process after so many calls and returns of functions in this thread, those of C too."""
    numbers = count(1)

    def profile(*_: object) -> None:
        if next(numbers) == moments:
            kill_this_process()

    sys.setprofile(profile)


def killed_again_and_again(run: Callable[..., list[int]], owner: Any, name: str) -> Iterator[None]:
    """Run processes until they end by themselves; before, they are killed, later and later after a call of a function.

    Args:
        run: takes `prepare`, which it calls in the processes, and returns their exit codes.
        owner, name: of the function.

    Yields:
        After each kill.
    """
    dice, moments = random.Random(0), 1000.0

    def prepare() -> None:
        before_call(pytest.MonkeyPatch(), owner, name, 1, partial(kill_after, int(moments)))

    while any(codes := run(prepare=prepare)):
        assert set(codes) == {-signal.SIGKILL}
        yield
        moments *= dice.uniform(1.1, 1.6)


def interrupt() -> None:
    raise KeyboardInterrupt


def assert_error_line(errors: str, *parts: object) -> None:
    """One line on stderr, which has these parts."""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1, errors
    for part in parts:
        assert str(part) in errors


def assert_refused(ended: tuple[int, str, str], *parts: object) -> None:
    """A command wrote nothing but one line on stderr, which has these parts."""
    assert ended[:2] == (2, "")
    assert_error_line(ended[2], *parts)


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def files_below(folder: Path) -> dict[str, bytes]:
    """All files and their contents."""
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
