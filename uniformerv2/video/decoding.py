"""Shared by the readers of files, of folders and of live sources: the stream that is shown, upright images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from av.stream import Disposition

from uniformerv2.errors import VideoError

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer

UNTIMED_RATE = 25.0  # frames/s where nothing states it, as in a folder of images
ROUNDING = 1e-6  # of a tick or frame: an inexact number of seconds must not point at the frame before


@dataclass(frozen=True)
class ReadStatistics:
    """The cost of reading a video so far, its opening included."""

    packets: int = 0  # given to the decoder
    frames: int = 0  # decoded, among them those that only others refer to
    seeks: int = 0
    restarts: int = 0  # times that the file was opened anew, to be read from its start
    indexed: bool = True  # whether frames are found by the packets; else by decoding the file from its start


def main_stream(container: InputContainer, name: str) -> VideoStream:
    """The video stream that a player would show."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams or container.format.name == "tty":  # FFmpeg draws text files as a terminal would
        raise VideoError(f"{name}: no video in this file")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise VideoError(f"{name}: no decoder for this kind of video")
    return stream


def upright(image: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Turn and mirror an image (height, width, channels) as the display matrix of its frame asks for."""
    side_data: Any = frame.side_data
    matrix = side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    # x' = a·x + c·y and y' = b·x + d·y, to the nearest quarter turn
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])  # torch takes no negative stride
