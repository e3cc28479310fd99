"""A folder with one image per frame."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from uniformerv2.errors import VideoError
from uniformerv2.video.decoding import ROUNDING, UNTIMED_RATE, ReadStatistics, main_stream, upright
from uniformerv2.video.suffixes import IMAGE_SUFFIXES


class FrameFolder:
    """Upright images of a folder with one image per frame."""

    damage = ""
    rate = UNTIMED_RATE

    def __init__(self, folder: Path, threads: int) -> None:
        images = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
        if not images:
            raise VideoError(f"{folder}: a folder without frame images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        self._paths = sorted(images, key=_natural_order)
        self._threads = threads
        self._images_read = 0
        self.size = self._read(self._paths[0]).shape[:2]

    def __len__(self) -> int:
        return len(self._paths)

    def index_at(self, seconds: float) -> int:
        return int(seconds * self.rate + ROUNDING)

    def images(self, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Index and uint8 RGB image (height, width, 3) of the wanted frames."""
        for index in wanted:
            image = self._read(self._paths[index])
            if image.shape[:2] != self.size:
                (h, w), (height, width) = image.shape[:2], self.size
                raise VideoError(
                    f"{self._paths[index]}: {w}x{h} pixels, but {self._paths[0].name} has {width}x{height}"
                )
            yield index, image

    @property
    def statistics(self) -> ReadStatistics:
        return ReadStatistics(frames=self._images_read)

    def close(self) -> None:
        pass

    def _read(self, path: Path) -> np.ndarray:
        self._images_read += 1
        try:
            # by content: a name with a percent sign would be taken for a pattern
            with av.open(io.BytesIO(path.read_bytes())) as container:
                frame = next(container.decode(main_stream(container, str(path))))
                return upright(frame.to_ndarray(format="rgb24", threads=self._threads), frame)
        except (av.FFmpegError, OSError, StopIteration) as error:
            raise VideoError(f"{path}: cannot be read as an image ({error})") from None


def _natural_order(path: Path) -> list[Any]:
    """Sort key that compares runs of digits by their value."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
