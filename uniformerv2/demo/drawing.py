"""Sprites before cluttered backgrounds, seen by a slightly shaking camera; numpy only.

Lengths are in units of the image's shorter side, angles in radians, clockwise on screen.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

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
class Scenes:
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
    camera: Array  # whole pixels


def draw_scenes(scenes: Scenes, rng: np.random.Generator, size: tuple[int, int]) -> tuple[Array, Array]:
    """The frames of clips, uint8 (n, t, 3, h, w), and the masks of what is in them, as in `Stills`."""
    (n, t), (height, width) = scenes.radius.shape, size
    unit = min(height, width)  # pixels
    hues = rng.uniform(0.0, 1.0, (n,))
    looks = _random_looks(rng, list(SHAPES), _colours(hues, (0.75, 1.0), (0.75, 1.0), rng))
    lid_hues = hues + rng.uniform(0.3, 0.7, n)
    lids = _random_looks(rng, ["square"], _colours(lid_hues, (0.3, 0.6), (0.35, 0.75), rng))
    margin = math.ceil(SHAKE * unit)
    corners = np.rint(scenes.camera * unit).astype(int) + margin
    background = _backgrounds(n, rng, (height + 2 * margin, width + 2 * margin), unit)
    places, lid_places = (  # in pixels of the image
        (place - scenes.camera) * unit + (width / 2, height / 2) for place in (scenes.place, scenes.lid)
    )
    frames = np.empty((n, t, 3, height, width), np.uint8)
    masks = np.zeros((n, t, 3, height, width), np.float32)
    for clip, frame in np.ndindex(n, t):
        at = clip, frame
        (left, top), radius, mask = corners[at], scenes.radius[at] * unit, masks[at]
        canvas = background[clip, :, top : top + height, left : left + width].copy()
        _paint(canvas, looks[clip], places[at], radius, scenes.angle[at], scenes.opacity[at], mask[:2])
        if scenes.has_lid[clip]:
            cover = np.zeros((2, height, width), np.float32)
            radius, angle = scenes.lid_radius[clip, 0] * unit, scenes.lid_angle[clip, 0]
            _paint(canvas, lids[clip], lid_places[at], radius, angle, 1.0, cover)
            mask[:2] *= 1.0 - cover[:1]
            mask[2] = cover[0]
        frames[at] = canvas * 255.0 + 0.5
    return frames, masks


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
