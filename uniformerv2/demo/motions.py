"""Procedurally drawn actions: a video data set without a download, that only the order of frames can solve.

The classes come in pairs, and every clip of the second class of a pair is a clip of the first played
backwards. So whatever one frame shows, or any number of frames without their order, it is equally
likely under both labels: a model that averages its frames is right at most half of the time.

    drawing      `draw` (one clip) and `draw_stills` (single frames with their parameters), numpy only
    files        `write_dataset`: H.264 in mp4, one folder per class, and a manifest with the split

A scene is a sprite before a cluttered background, seen by a slightly shaking camera. Lengths are in
units of the image's shorter side, times in units of the clip, angles in radians, clockwise on screen.
"""

from __future__ import annotations

import colorsys
import csv
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

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

SHAKE = 0.025  # largest displacement of the camera
CLUTTER = 4  # dull shapes in each background

# Sprites: a disc of radius 1, cut by straight lines (direction in degrees from the nose, distance from
# the middle) and by a bite (a disc taken out: place along the axis, radius; none of radius 0).
NO_BITE = (0.0, 0.0)
SHAPES: dict[str, tuple[tuple[tuple[float, float], ...], tuple[float, float]]] = {
    "disc": ((), NO_BITE),
    "half": (((180, 0.1),), NO_BITE),
    "triangle": (((62, 0.5), (-62, 0.5), (180, 0.6)), NO_BITE),
    "square": (((0, 0.75), (90, 0.75), (180, 0.75), (270, 0.75)), NO_BITE),
    "bar": (((90, 0.45), (-90, 0.45)), NO_BITE),
    "arrowhead": (((55, 0.5), (-55, 0.5)), (-1.1, 0.75)),
    "crescent": ((), (-0.6, 0.8)),
    "house": (((50, 0.6), (-50, 0.6), (90, 0.6), (-90, 0.6)), NO_BITE),
}


@dataclass(frozen=True)
class Look:
    """How a sprite looks."""

    shape: str  # a key of SHAPES
    body: Array  # (3,), RGB in [0, 1]
    nose: Array  # (3,)
    nose_from: float  # where along the axis the nose begins, in radii


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
    frames, _, _ = _draw_scenes(np.array([pair]), times, rng, size)
    return frames[0] if motion == PAIRS[pair][0] else frames[0, ::-1].copy()


def draw_stills(count: int, rng: np.random.Generator, *, size: tuple[int, int] = SIZE) -> Stills:
    """Single frames, each from its own clip at its own random time, with the parameters they were drawn from."""
    pairs = rng.integers(len(PAIRS), size=count)
    frames, scenes, masks = _draw_scenes(pairs, rng.uniform(0.0, 1.0, (count, 1)), rng, size)

    def values(array: Array) -> Array:
        return np.ascontiguousarray(array, dtype=np.float32)

    def first(array: Array) -> Array:
        return values(array[:, 0])

    return Stills(
        images=frames[:, 0],
        place=values(scenes.place[:, 0] - scenes.camera[:, 0]),
        size=first(scenes.radius),
        angle=values(np.stack([np.cos(scenes.angle[:, 0]), np.sin(scenes.angle[:, 0])], axis=-1)),
        opacity=first(scenes.opacity),
        covered=first(scenes.covered),
        lid=values(scenes.lid[:, 0] - scenes.camera[:, 0]),
        has_lid=values(scenes.has_lid),
        visible=first(scenes.opacity * (1.0 - scenes.covered)),
        masks=masks[:, 0],
    )


