"""A drawn set whose classes are told by appearance: the texture behind, whatever moves before it, in either direction.

The mirror image of `uniformerv2.demo.motions`: there only motion tells the class, here motion is noise. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from uniformerv2.data.tables import write_table
from uniformerv2.demo.motions import write_video
from uniformerv2.machine import available_cores
from uniformerv2.progress import track

Array = np.ndarray[Any, np.dtype[Any]]

# a texture's brightness in [-1, 1] at (u, v), in wavelengths
TEXTURES: dict[str, Callable[[Array, Array], Array]] = {
    "rows": lambda u, v: np.sin(2 * np.pi * v) + 0 * u,
    "columns": lambda u, v: np.sin(2 * np.pi * u) + 0 * v,
    "slope_up": lambda u, v: np.sin(2 * np.pi * (u + v) / np.sqrt(2)),
    "slope_down": lambda u, v: np.sin(2 * np.pi * (u - v) / np.sqrt(2)),
    "checks": lambda u, v: np.sign(np.sin(np.pi * u) * np.sin(np.pi * v)),
    "dots": lambda u, v: np.where((u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.08, 1.0, -1.0),
    "grid": lambda u, v: np.where((u % 1 < 0.2) | (v % 1 < 0.2), 1.0, -1.0),
    "rings": lambda u, v: np.sin(2 * np.pi * np.hypot(u, v)),
}
NUM_FRAMES = 33  # as the motions: the sampling of the test is its own mirror image
SIDE = 64  # pixels
DISCS = 3  # that move across and cover the texture


def draw_scene(texture: str, rng: np.random.Generator) -> Array:
    """uint8 (frames, 3, side, side): a faint, noisy texture that drifts, with discs moving before it.

    Wavelength, phase, colours, contrast, drift and discs are random and the same for all textures; every path is as
    likely in the opposite direction.
    """
    time = np.linspace(-0.5, 0.5, NUM_FRAMES)[:, None, None]
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE - 0.5
    wavelength, phase, drift = rng.uniform(0.15, 0.35), rng.uniform(0, 1, 2), rng.uniform(-0.15, 0.15, 2)
    u, v = ((axis + step * time) / wavelength for axis, step in zip((x, y), drift, strict=True))
    # rings have a centre: it wanders inside of the picture
    offset = rng.uniform(-0.3, 0.3, 2) / wavelength if texture == "rings" else phase
    brightness = TEXTURES[texture](u + offset[0], v + offset[1])  # (frames, side, side)
    middle, contrast = rng.uniform(0.2, 0.8, (3, 1, 1)), rng.uniform(0.12, 0.3) * rng.choice([-1, 1])
    frames = middle + contrast * brightness[:, None] + rng.normal(0, 0.05, (NUM_FRAMES, 3, SIDE, SIDE))
    for _ in range(DISCS):
        centre, speed = rng.uniform(-0.4, 0.4, 2), rng.uniform(-0.8, 0.8, 2)
        distance = np.hypot(x - centre[0] - speed[0] * time, y - centre[1] - speed[1] * time)
        cover = np.clip((rng.uniform(0.08, 0.2) - distance) * SIDE, 0, 1)[:, None]
        frames = frames * (1 - cover) + rng.uniform(0, 1, (3, 1, 1)) * cover
    return (np.clip(frames, 0, 1) * 255 + 0.5).astype(np.uint8)


def write_scenes(folder: Path, *, train_clips: int, held_out_clips: int, progress: bool = False) -> Path:
    """Draw so many clips of each texture into FOLDER/TEXTURE/NUMBER.mp4; returns the manifest: path, label, split."""
    clips = [(texture, number) for texture in TEXTURES for number in range(train_clips + held_out_clips)]
    for texture in TEXTURES:
        (folder / texture).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(available_cores()) as pool:
        drawn = pool.map(partial(_write_clip, folder), clips, chunksize=8)
        for _ in track(drawn, "scenes", total=len(clips), progress=progress):
            pass
    rows = ((f"{texture}/{n:05d}.mp4", texture, "train" if n < train_clips else "test") for texture, n in clips)
    write_table(folder / "manifest.csv", {"path": str, "label": str, "split": str}, rows)
    return folder / "manifest.csv"


def _write_clip(folder: Path, clip: tuple[str, int]) -> None:
    texture, number = clip
    rng = np.random.default_rng((list(TEXTURES).index(texture), number))
    write_video(folder / texture / f"{number:05d}.mp4", draw_scene(texture, rng))
