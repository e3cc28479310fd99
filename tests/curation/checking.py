"""Videos to be checked, and what a check of them found."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from helpers import write_video
from uniformerv2.curation.check import CheckReport, check_manifest


def scene(seed: int, num_frames: int = 12) -> list[np.ndarray]:
    """A square that moves over a pattern; both depend on the seed."""
    noise = np.random.default_rng(seed)
    background = noise.integers(40, 160, (6, 6, 1), dtype=np.uint8).repeat(16, 0).repeat(16, 1).repeat(3, 2)
    row, speed = noise.integers(0, 72), noise.uniform(2, 6)
    images = []
    for index in range(num_frames):
        image = background.copy()
        column = int(speed * index) % 72
        image[row : row + 24, column : column + 24] = 220
        images.append(image)
    return images


def draw(path: Path, frames: Iterable[np.ndarray], *, codec: str = "mpeg4", side: int = 96, rate: int = 10) -> Path:
    """A video whose index comes first, as in files made for the web."""
    muxer = {"movflags": "+faststart"} if path.suffix in (".mp4", ".mov") else {}
    pixels = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
    return write_video(path, frames, codec=codec, rate=rate, pixels=pixels, muxer=muxer, size=(side, side))


def draw_half(folder: Path, suffix: str = "avi", codec: str = "mjpeg") -> str:
    """A whole video of 60 frames, and one beside it that breaks off; the name of the latter."""
    content = draw(folder / f"whole.{suffix}", scene(8, 60), codec=codec).read_bytes()
    (folder / f"half.{suffix}").write_bytes(content[: len(content) * 6 // 10])
    return f"half.{suffix}"


def write(manifest: Path, columns: str, *rows: Sequence[object]) -> Path:
    with manifest.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns.split(","), *rows])
    return manifest


def check(manifest: Path, **options: Any) -> CheckReport:
    output, table = manifest.with_name("clean.csv"), manifest.with_name("table.csv")
    return check_manifest(manifest, output, findings=table, **{"workers": 0, **options})


def check_rows(folder: Path, columns: str, *rows: Sequence[object], **options: Any) -> CheckReport:
    return check(write(folder / "all.csv", columns, *rows), **options)


def kinds(result: CheckReport) -> dict[int, list[str]]:
    """Findings by line."""
    found: dict[int, list[str]] = {}
    for finding in result.findings:
        found.setdefault(result.rows[finding.row].line, []).append(finding.kind)
    return found


def outputs(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "clean.csv").read_bytes(), (folder / "table.csv").read_bytes()


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def clean_paths(folder: Path) -> list[str]:
    with (folder / "clean.csv").open(newline="", encoding="utf-8") as file:
        return [row["path"] for row in csv.DictReader(file)]
