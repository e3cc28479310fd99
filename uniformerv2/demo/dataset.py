"""The drawn motions as a data set: H.264 in mp4, a folder per class, and a manifest with the split."""

from __future__ import annotations

import csv
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import av
import numpy as np

from uniformerv2.demo.drawing import Array
from uniformerv2.demo.motions import FRAME_RATE, MOTIONS, NUM_FRAMES, PAIRS, SIZE, draw
from uniformerv2.progress import track


def write_dataset(
    folder: str | Path,
    *,
    train_clips: int,
    held_out_clips: int,
    seed: int = 0,
    num_frames: int = NUM_FRAMES,
    size: tuple[int, int] = SIZE,
    processes: int = 2,
    progress: bool = False,
) -> Path:
    """Draw the motions and write them as H.264 files, FOLDER/MOTION/NUMBER.mp4, and FOLDER/manifest.csv.

    Every drawn clip is written twice: forwards for one motion and, under the same number, backwards for its
    partner. Both are on the same side of the split, so an order-blind model gets at most one of them right.

    Args:
        folder: created where it is missing; files of the same name are replaced.
        train_clips, held_out_clips: clips of each motion on either side of the split.
        seed: an equal seed draws equal clips, whatever `processes` is.
        num_frames, size: frames of a clip, and (height, width) in pixels, both even.
        processes: clips drawn and encoded at once; threads would wait for each other, as the images are small.
        progress: show a bar on a terminal.

    Returns:
        The manifest: columns path, label and split (train or test).
    """
    folder = Path(folder)
    for motion in MOTIONS:
        (folder / motion).mkdir(parents=True, exist_ok=True)
    numbers = range(train_clips + held_out_clips)
    jobs = [(pair, number) for number in numbers for pair in range(len(PAIRS))]

    write = partial(_write_pair, folder, seed=seed, num_frames=num_frames, size=size)
    with ProcessPoolExecutor(processes) as pool:
        for _ in track(pool.map(write, jobs, chunksize=8), "pairs of videos", total=len(jobs), progress=progress):
            pass

    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["path", "label", "split"])
        for motion in MOTIONS:
            for number in numbers:
                rows.writerow([f"{motion}/{_file_name(number)}", motion, "train" if number < train_clips else "test"])
    return manifest


def _write_pair(folder: Path, job: tuple[int, int], *, seed: int, num_frames: int, size: tuple[int, int]) -> None:
    pair, number = job
    forwards, backwards = PAIRS[pair]
    frames = draw(forwards, np.random.default_rng((seed, pair, number)), num_frames=num_frames, size=size)
    write_video(folder / forwards / _file_name(number), frames)
    write_video(folder / backwards / _file_name(number), frames[::-1])


def write_video(path: str | Path, frames: Array, *, rate: int = FRAME_RATE) -> None:
    """Encode uint8 RGB frames (frames, 3, height, width) as H.264; height and width are even, `rate` in frames/s."""
    with av.open(str(path), "w") as container:
        # 18: no artefact that the eye sees, and little difference between the first frames and the last
        stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "18"})
        stream.height, stream.width = frames.shape[-2:]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in np.ascontiguousarray(frames.transpose(0, 2, 3, 1)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def _file_name(number: int) -> str:
    return f"{number:05d}.mp4"
