"""What is in a video file, found by decoding some of its frames: the evidence that `check` judges by."""

from __future__ import annotations

import warnings
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import torch
from torch.nn.functional import adaptive_avg_pool2d

from uniformerv2.data.annotations import Interval
from uniformerv2.data.content import content_sha256
from uniformerv2.errors import VideoError
from uniformerv2.video.container import open_media
from uniformerv2.video.decoding import main_stream
from uniformerv2.video.limits import Limits, is_out_of_memory, out_of_memory
from uniformerv2.video.reader import VideoReader, VideoWarning
from uniformerv2.video.views import segment_indices

if TYPE_CHECKING:
    from av import VideoStream
    from av.container import InputContainer

THUMBNAILS = 3  # of the first, middle and last frame that evaluation wants
THUMBNAIL_SIDE = 16  # pixels

_LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
_NO_DURATION = frozenset({"mpeg", "mpegts", "mpegvideo", "m4v", "h264", "hevc"})  # FFmpeg estimates that of these
_CHUNK = 12  # frames in memory at once


@dataclass(frozen=True, slots=True)
class IntervalProbe:
    """What was found in an annotated interval of a video."""

    frames: int = 0
    seconds: float = 0.0
    error: str = ""  # why it cannot be read


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found in one video."""

    error: str = ""  # why nothing can be read; then there is nothing else
    fatal: str = ""  # how it ended the process that read it; then there is nothing else
    damage: str = ""  # what the reader warned of
    sha256: str = ""  # of the content
    codec: str = ""  # "images" for a folder of them
    width: int = 0  # of an upright frame, in pixels
    height: int = 0
    frames: int = 0  # that can be decoded
    rate: float = 0.0  # frames per second
    seconds: float = 0.0  # that those frames last
    stated_seconds: float | None = None  # that the container says its video lasts; None: it does not say
    thumbnails: bytes = field(default=b"", repr=False)  # luma, (THUMBNAILS, side, side); may be missing
    intervals: tuple[IntervalProbe, ...] = ()  # those that were asked for

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"thumbnails": b64encode(self.thumbnails).decode()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Probe:
        """Raises KeyError, TypeError or ValueError where the values are not those of a probe."""
        intervals = tuple(IntervalProbe(**interval) for interval in values["intervals"])
        thumbnails = b64decode(values["thumbnails"], validate=True)
        if len(thumbnails) not in (0, THUMBNAILS * THUMBNAIL_SIDE**2):
            raise ValueError(f"thumbnails of {len(thumbnails)} bytes")
        return cls(**values | {"thumbnails": thumbnails, "intervals": intervals})


def probe_video(path: Path, intervals: Sequence[Interval], num_frames: int) -> Probe:
    """Decode the first, middle and last of the frames that evaluation would want of each interval and of the whole.

    Args:
        path: a video file or a folder of frame images.
        intervals: of the rows that name it; the file is decoded once for all of them.
        num_frames: frames of a clip.

    Returns:
        What was found. Never raises: whatever goes wrong with a file is a finding about it.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            probe = _probe(path, intervals, num_frames)
        except VideoError as error:
            return Probe(error=_without_path(error, path))
        except Exception as error:  # one strange file must not end the check of a million
            if is_out_of_memory(error):
                return Probe(error=out_of_memory())
            return Probe(error=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    damage = [_without_path(w.message, path) for w in caught if issubclass(w.category, VideoWarning)]
    return replace(probe, damage="; ".join(dict.fromkeys(damage)))


def _probe(path: Path, intervals: Sequence[Interval], num_frames: int) -> Probe:
    codec, stated = _container(path)
    with VideoReader(path, threads=1) as reader:
        found, thumbnails = _decode(reader, path, intervals, num_frames)
        return Probe(
            sha256=content_sha256(path),
            codec=codec,
            width=reader.width,
            height=reader.height,
            frames=len(reader),  # after decoding, which may have brought to light that there are fewer
            rate=reader.rate,
            seconds=reader.duration,
            stated_seconds=stated,
            thumbnails=thumbnails,
            intervals=found,
        )


def _decode(
    reader: VideoReader, path: Path, intervals: Sequence[Interval], num_frames: int
) -> tuple[tuple[IntervalProbe, ...], bytes]:
    """The intervals and the thumbnails of the whole video: all in one pass where the file is sound."""
    spans = [reader.frames_between(*interval) for interval in intervals]
    whole = _wanted(0, len(reader), num_frames)
    found = tuple(IntervalProbe(count, count / reader.rate) for _, count in spans)
    wanted = {index for first, count in spans if count for index in _wanted(first, count, num_frames)}
    try:
        return found, _thumbnails(reader, wanted | set(whole), whole)
    except VideoError:
        return tuple(_decode_alone(path, interval, num_frames) for interval in intervals), b""


def _decode_alone(path: Path, interval: Interval, num_frames: int) -> IntervalProbe:
    """An interval read as evaluation does, with a reader that has read nothing else of a damaged file."""
    try:
        with VideoReader(path, threads=1) as reader:
            first, count = reader.frames_between(*interval)
            found = IntervalProbe(count, count / reader.rate)
            _thumbnails(reader, _wanted(first, count, num_frames) if count else [], [])
    except VideoError as error:
        return IntervalProbe(error=_without_path(error, path))
    return found


def _wanted(first: int, count: int, num_frames: int) -> list[int]:
    indices = segment_indices(count, num_frames)
    return [first + index for index in (indices[0], indices[len(indices) // 2], indices[-1])]


def _thumbnails(reader: VideoReader, wanted: Iterable[int], shown: Sequence[int]) -> bytes:
    """Decode the wanted frames; of the shown ones, the mean luma of the cells as bytes of (shown, side, side)."""
    indices = sorted(wanted)
    found: dict[int, bytes] = {}
    for start in range(0, len(indices), _CHUNK):
        chunk = indices[start : start + _CHUNK]
        for index, frame in zip(chunk, reader.frames_at(chunk), strict=True):
            if index in shown:
                luma = (frame * _LUMA).sum(0)  # (height, width)
                found[index] = adaptive_avg_pool2d(luma[None], THUMBNAIL_SIDE).round().byte().numpy().tobytes()
    return b"".join(found[index] for index in shown)


def _container(path: Path) -> tuple[str, float | None]:
    """Codec and stated duration in seconds."""
    if path.is_dir():
        return "images", None
    try:
        with open_media(path, str(path), limits=Limits.from_environment()) as container:
            stream = main_stream(container, str(path))
            return stream.codec_context.name, _stated_seconds(container, stream)
    except VideoError:
        return "", None  # the reader says why


def _stated_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    if container.format.name in _NO_DURATION:
        return None
    if container.format.name == "avi" and stream.frames and stream.average_rate:
        return stream.frames / float(stream.average_rate)  # FFmpeg shortens the duration where a file breaks off
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and len(container.streams) == 1:  # with several, it may be that of the sound
        return container.duration / av.time_base
    return None


def _without_path(message: object, path: Path) -> str:
    return str(message).removeprefix(f"{path}: ")