def write_dataset(
    folder: str | Path,
    *,
    train_clips: int,
    held_out_clips: int,
    seed: int = 0,
    num_frames: int = NUM_FRAMES,
    size: tuple[int, int] = SIZE,
    processes: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw the motions and write them as H.264 files, FOLDER/MOTION/NUMBER.mp4, and FOLDER/manifest.csv.

    Every drawn clip is written twice: forwards for one motion and, under the same number, backwards for its
    partner. Both are on the same side of the split, so an order-blind model gets at most one of them right.

    Args:
        folder: created where it is missing; files of the same name are replaced.
        train_clips, held_out_clips: clips of each motion on either side of the split.
        seed: an equal seed draws equal clips, whatever `processes` is.
        num_frames, size: frames of a clip, and (height, width) in pixels, both even.
        processes: clips drawn and encoded at once; threads would wait for each other, so small are the images.
        progress: is called with the number of files written so far, and of all.

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
        for done, _ in enumerate(pool.map(write, jobs, chunksize=8), start=1):
            if progress is not None:
                progress(2 * done, 2 * len(jobs))

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


# --------------------------------------------------------------------------------------- the motions


@dataclass(frozen=True)
class _Scenes:
    """What moves, for n clips of t frames each: (n, t) or (n, t, 2)."""

    place: Array
    radius: Array
    angle: Array
    opacity: Array
    covered: Array
    lid: Array
    lid_radius: Array  # (n, 1)
    lid_angle: Array  # (n, 1)
    has_lid: Array  # (n,)
    camera: Array


def _plan(pairs: Array, times: Array, rng: np.random.Generator) -> _Scenes:
    """Paths of n clips, each of the first motion of its pair.

    Every distribution is its own mirror image in time, but for the one parameter that the motion is about.
    """
    n = len(pairs)

    def uniform(low: float, high: float) -> Array:
        return rng.uniform(low, high, (n, 1))

    def only(name: str) -> Array:
        return (pairs == next(i for i, pair in enumerate(PAIRS) if name in pair))[:, None].astype(float)

    progress = _progress(times, rng)  # 0 to 1
    swing = progress - 0.5

    # every motion has a little of the others in it, as hands have
    radius = uniform(0.15, 0.24) * np.exp(uniform(-0.1, 0.1) * swing)
    growth = only("approach") * uniform(0.8, 1.2)
    radius = radius * np.exp(growth * swing)
    # noses point up rather than down, as things stand
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

    return _Scenes(
        place=place,
        radius=radius,
        angle=angle,
        opacity=opacity,
        covered=covered,
        lid=lid,
        lid_radius=lid_radius,
        lid_angle=uniform(0.0, 2 * np.pi),
        has_lid=has_lid[:, 0],
        camera=_shake(times, rng),
    )


def _progress(times: Array, rng: np.random.Generator) -> Array:
    """How far the motion has come at each time: a rest, an eased rise from 0 to 1, a rest."""
    n = len(times)
    before, after, easing = rng.uniform(0.0, 0.2, (n, 1)), rng.uniform(0.0, 0.2, (n, 1)), rng.uniform(0, 1, (n, 1))
    linear = np.clip((times - before) / (1.0 - before - after), 0.0, 1.0)
    eased = linear * linear * (3.0 - 2.0 * linear)  # the same from both ends
    return linear + easing * (eased - linear)


def _shake(times: Array, rng: np.random.Generator) -> Array:
    """(n, t, 2): displacement of the camera, two slow oscillations of random phase in each direction."""
    n = len(times)
    strength = rng.uniform(0.0, SHAKE, (n, 1, 1, 1))
    rate = rng.uniform(0.5, 3.0, (n, 1, 2, 2))  # oscillations per clip
    phase = rng.uniform(0.0, 2 * np.pi, (n, 1, 2, 2))
    return (strength * np.sin(2 * np.pi * rate * times[:, :, None, None] + phase)).mean(axis=-1)


# --------------------------------------------------------------------------------------- the drawing


def _draw_scenes(
    pairs: Array, times: Array, rng: np.random.Generator, size: tuple[int, int]
) -> tuple[Array, _Scenes, Array]:
    """n clips of t frames: uint8 (n, t, 3, h, w), what was drawn in them, and masks as in `Stills`."""
    (n, t), (height, width) = times.shape, size
    unit = min(height, width)  # pixels
    scenes = _plan(pairs, times, rng)
    hues = rng.uniform(0.0, 1.0, (n,))
    looks = _random_looks(rng, list(SHAPES), _colours(hues, (0.75, 1.0), (0.75, 1.0), rng))
    lid_hues = hues + rng.uniform(0.3, 0.7, n)
    lids = _random_looks(rng, ["square"], _colours(lid_hues, (0.3, 0.6), (0.35, 0.75), rng))

    # the camera moves by whole pixels: the background is cut from a larger one, not resampled
    margin = math.ceil(SHAKE * unit)
    shift = np.rint(scenes.camera * unit).astype(int)
    scenes = replace(scenes, camera=shift / unit)
    background = _backgrounds(n, rng, (height + 2 * margin, width + 2 * margin), unit)
    places, lid_places = (  # in pixels of the image
        (place - scenes.camera) * unit + (width / 2, height / 2) for place in (scenes.place, scenes.lid)
    )
    frames = np.empty((n, t, 3, height, width), np.uint8)
    masks = np.zeros((n, t, 3, height, width), np.float32)
    for clip, frame in np.ndindex(n, t):
        at = clip, frame
        left, top = shift[at] + margin
        canvas = background[clip, :, top : top + height, left : left + width].copy()
        _paint(
            canvas,
            looks[clip],
            places[at],
            scenes.radius[at] * unit,
            scenes.angle[at],
            scenes.opacity[at],
            masks[at][:2],
        )
        if scenes.has_lid[clip]:
            cover = np.zeros((2, height, width), np.float32)
            _paint(
                canvas,
                lids[clip],
                lid_places[at],
                scenes.lid_radius[clip, 0] * unit,
                scenes.lid_angle[clip, 0],
                1.0,
                cover,
            )
            masks[at][:2] *= 1.0 - cover[:1]
            masks[at][2] = cover[0]
        frames[at] = canvas * 255.0 + 0.5
    return frames, scenes, masks


def _backgrounds(count: int, rng: np.random.Generator, size: tuple[int, int], unit: int) -> Array:
    """float32 (n, 3, h, w) in [0, 1]: a dull cloud of colour, a grating over it, and dull shapes as clutter."""
    height, width = size
    colours = _colours(rng.uniform(0, 1, count), (0.05, 0.35), (0.25, 0.85), rng)
    clouds = rng.uniform(0.0, 1.0, (count, 4, 4))
    rows, columns = _linear_weights(height, 4), _linear_weights(width, 4)
    mix = (rows @ clouds @ columns.T)[:, None]

    direction, wavelength = rng.uniform(0, np.pi, (count, 1, 1)), rng.uniform(0.1, 0.4, (count, 1, 1)) * unit
    y, x = np.arange(height)[:, None], np.arange(width)
    wave = np.sin((x * np.cos(direction) + y * np.sin(direction)) * (2 * np.pi) / wavelength)
    mix = mix + (rng.uniform(0.0, 0.25, (count, 1, 1)) * wave)[:, None]

    dark, light = colours[:, 0, :, None, None], colours[:, 1, :, None, None]
    canvas = (dark + np.clip(mix, 0.0, 1.0) * (light - dark)).astype(np.float32)
    for _ in range(CLUTTER):
        clutter_colours = _colours(rng.uniform(0, 1, count), (0.05, 0.4), (0.2, 0.9), rng)
        looks = _random_looks(rng, list(SHAPES), clutter_colours)
        place = rng.uniform(0.0, 1.0, (count, 2)) * (width, height)
        radius, angle = rng.uniform(0.06, 0.2, count) * unit, rng.uniform(0, 2 * np.pi, count)
        opacity = rng.uniform(0.3, 0.8, count)
        for i in range(count):
            _paint(canvas[i], looks[i], place[i], radius[i], angle[i], opacity[i])
    return canvas


def _paint(
    canvas: Array, look: Look, centre: Array, radius: float, angle: float, opacity: float, cover: Array | None = None
) -> None:
    """Paint a sprite into an image, in place, with edges one pixel soft.

    Args:
        canvas: float32 (3, h, w) in [0, 1].
        look: what to paint.
        centre: x and y in pixels.
        radius: in pixels.
        angle: of the nose; clockwise from the right.
        opacity: in [0, 1].
        cover: float32 (2, h, w), receives how much of each pixel is now the sprite's, and its nose's.
    """
    height, width = canvas.shape[-2:]
    # all arithmetic on the square around it: outside, nothing changes
    left, top = (max(math.floor(middle - radius - 1), 0) for middle in centre)
    right = min(math.ceil(centre[0] + radius + 1), width)
    bottom = min(math.ceil(centre[1] + radius + 1), height)
    if left >= right or top >= bottom:
        return
    x = (np.arange(left, right, dtype=np.float32) + np.float32(0.5 - centre[0])) / np.float32(radius)
    y = (np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - centre[1])) / np.float32(radius)
    cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    along, across = x * cosine + y * sine, y * cosine - x * sine  # the sprite's own axes, in radii

    cuts, (bite_place, bite_radius) = SHAPES[look.shape]
    outside = np.sqrt(along * along + across * across) - 1.0  # signed distance, negative inside
    for degrees, distance in cuts:
        direction = math.radians(degrees)
        np.maximum(outside, along * math.cos(direction) + across * math.sin(direction) - distance, out=outside)
    if bite_radius > 0:
        np.maximum(outside, bite_radius - np.sqrt((along - bite_place) ** 2 + across * across), out=outside)

    paint = np.clip(0.5 - outside * np.float32(radius), 0.0, 1.0) * np.float32(opacity)
    nose = paint * np.clip(0.5 + (along - np.float32(look.nose_from)) * np.float32(radius), 0.0, 1.0)
    part = canvas[:, top:bottom, left:right]
    part *= 1.0 - paint
    part += look.body[:, None, None] * (paint - nose) + look.nose[:, None, None] * nose
    if cover is not None:
        cover[:, top:bottom, left:right] = paint, nose


