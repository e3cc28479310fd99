"""Inference against the official implementation: the released sizes, long clips, and files from disk to top-5.

    python benchmarks/inference.py CASE... --reference CHECKOUT [--videos FOLDER] [--output FOLDER]

k400    B/16, scene, 8 frames: every backend and precision, the official model in fp32 and under bf16 autocast, and
        other models of transformers where it is installed
ssv2    B/16, temporal, 16 frames: PyTorch against the official model
frames  B/16, scene: 64 frames against 8, time and memory
files   B/16, scene, 8 frames, one clip: files of --videos from disk to top-5, in fp32 and bf16, the next files being
        read meanwhile, against decord and the official model, one file after the other

Weights are random: what they are changes no time. CHECKOUT is a clone of OpenGVLab/UniFormerV2. A Markdown table goes
to the screen; --output also receives JSON, the tables and pictures. On a GPU the same command measures bf16 and the
limit of that card; it has not been run on one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import alternate, machine
from torch import Tensor

from uniformerv2.benchmark.measuring import Case, Contender, measure
from uniformerv2.benchmark.reference import load_reference
from uniformerv2.benchmark.run import Report, benchmark
from uniformerv2.device import pick_device
from uniformerv2.errors import VideoError
from uniformerv2.inference.precision import has_bf16
from uniformerv2.model.config import Layout, Preprocessing, named_config
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.predict import Prediction, Predictor
from uniformerv2.video.views import segment_indices
from uniformerv2.weights.checkpoint import save_model

GROUP = 6  # files that are timed together


def build(layout: Layout, frames: int) -> UniFormerV2:
    torch.manual_seed(0)
    return UniFormerV2(named_config("B/16", layout), Preprocessing(num_frames=frames)).eval()


def k400(options: argparse.Namespace) -> Report:
    return benchmark(
        build("scene", 8),
        title="K400 B/16",
        device=options.device,
        reference=options.reference,
        peers=True,
        batch_sizes=options.batch_sizes,
        rounds=options.repeats,
        progress=True,
    )


def ssv2(options: argparse.Namespace) -> Report:
    def in_torch(one: Contender) -> bool:
        return one.model == "official" or one.backend == "torch"

    return benchmark(
        build("temporal", 16),
        title="SSv2 B/16",
        device=options.device,
        reference=options.reference,
        only=in_torch,
        batch_sizes=(1,),
        rounds=options.repeats,
        progress=True,
    )


def frames(options: argparse.Namespace) -> str:
    """Time and memory of 64 frames against 8."""
    device = pick_device(options.device)
    seen = {}
    with tempfile.TemporaryDirectory() as folder:
        save_model(build("scene", 8), file := Path(folder) / "ours.safetensors")
        short = Case(file, None, None, 8, (224, 224))
        for case in (short, replace(short, num_frames=64)):
            contender = Contender("ours", "fp32", "torch")
            measured, _ = measure([contender], case, device, batch_sizes=(1,), rounds=options.repeats)
            seen[case.num_frames] = measured[0]
    lines = [
        f"{count} frames: {one.latency * 1e3:.0f} ms ± {one.times[0].spread:.1%}, {one.memory_mib:.0f} MiB"
        for count, one in seen.items()
    ]
    return "\n".join([machine(), *lines, f"64 against 8 frames: {seen[64].latency / seen[8].latency:.2f} times"]) + "\n"


def files(options: argparse.Namespace) -> str:
    """Files per second from disk to top-5."""
    model = build("scene", 8)
    videos = sorted(path for path in options.videos.rglob("*") if path.suffix in (".avi", ".mp4"))
    groups = [videos[first : first + GROUP] for first in range(0, len(videos) - GROUP + 1, GROUP)]
    ways: dict[str, Callable[[Sequence[Path]], object]] = {"ours fp32": partial(predict_all, Predictor(model))}
    if has_bf16(pick_device("cpu")):
        ways["ours bf16"] = partial(predict_all, Predictor(model, precision="bf16"))
    official = load_reference(options.reference, model, num_frames=8)
    ways["decord, official fp32"] = lambda group: [
        top5(official, decoded(video, model.preprocessing)) for video in group
    ]
    turns = {name: itertools.cycle(groups) for name in ways}
    seconds = alternate(
        {name: (lambda name=name, way=way: way(next(turns[name]))) for name, way in ways.items()},
        repeats=max(options.repeats, 5),
        inner=1,
    )
    slowest = seconds["decord, official fp32"]
    lines = [f"{name}: {GROUP * 1e3 / one:.3f} files/s, {slowest / one:.2f} times" for name, one in seconds.items()]
    return (
        "\n".join([f"{GROUP} at a time of {len(videos)} videos of {options.videos.name}. {machine()}", *lines]) + "\n"
    )


def predict_all(predictor: Predictor, videos: Sequence[Path]) -> None:
    for one in predictor.predict_all(videos):
        if not isinstance(one, Prediction):
            raise VideoError(one.reason)


def decoded(video: Path, preprocessing: Preprocessing) -> Tensor:
    """A clip as the official code makes it: decord, normalised floats, short side resized, centre crop."""
    import decord

    reader = decord.VideoReader(str(video), num_threads=1)
    frames = reader.get_batch(segment_indices(len(reader), preprocessing.num_frames)).asnumpy()
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    # (frames, rows, columns, 3) -> (3, frames, rows, columns)
    clip = ((torch.from_numpy(frames).float() / 255 - mean) / std).permute(3, 0, 1, 2)
    height, width = clip.shape[-2:]
    side = preprocessing.size[0]
    scale = side / min(height, width)
    size = (side, int(width * scale)) if height < width else (int(height * scale), side)
    clip = F.interpolate(clip, size=size, mode="bilinear", align_corners=False)
    top, left = (-(-(length - side) // 2) for length in size)
    return clip[:, :, top : top + side, left : left + side][None]


@torch.inference_mode()
def top5(model: Callable[[Tensor], Tensor], clip: Tensor) -> Tensor:
    return model(clip).softmax(-1).topk(5).indices


CASES: dict[str, Callable[[argparse.Namespace], Report | str]] = {
    "k400": k400,
    "ssv2": ssv2,
    "frames": frames,
    "files": files,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--videos", type=Path, default=Path("weizmann"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4], help="of k400; the first is 1")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    for case in options.cases:
        found = CASES[case](options)
        text = found if isinstance(found, str) else found.to_markdown()
        print(f"\n{text}", flush=True)
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
            (options.output / f"{case}.md").write_text(text)
            if isinstance(found, Report):
                (options.output / f"{case}.json").write_text(json.dumps(found.to_json(), indent=2))
                (options.output / f"{case}.svg").write_text(found.to_svg())


if __name__ == "__main__":  # the workers import this file too
    main()
