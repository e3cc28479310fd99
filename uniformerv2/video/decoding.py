"""Shared by the readers of files, of folders and of live sources: the stream that is shown, what reading costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from av.stream import Disposition

from uniformerv2.errors import VideoError
from uniformerv2.video.container import guarded

if TYPE_CHECKING:
    from av import VideoStream
    from av.container import InputContainer

UNTIMED_RATE = 25.0  # frames/s where nothing states it, as in a folder of images
ROUNDING = 1e-6  # of a tick or frame: an inexact number of seconds must not point at the frame before

_PICTURE_BRANDS = frozenset({"avif", "avis", "heic", "heix", "hevc", "hevx", "mif1", "msf1"})  # ISO/IEC 23008-12
_MATROSKA_KEY = "enc_key_id"  # FFmpeg's name for the ContentEncKeyID of a stream


@dataclass(frozen=True)
class ReadStatistics:
    """The cost of reading a video so far, its opening included."""

    packets: int = 0  # given to the decoder
    frames: int = 0  # decoded, among them those that only others refer to
    seeks: int = 0
    opened: int = 0  # times that a file was opened: anew to be read from its start, or by more threads
    indexed: bool = True  # whether frames are found by the packets; else by decoding the file from its start


def main_stream(container: InputContainer, name: str) -> VideoStream:
    """The video stream that a player would show.

    Raises:
        VideoError: there is none; then the container is closed.
    """
    try:
        with guarded(name):
            return _main_stream(container, name)
    except VideoError:
        container.close()
        raise


def _main_stream(container: InputContainer, name: str) -> VideoStream:
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams or container.format.name == "tty":  # FFmpeg draws text files as a terminal would
        raise VideoError(f"{name}: no video in this file")
    is_picture = container.metadata.get("major_brand", "") in _PICTURE_BRANDS
    if any(stream.disposition & Disposition.dependent for stream in streams if is_picture or len(streams) == 1):
        raise VideoError(f"{name}: a picture in tiles, which are not put together; convert it to JPEG or PNG")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if is_picture:  # beside an animation there may be a picture of one frame, and alpha behind the colours
        stream = max(streams, key=lambda stream: stream.frames)
    if stream.codec_context is None:
        raise VideoError(f"{name}: no decoder for this kind of video")
    if _MATROSKA_KEY in stream.metadata:
        raise VideoError(f"{name}: the video is encrypted")
    return stream