def _random_looks(rng: np.random.Generator, shapes: Sequence[str], colours: Array) -> list[Look]:
    """One look for each pair of colours (n, 2, 3)."""
    chosen = rng.integers(len(shapes), size=len(colours))
    noses = rng.uniform(0.0, 0.35, len(colours))
    return [Look(shapes[i], pair[0], pair[1], nose) for i, pair, nose in zip(chosen, colours, noses, strict=True)]


def _colours(
    hues: Array, saturation: tuple[float, float], value: tuple[float, float], rng: np.random.Generator
) -> Array:
    """float32 (n, 2, 3): a dark and a light RGB colour of each hue."""
    rows = []
    for hue in hues:
        light = rng.uniform(*value)
        dark = light * rng.uniform(0.45, 0.7)
        body = colorsys.hsv_to_rgb(hue % 1.0, rng.uniform(*saturation), dark)
        nose = colorsys.hsv_to_rgb((hue + rng.uniform(-0.08, 0.08)) % 1.0, rng.uniform(*saturation), light)
        rows.append((body, nose))
    return np.array(rows, np.float32)


def _linear_weights(length: int, knots: int) -> Array:
    """(length, knots): linear interpolation between equally spaced values."""
    place = np.linspace(0, knots - 1, length)[:, None]
    return np.clip(1.0 - np.abs(place - np.arange(knots)), 0.0, 1.0)
