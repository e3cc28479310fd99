"""Procedurally drawn actions that only the order of frames can tell apart.

The classes come in pairs, and every clip of the second class of a pair is a clip of the first played
backwards. So whatever one frame shows, or any number of frames without their order, it is equally
likely under both labels: a model that averages its frames is right at most half of the time.

`draw` draws a clip, `draw_stills` single frames with their parameters. Times are in units of the clip. `write_dataset`
makes a data set: H.264 in mp4, a folder per class, and a manifest with the split.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np

from uniformerv2.data.tables import write_table
from uniformerv2.demo.drawing import SHAKE, Array, Scenes, draw_scenes
from uniformerv2.progress import track

# the second of each pair is the first, played backwards
PAIRS: tuple[tuple[str, str], ...] = (
    ("move_left", "move_right"),
    ("move_up", "move_down"),
    ("approach", "recede"),
    ("turn_clockwise", "turn_anticlockwise"),
    ("appear", "vanish"),
    ("cover", "uncover"),
)
MOTIONS: tuple[str, ...] = tuple(motion for pair in PAIRS for motion in pair)
REVERSED: dict[str, str] = {a: b for first, second in PAIRS for a, b in ((first, second), (second, first))}

# 33 frames in 8 segments are 4 steps a segment, an even number: then the reference's sampling, which
# otherwise leans to early frames, is its own mirror image (1 clip: 2, 6, ..., 30; 3 clips: 1, 2, 3 in each)
NUM_FRAMES = 33
FRAME_RATE = 16  # frames/s
SIZE = (64, 64)  # (height, width) in pixels


@dataclass(frozen=True)
class Stills:
    """Single frames with what was drawn in them. All float32 but the images.

    `visible` is how much of the sprite can be seen; where it is 0 the other values are not in the image.
    """

    images: Array  # uint8 (n, 3, h, w) RGB
    place: Array  # (n, 2): x, y of the sprite's middle, 0 at the image's middle, 1 = the shorter side
    size: Array  # (n,): radius
    angle: Array  # (n, 2): cosine, sine
    opacity: Array  # (n,) in [0, 1]
    covered: Array  # (n,) in [0, 1]: how far the lid has come, 0 without one
    lid: Array  # (n, 2): x, y of the lid's middle
    has_lid: Array  # (n,): 0 or 1
    visible: Array  # (n,) in [0, 1]
    masks: Array  # (n, 3, h, w) in [0, 1]: what is to be seen of the whole sprite, of its nose, of the lid


def draw(motion: str, rng: np.random.Generator, *, num_frames: int = NUM_FRAMES, size: tuple[int, int] = SIZE) -> Array:
    """One clip of a motion.

    With the generator in the same state, a motion and its partner give the same frames in opposite order.

    Args:
        motion: one of `MOTIONS`.
        rng: source of everything random: looks, places, speed, rests, background, shake.
        num_frames: frames to draw, at least 2.
        size: (height, width) in pixels.

    Returns:
        uint8 (frames, 3, height, width), RGB.

    Raises:
        ValueError: an unknown motion, or fewer than two frames.
    """
    if motion not in REVERSED:
        raise ValueError(f"unknown motion {motion!r}; the motions are {', '.join(MOTIONS)}")
    if num_frames < 2:
        raise ValueError(f"num_frames must be at least 2, got {num_frames}")
    pair = MOTIONS.index(motion) // 2
    times = np.linspace(0.0, 1.0, num_frames)[None]
    frames, _ = draw_scenes(_plan(np.array([pair]), times, rng, size), rng, size)
    return frames[0] if motion == PAIRS[pair][0] else frames[0, ::-1].copy()


def draw_stills(count: int, rng: np.random.Generator, *, size: tuple[int, int] = SIZE) -> Stills:
    """Single frames, each from its own clip at its own random time, with the parameters they were drawn from."""
    pairs = rng.integers(len(PAIRS), size=count)
    scenes = _plan(pairs, rng.uniform(0.0, 1.0, (count, 1)), rng, size)
    frames, masks = draw_scenes(scenes, rng, size)

    values = partial(np.ascontiguousarray, dtype=np.float32)
    angle = scenes.angle[:, 0]
    return Stills(
        images=frames[:, 0],
        place=values(scenes.place[:, 0] - scenes.camera[:, 0]),
        size=values(scenes.radius[:, 0]),
        angle=values(np.stack([np.cos(angle), np.sin(angle)], axis=-1)),
        opacity=values(scenes.opacity[:, 0]),
        covered=values(scenes.covered[:, 0]),
        lid=values(scenes.lid[:, 0] - scenes.camera[:, 0]),
        has_lid=values(scenes.has_lid),
        visible=values((scenes.opacity * (1.0 - scenes.covered))[:, 0]),
        masks=masks[:, 0],
    )


def _plan(pairs: Array, times: Array, rng: np.random.Generator, size: tuple[int, int]) -> Scenes:
    """Paths of n clips at times (n, t), each of the first motion of its pair.

    Every distribution is its own mirror image in time, but for the one parameter that the motion is about.
    """
    n = len(pairs)

    def uniform(low: float, high: float) -> Array:
        return rng.uniform(low, high, (n, 1))

    def only(name: str) -> Array:
        return (pairs == next(i for i, pair in enumerate(PAIRS) if name in pair))[:, None].astype(float)

    progress = _progress(times, rng)  # 0 to 1
    swing = progress - 0.5

    # every motion has a small amount of the others
    radius = uniform(0.15, 0.24) * np.exp(uniform(-0.1, 0.1) * swing)
    growth = only("approach") * uniform(0.8, 1.2)
    radius = radius * np.exp(growth * swing)
    # noses point up rather than down
    angle = np.deg2rad(uniform(-190, 10)) + uniform(-0.3, 0.3) * swing
    angle = angle + only("turn_clockwise") * np.deg2rad(uniform(70, 130)) * swing
    opacity = uniform(0.85, 1.0) * np.where(only("appear") > 0, progress, 1.0)

    travel = [uniform(-0.06, 0.06) - only("move_left") * uniform(0.35, 0.6)]
    travel += [uniform(-0.06, 0.06) - only("move_up") * uniform(0.35, 0.6)]
    # the middle of the path is placed so that its ends stay in the image
    middle = [uniform(-1.0, 1.0) * (0.32 - 0.4 * np.abs(step)) for step in travel]
    place = np.stack([start + step * swing for start, step in zip(middle, travel, strict=True)], axis=-1)

    # the lid comes from any side, in a straight line, and ends upon the sprite
    has_lid = only("cover")
    side = uniform(0.0, 2 * np.pi)
    largest = radius.max(axis=1, keepdims=True)
    lid_radius = largest * uniform(1.45, 1.6)
    away = (largest + lid_radius) * (1.0 - progress)
    lid = place + away[..., None] * np.stack([np.cos(side), np.sin(side)], axis=-1)
    covered = has_lid * progress

    return Scenes(
        place=place,
        radius=radius,
        angle=angle,
        opacity=opacity,
        covered=covered,
        lid=lid,
        lid_radius=lid_radius,
        lid_angle=uniform(0.0, 2 * np.pi),
        has_lid=has_lid[:, 0],
        camera=_shake(times, rng, unit=min(size)),
    )


def _progress(times: Array, rng: np.random.Generator) -> Array:
    """How far the motion has come at each time: a rest, an eased rise from 0 to 1, a rest."""
    n = len(times)
    before, after, easing = rng.uniform(0.0, 0.2, (n, 1)), rng.uniform(0.0, 0.2, (n, 1)), rng.uniform(0, 1, (n, 1))
    linear = np.clip((times - before) / (1.0 - before - after), 0.0, 1.0)
    eased = linear * linear * (3.0 - 2.0 * linear)  # the same from both ends
    return linear + easing * (eased - linear)


def _shake(times: Array, rng: np.random.Generator, *, unit: int) -> Array:
    """(n, t, 2): displacement of the camera, two slow oscillations of random phase in each direction.

    It is rounded to whole pixels, of which `unit` are a length of 1: backgrounds are cropped, not resampled.
    """
    n = len(times)
    strength = rng.uniform(0.0, SHAKE, (n, 1, 1, 1))
    rate = rng.uniform(0.5, 3.0, (n, 1, 2, 2))  # oscillations per clip
    phase = rng.uniform(0.0, 2 * np.pi, (n, 1, 2, 2))
    displacement = (strength * np.sin(2 * np.pi * rate * times[:, :, None, None] + phase)).mean(axis=-1)
    return np.rint(displacement * unit) / unit


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
    rows = (
        (f"{motion}/{_file_name(number)}", motion, "train" if number < train_clips else "test")
        for motion in MOTIONS
        for number in numbers
    )
    write_table(manifest, {"path": str, "label": str, "split": str}, rows)
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
