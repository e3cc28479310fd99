"""What loading a batch costs: our loader against PyAV read sequentially, decord and torchcodec.

    python benchmarks/loading.py [VIDEO_OR_FOLDER...] [--synthetic 30] [--videos 30] [--frames 8 16 32] [--workers 1 2]

Two sets of clips: the given files (of a folder, --videos of them, evenly spread), and drawn ones of 340x256 pixels,
10 s and H.264 as x264 makes it by itself, the size in which Kinetics is usually kept.

The others are what they are in a training script: a `DataLoader` with persistent workers and its own collation, over a
dataset that opens the file, reads the frames with one decoding thread, and transforms them. Ours is `make_loader`. All
have the same frames and, with our functions, the same transforms, so that reading and passing on are what differs; with
--plain the others transform with textbook torch instead, as the official pipelines do. One epoch of the set is a round;
rounds take turns, and the median of their times counts. Processor time is that of all processes, peak memory the sum of
their proportional set sizes above what there was before the loader was made, sampled in a round of its own.

decord 0.6 and torchcodec 0.13 are measured where they are installed, and FFmpeg's libraries, which torchcodec needs.
Linux only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from timing import machine
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from uniformerv2.data.annotations import Annotation
from uniformerv2.data.dataset import VideoDataset, make_loader
from uniformerv2.data.loader import EpochSampler
from uniformerv2.model.config import Preprocessing
from uniformerv2.train.recipe import AugmentationOptions
from uniformerv2.video.augment import augment, draw_crop
from uniformerv2.video.augmentation import Augmentation
from uniformerv2.video.suffixes import VIDEO_SUFFIXES
from uniformerv2.video.transforms import covering_size, test_crops
from uniformerv2.video.views import random_segment_indices, segment_indices

Indices = Callable[[int], list[int]]  # number of frames in the video -> those that are wanted
Read = Callable[[str, Indices], Tensor]  # -> uint8 (frames, 3, height, width)

BATCH = 5  # so that 30 clips make as many batches for each of two workers


# --- the ways to read


def read_sequentially(path: str, indices: Indices) -> Tensor:
    """PyAV, up to the last wanted frame; only wanted frames become RGB."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        wanted = indices(stream.frames)
        found = {}
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                found[number] = torch.from_numpy(frame.to_ndarray(format="rgb24"))
            if number == wanted[-1]:
                break
    return torch.stack([found[number] for number in wanted]).permute(0, 3, 1, 2)


def read_with_decord(path: str, indices: Indices) -> Tensor:
    from decord import VideoReader

    reader = VideoReader(path, num_threads=1)
    return torch.from_numpy(reader.get_batch(indices(len(reader))).asnumpy()).permute(0, 3, 1, 2)


def read_with_torchcodec(path: str, indices: Indices) -> Tensor:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, num_ffmpeg_threads=1)
    return decoder.get_frames_at(indices(len(decoder))).data


def readers() -> dict[str, Read]:
    """Those that can be imported here."""
    found: dict[str, Read] = {"PyAV, sequential": read_sequentially}
    for name, module, read in (
        ("decord", "decord", read_with_decord),
        ("torchcodec", "torchcodec.decoders", read_with_torchcodec),
    ):
        try:
            __import__(module)
        except Exception as error:  # both fail in many ways where they do not find FFmpeg
            print(f"{name} is left out: {str(error).strip().splitlines()[0]}")
        else:
            found[f"{name} {version(name)}"] = read
    return found


# --- the ways to transform


