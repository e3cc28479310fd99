"""How much faster the loader reads packed videos than their originals, and what packing costs.

python benchmarks/packing.py [VIDEO OR FOLDER ...]

Clips of the originals and of packed ones are loaded in turns, a whole epoch each; medians of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from loading import Round, draw_clip, given_clips, run, timed
from timing import machine

from uniformerv2.curation.pack import pack
from uniformerv2.data.annotations import Annotation
from uniformerv2.data.dataset import VideoDataset, make_loader
from uniformerv2.data.sources import read_annotations
from uniformerv2.model.config import Preprocessing
from uniformerv2.train.recipe import AugmentationOptions

BATCH = 5
HEAD = """| clips | frames | transforms | read from | bytes | packing, s | clips/s | CPU ms | times | times in CPU |
|---|---|---|---|---|---|---|---|---|---|"""


def packed(rows: list[Annotation], folder: Path, every: int, crf: int) -> tuple[list[Annotation], float, float]:
    """The rows of packed videos, the share of their size, and seconds for each."""
    start = time.perf_counter()
    report = pack(rows, folder, keyframe_every=every, crf=crf, workers=1)
    seconds = (time.perf_counter() - start) / report.videos
    return read_annotations(report.manifest), report.bytes_after / report.bytes_before, seconds


def benchmark(name: str, files: list[Path], folder: Path, arguments: argparse.Namespace) -> None:
    rows = [Annotation(path, f"class {number % 3}") for number, path in enumerate(files)]
    sets = {"original": (rows, 1.0, 0.0)}
    for every in arguments.keyframe_every:
        for crf in arguments.crf:
            sets[f"key frame every {every}, crf {crf}"] = packed(rows, folder / f"{name} {every} {crf}", every, crf)
    for frames in arguments.frames:
        preprocessing = Preprocessing(num_frames=frames, size=(224, 224))
        for transforms, augmentation in (("test", None), ("training", AugmentationOptions(num_ops=0).build())):
            loaders = {}
            for read, (of, *_) in sets.items():
                dataset = VideoDataset(of, sorted({row.label for row in of}), preprocessing, augmentation=augmentation)
                loaders[read] = make_loader(dataset, batch_size=BATCH, workers=arguments.workers)
                run(loaders[read])  # starts the workers, and warms up
            rounds: dict[str, list[Round]] = {read: [] for read in sets}
            for _ in range(arguments.rounds):
                for read, loader in loaders.items():
                    rounds[read].append(timed(lambda loader=loader: run(loader)))  # type: ignore[misc]
            wall = {read: statistics.median(one.seconds for one in of) for read, of in rounds.items()}
            cpu = {read: statistics.median(one.cpu for one in of) for read, of in rounds.items()}
            for read, (_, size, seconds) in sets.items():
                print(
                    f"| {name} | {frames} | {transforms} | {read} | {size:.2f} | {seconds:.2f} "
                    f"| {len(files) / wall[read]:.1f} | {1000 * cpu[read] / len(files):.1f} "
                    f"| {wall['original'] / wall[read]:.2f} | {cpu['original'] / cpu[read]:.2f} |",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", type=Path, help="video files or folders of them")
    parser.add_argument("--videos", type=int, default=30, help="how many of the given files")
    parser.add_argument("--small", type=int, default=10, help="how many clips of 340x256 and 10 s to draw")
    parser.add_argument("--large", type=int, default=3, help="how many clips of 1920x1080 and 5 s to draw")
    parser.add_argument("--frames", type=int, nargs="+", default=[16], help="frames of a clip")
    parser.add_argument("--keyframe-every", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--crf", type=int, nargs="+", default=[23])
    parser.add_argument("--workers", type=int, default=1, help="worker processes")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median counts")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    print(f"{machine()}, float32, batches of {BATCH}, {arguments.workers} worker\n\n{HEAD}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sets = {"given": given_clips(arguments.sources, arguments.videos) if arguments.sources else []}
        for kind, count, width, height, seconds in (
            ("340x256", arguments.small, 340, 256, 10),
            ("1920x1080", arguments.large, 1920, 1080, 5),
        ):
            sets[kind] = [folder / f"{kind}-{number}.mp4" for number in range(count)]
            for number, path in enumerate(sets[kind]):
                draw_clip(path, number, width=width, height=height, seconds=seconds)
        for kind, files in sets.items():
            if files:
                benchmark(kind, files, folder, arguments)


if __name__ == "__main__":
    main()
