"""The time to read a few evenly spread frames of a video, by four methods.

    python benchmarks/decoding.py FILE... [--frames 8] [--rounds 5] [--threads 0]

Every way gives the same frames as uint8 RGB tensors (frames, 3, height, width), opening the file included. The ways
take turns, so that a change in the load of the machine meets all of them; the median of the rounds counts.
torchcodec is measured where it is installed.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import av
import torch

from uniformerv2.video.reader import VideoReader

Way = Callable[[Path, list[int], int], torch.Tensor]


def ours(path: Path, indices: list[int], threads: int) -> torch.Tensor:
    with VideoReader(path, threads=threads) as reader:
        return reader.frames_at(indices)


def image(frame: av.VideoFrame) -> torch.Tensor:
    return torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)


def sequential(path: Path, indices: list[int], threads: int) -> torch.Tensor:
    """Decode everything; convert the wanted frames only."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.thread_type, stream.thread_count = "AUTO", threads
        wanted = set(indices)
        found = {i: image(frame) for i, frame in enumerate(container.decode(stream)) if i in wanted}
    return torch.stack([found[i] for i in indices])


def seek_each(path: Path, indices: list[int], threads: int) -> torch.Tensor:
    """Seek to each frame by its time and decode up to it, the times being known from the packets."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.thread_type, stream.thread_count = "AUTO", threads
        times = sorted(packet.pts for packet in container.demux(stream) if packet.size)
        frames = []
        for index in indices:
            container.seek(times[index], stream=stream)
            frames.append(next(image(frame) for frame in container.decode(stream) if frame.pts >= times[index]))
    return torch.stack(frames)


def torchcodec(path: Path, indices: list[int], threads: int) -> torch.Tensor:
    from torchcodec.decoders import VideoDecoder

    return VideoDecoder(str(path), num_ffmpeg_threads=threads).get_frames_at(indices).data


def ways() -> dict[str, Way]:
    found: dict[str, Way] = {"ours": ours, "sequential": sequential, "seek per frame": seek_each}
    try:
        import torchcodec.decoders
    except Exception as error:  # it fails in many ways where it does not find FFmpeg
        print(f"torchcodec left out: {str(error).splitlines()[0]}")
    else:
        found["torchcodec"] = torchcodec
    return found


def measure(path: Path, num_frames: int, rounds: int, threads: int, found: dict[str, Way]) -> dict[str, float | None]:
    """Median milliseconds of each way; None for a way that fails on this file."""
    with VideoReader(path) as reader:
        indices = [round((i + 0.5) * (len(reader) - 1) / num_frames) for i in range(num_frames)]
        print(f"{path.name}: {len(reader)} frames, {reader.width}x{reader.height}, {num_frames} wanted")
    seconds: dict[str, list[float]] = {name: [] for name in found}
    failed = set()
    for _ in range(rounds):
        for name, way in found.items():
            start = time.perf_counter()
            try:
                way(path, indices, threads)
            except Exception as error:
                if name not in failed:
                    print(f"  {name} fails: {type(error).__name__}: {error}")
                failed.add(name)
            seconds[name].append(time.perf_counter() - start)
    return {name: None if name in failed else 1000 * statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--frames", type=int, default=8, help="frames wanted of each file")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median counts")
    parser.add_argument("--threads", type=int, default=0, help="decoding threads, 0 for automatic")
    arguments = parser.parse_args()

    print(f"{platform.machine()}, {os.cpu_count()} cores, {arguments.threads or 'automatic'} threads, ", end="")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, av {version('av')}")
    found = ways()
    for path in arguments.files:
        times = measure(path, arguments.frames, arguments.rounds, arguments.threads, found)
        base = times["ours"]
        for name, milliseconds in times.items():
            if milliseconds is not None:
                ratio = f"  {milliseconds / base:5.2f} x ours" if base else ""
                print(f"  {name:15} {milliseconds:8.1f} ms{ratio}")


if __name__ == "__main__":
    main()