def plain_clip(frames: Tensor, preprocessing: Preprocessing, size: tuple[int, int]) -> Tensor:
    """Float, resize, normalise, one after the other for the whole clip: float32 (3, frames, *size)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    resized = F.interpolate(frames.float().div(255), size=size, mode="bilinear", align_corners=False)
    return resized.sub(mean).div(std).transpose(0, 1)


def plain_test(frames: Tensor, preprocessing: Preprocessing) -> Tensor:
    clip = plain_clip(frames, preprocessing, covering_size(frames.shape, preprocessing.size))
    height, width = preprocessing.size
    top, left = -(-(clip.shape[-2] - height) // 2), -(-(clip.shape[-1] - width) // 2)
    return clip[..., top : top + height, left : left + width].contiguous()


def plain_training(frames: Tensor, preprocessing: Preprocessing, options: Augmentation, rng: random.Random) -> Tensor:
    top, left, height, width = draw_crop(frames.shape, preprocessing.size, options, rng)
    frames = frames[..., top : top + height, left : left + width]
    mirrored = rng.random() < options.flip
    clip = plain_clip(frames, preprocessing, preprocessing.size)
    return (clip.flip(-1) if mirrored else clip).contiguous()


class Others(Dataset[tuple[Tensor, int]]):
    """Clip and class of each video, the same as ours, read in another way."""

    def __init__(self, ours: VideoDataset, read: Read, *, plain: bool) -> None:
        self.ours, self.read, self.plain = ours, read, plain

    def __len__(self) -> int:
        return len(self.ours)

    def __getitem__(self, key: Any) -> tuple[Tensor, int]:
        torch.set_num_threads(1)
        row = key[0] if isinstance(key, tuple) else key
        preprocessing, options = self.ours.preprocessing, self.ours.augmentation
        count, path = preprocessing.num_frames, str(self.ours.annotations[row].path)
        if options is None:
            frames = self.read(path, lambda length: segment_indices(length, count))
            clip = plain_test(frames, preprocessing) if self.plain else test_crops(frames, preprocessing)[0]
        else:
            rng = random.Random(f"{key[0]} {key[1]}")
            frames = self.read(path, lambda length: random_segment_indices(length, count, rng))
            arguments = frames, preprocessing, options, rng
            clip = plain_training(*arguments) if self.plain else augment(*arguments).clip
        return clip, self.ours.labels[row]


# --- the clips


def draw_clip(path: Path, seed: int, *, width: int = 340, height: int = 256, seconds: int = 10) -> None:
    """A camera that moves over a detailed picture with an object before it: H.264, 30 frames/s."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.zeros(1, 3, 2 * height, 2 * width)
    for coarseness, contrast in ((32, 80.0), (8, 50.0), (3, 40.0)):  # as natural pictures: less of what is finer
        noise = torch.randn(1, 3, 2 * height // coarseness, 2 * width // coarseness, generator=generator)
        picture += contrast * F.interpolate(noise, size=picture.shape[-2:], mode="bilinear", align_corners=False)
    scene = picture.add_(128).clamp_(0, 255).byte()[0].permute(1, 2, 0).numpy()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(30 * seconds):
            top = int((1 + np.sin(number / 40 + seed)) * height / 2)
            left = int((1 + np.cos(number / 55)) * width / 2)
            image = scene[top : top + height, left : left + width].copy()
            place = 3 * number % (width - 60)
            image[80:160, place : place + 60] = scene[number % height :][:80, 100:160][::-1]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def given_clips(sources: Sequence[Path], count: int) -> list[Path]:
    """The files, and those of the folders; `count` of them, evenly spread."""
    found = []
    for source in sources:
        below = sorted(source.rglob("*")) if source.is_dir() else [source]
        found += [path for path in below if path.suffix.lower() in VIDEO_SUFFIXES]
    return [found[number * len(found) // count] for number in range(count)] if len(found) > count else found


# --- measuring


@dataclass
class Round:
    """What one epoch took."""

    seconds: float
    cpu: float  # seconds of all processes


def processes() -> list[int]:
    return [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]


def cpu_seconds() -> float:
    total = 0
    for pid in processes():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def memory() -> int:
    """Bytes of all processes, each page once."""
    total = 0
    for pid in processes():
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def peak_memory(epoch: Callable[[], object]) -> int:
    """The largest of samples that are taken while an epoch runs."""
    samples, done = [memory()], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            samples.append(memory())

    thread = threading.Thread(target=watch)
    thread.start()
    epoch()
    done.set()
    thread.join()
    return max(samples)


def timed(epoch: Callable[[], object]) -> Round:
    cpu, start = cpu_seconds(), time.perf_counter()
    epoch()
    return Round(time.perf_counter() - start, cpu_seconds() - cpu)


def loaders(
    dataset: VideoDataset, others: dict[str, Read], *, workers: int, plain: bool
) -> dict[str, Callable[[], Any]]:
    """How to make the loader of each, by name; ours first."""
    training = dataset.augmentation is not None
    keys: Iterable[Any] = (
        list(EpochSampler(len(dataset), seed=0, batch_size=BATCH)) if training else range(len(dataset))
    )

    def other(read: Read) -> Callable[[], Any]:
        return lambda: DataLoader(
            Others(dataset, read, plain=plain),
            batch_size=BATCH,
            sampler=keys,
            num_workers=workers,
            persistent_workers=True,
        )

    ours = lambda: make_loader(dataset, batch_size=BATCH, workers=workers)  # noqa: E731
    return {"ours": ours} | {name: other(read) for name, read in others.items()}


def clips_of(batch: Any) -> Tensor:
    return batch[0] if isinstance(batch, list) else batch.clips[:, 0]


def run(loader: Iterable[Any]) -> None:
    """One epoch, of which every batch is looked at and let go."""
    for batch in loader:
        clips_of(batch)[..., 0].sum()


def measure(makers: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, list[Round]], dict[str, int], str]:
    """Rounds and bytes at the peak of each, and how much the tensors differ."""
    made, peaks = {}, {}
    for name, make in makers.items():
        before = memory()
        made[name] = make()
        run(made[name])  # starts the workers, and warms up
        peaks[name] = peak_memory(lambda name=name: run(made[name])) - before  # type: ignore[misc]
    times: dict[str, list[Round]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, loader in made.items():
            times[name].append(timed(lambda loader=loader: run(loader)))  # type: ignore[misc]
    return times, peaks, _differences(made)


def _differences(made: dict[str, Any]) -> str:
    """Largest difference of the first two batches from ours."""
    firsts = {
        name: [clips_of(batch).clone() for _, batch in zip(range(2), loader, strict=False)]
        for name, loader in made.items()
    }
    ours = firsts.pop("ours")
    largest = {
        name: max((left - right).abs().max().item() for left, right in zip(first, ours, strict=True))
        for name, first in firsts.items()
    }
    return ", ".join(f"{name} {difference:.1e}" for name, difference in largest.items())


def report(title: str, count: int, times: dict[str, list[Round]], peaks: dict[str, int]) -> float:
    """Print the rows of a cell; returns our speed relative to the best of the others."""
    seconds = {name: statistics.median(one.seconds for one in rounds) for name, rounds in times.items()}
    for name, rounds in times.items():
        cpu = statistics.median(one.cpu for one in rounds) / count
        print(
            f"| {title} | {name} | {count / seconds[name]:.1f} | {1000 * cpu:.1f} | {peaks[name] / 1e6:.0f} "
            f"| {seconds[name] / seconds['ours']:.2f} |",
            flush=True,
        )
    return min(value for name, value in seconds.items() if name != "ours") / seconds["ours"]


def benchmark(name: str, files: Sequence[Path], others: dict[str, Read], arguments: argparse.Namespace) -> list[float]:
    """All cells of one set: how many times as fast as the fastest of the others ours is."""
    print("\n" + HEAD)
    rows = [Annotation(path, f"class {number % 3}") for number, path in enumerate(files)]
    classes = sorted({row.label for row in rows})
    options = AugmentationOptions(num_ops=arguments.num_ops).build()
    ratios, differences = [], []
    for frames in arguments.frames:
        preprocessing = Preprocessing(num_frames=frames, size=(arguments.size, arguments.size))
        for transforms, augmentation in (("test", None), ("training", options)):
            dataset = VideoDataset(rows, classes, preprocessing, augmentation=augmentation)
            for workers in arguments.workers:
                makers = loaders(dataset, others, workers=workers, plain=arguments.plain)
                times, peaks, difference = measure(makers, arguments.rounds)
                ratios.append(report(f"{name} | {frames} | {transforms} | {workers}", len(files), times, peaks))
            differences.append(f"{frames} frames, {transforms}: {difference}")
    print(f"\nlargest difference of normalised values from ours, {name} clips:", *differences, sep="\n  ")
    return ratios


HEAD = """| clips | frames | transforms | workers | loader | clips/s | CPU ms/clip | peak MB | times ours |
|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", type=Path, help="video files or folders of them")
    parser.add_argument("--videos", type=int, default=30, help="how many of the given files")
    parser.add_argument("--synthetic", type=int, default=30, help="how many clips to draw; 0 for none")
    parser.add_argument("--seconds", type=int, default=10, help="length of a drawn clip")
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32], help="frames of a clip")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="worker processes")
    parser.add_argument("--size", type=int, default=224, help="side of a clip in pixels")
    parser.add_argument("--num-ops", type=int, default=0, help="RandAugment operations of the training transforms")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median counts")
    parser.add_argument("--plain", action="store_true", help="the others transform with textbook torch")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    print(f"{machine()}, PyAV {av.__version__}, float32, 1 decoding thread, batches of {BATCH}")
    others = readers()
    sets = [("given", given_clips(arguments.sources, arguments.videos))] if arguments.sources else []
    with tempfile.TemporaryDirectory() as folder:
        drawn = [Path(folder) / f"{number}.mp4" for number in range(arguments.synthetic)]
        for number, path in enumerate(drawn):
            draw_clip(path, number, seconds=arguments.seconds)
        if drawn:
            bits = 8 * sum(path.stat().st_size for path in drawn) / len(drawn) / arguments.seconds
            print(f"drawn clips have {bits / 1e3:.0f} kbit/s")
            sets.append(("synthetic", drawn))
        ratios = [ratio for name, files in sets for ratio in benchmark(name, files, others, arguments)]
    print(
        f"\nours against the fastest of the others, {len(ratios)} cells: smallest {min(ratios):.2f} times as fast, "
        f"median {statistics.median(ratios):.2f}"
    )


if __name__ == "__main__":
    main()
