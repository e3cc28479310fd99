"""Frames of the decoder -> upright RGB images."""

from __future__ import annotations

from functools import cache

import numpy as np
from av import VideoFormat, VideoFrame
from av.video.reformatter import VideoReformatter

from uniformerv2.video.orientation import Orientation, orientation_of_frame


class Pictures:
    """Converts frames of one source; whatever PyAV raises passes.

    Args:
        threads: of the conversion; 0 for as many as the machine has.
    """

    def __init__(self, threads: int = 0) -> None:
        self._threads = threads
        # without these every frame would make a new one
        self._reformatters = {"rgb24": VideoReformatter(), "gbrap": VideoReformatter()}
        self._orientations: dict[int, Orientation] = {}  # by rotation: matrices that only mirror belong to whole files

    def orientation(self, frame: VideoFrame) -> Orientation:
        """How a frame is turned and mirrored."""
        if frame.rotation not in self._orientations:
            self._orientations[frame.rotation] = orientation_of_frame(frame)
        return self._orientations[frame.rotation]

    def image(
        self,
        frame: VideoFrame,
        *,
        width: int | None = None,
        height: int | None = None,
        orientation: Orientation | None = None,
    ) -> np.ndarray:
        """The upright image of a frame, over white where it is transparent.

        Args:
            width, height: that it is scaled to before it is turned; None: as it is.
            orientation: None: as the frame states it.

        Returns:
            uint8 RGB (height, width, 3).
        """
        orientation = orientation or self.orientation(frame)
        image = self._converted(frame, width, height, "rgb24")
        if _has_alpha(frame.format.name):
            # in "rgba" FFmpeg leaves the last columns unwritten at some widths
            image = _over_white(image, self._converted(frame, width, height, "gbrap")[..., 3:])
        return orientation.upright(image)

    def _converted(self, frame: VideoFrame, width: int | None, height: int | None, format: str) -> np.ndarray:
        reformatter = self._reformatters[format]
        return reformatter.reformat(frame, width, height, format=format, threads=self._threads).to_ndarray()


@cache
def _has_alpha(format: str) -> bool:
    return format == "pal8" or any(component.is_alpha for component in VideoFormat(format).components)


def _over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """RGB over white; where nothing is opaque at all, as in raw videos of 32 bits, alpha means nothing."""
    if alpha.min() == 255 or not alpha.any():
        return colours
    alpha = alpha.astype(np.uint16)
    return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
