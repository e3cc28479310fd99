"""Live frames: from a camera, an address, a file that plays at its own pace, or pushed by the caller.

The source and the consumer of frames run concurrently, with a short queue between them. When the queue is full, its
oldest frame is dropped, so that memory is bounded and the consumer never lags behind.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EIO
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import av
import torch
from torch import Tensor

from uniformerv2.errors import VideoError
from uniformerv2.video.cleaning import clean_packet
from uniformerv2.video.container import guarded, open_address, open_media
from uniformerv2.video.decoding import ROUNDING, UNTIMED_RATE, main_stream
from uniformerv2.video.limits import Limits
from uniformerv2.video.pictures import Pictures
from uniformerv2.video.transforms import check_frames

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer

CAMERA = "camera"  # the source "camera" is the first one, "camera:1" the second

_FILE = "file:"
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
_IN_PIECES = frozenset({"hls", "dash"})  # formats in which live sources, too, send several seconds at once
_MOST_DAMAGED = 500  # packets in a row: some 20 seconds, as a decoder may have to wait for a key frame
_LONGEST_GAP = 10.0  # seconds between frames; more is a jump of the source's clock, not a pause
_JOIN_SECONDS = 1.0  # that a closed reader is waited for; a read that hangs ends by its own timeout


@dataclass(frozen=True)
class LiveFrame:
    """One frame of a live source."""

    image: Tensor  # uint8 (3, height, width), RGB
    number: int  # of the frames that were pushed, from 0
    time: float  # seconds since the first frame
    arrival: float  # when it was pushed, by the queue's clock


class LiveFrames:
    """A short queue of frames between a source and a consumer; safe between threads.

    Args:
        name: of the source, for messages.
        queue_size: frames that may wait; when another comes, the oldest is dropped.
        clock: gives seconds.

    Attributes:
        dropped: frames so far that were never taken.
        damaged: packets of the source so far that could not be decoded, or only in part.
        ending: why there are no more frames, if not because the source has ended.
    """

    def __init__(
        self, *, name: str = "pushed frames", queue_size: int = 2, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if queue_size < 1:
            raise ValueError(f"queue_size must be at least 1, got {queue_size}")
        self.name = name
        self.clock = clock
        self.dropped = self.damaged = 0
        self.ending = ""
        self._waiting = deque[LiveFrame](maxlen=queue_size)
        self._pushed = 0
        self._start: float | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def push(self, image: Tensor, *, time: float | None = None) -> None:
        """Add a frame.

        Args:
            image: uint8 (3, height, width), RGB; of any size, which may change. It is not copied.
            time: seconds, by whatever clock; None: now.

        Raises:
            ValueError: an image of another shape or dtype.
        """
        check_frames(image[None])
        arrival = self.clock()
        time = arrival if time is None else time
        with self._changed:
            self._start = time if self._start is None else self._start
            self.dropped += len(self._waiting) == self._waiting.maxlen
            self._waiting.append(LiveFrame(image, self._pushed, time - self._start, arrival))
            self._pushed += 1
            self._changed.notify()

    def end(self, *, error: BaseException | None = None) -> None:
        """No more frames come: those that wait can be taken, and then the error is raised if there is one."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()

    def take(self, *, timeout_seconds: float | None = None) -> LiveFrame | None:
        """The next frame; None after the last.

        Args:
            timeout_seconds: how long to wait for it; None: for ever.

        Raises:
            VideoError: no frame came in time, or the source failed.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting or self._ended, timeout_seconds):
                damaged = f"; {self.damaged} packets could not be decoded" if self.damaged else ""
                raise VideoError(f"{self.name}: no frame for {timeout_seconds:g} s{damaged}")
            if self._waiting:
                return self._waiting.popleft()
            if self._error is not None:
                raise self._error
            return None


@dataclass(frozen=True)
class Address:
    """How FFmpeg opens a source."""

    name: str  # for messages, without passwords
    url: str
    format: str | None = None  # None: by its content
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, source: str | Path | int) -> Address:
        """A camera ("camera", "camera:1", or a number), a network address (rtsp://, http://, ...) or a file."""
        text = str(source)
        device, _, which = text.partition(":")
        if isinstance(source, int) or device == CAMERA:
            return cls._camera(text if isinstance(source, int) else which or "0")
        if "://" in text:
            parts = urlsplit(text)
            name = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
            # over UDP, cameras lose packets and whole key frames with them
            return cls(name, text, options={"rtsp_transport": "tcp"} if parts.scheme.startswith("rtsp") else {})
        if Path(text).is_char_device():
            return cls(text, text, _CAMERAS["linux"][0])
        return cls(text, f"{_FILE}{text}")  # the prefix keeps a name with a colon from being taken for an address

    @classmethod
    def _camera(cls, which: str) -> Address:
        if sys.platform not in _CAMERAS:
            raise VideoError(f"{CAMERA} {which}: no cameras on {sys.platform}; give an address or a file")
        form, device = _CAMERAS[sys.platform]
        return cls(f"{CAMERA} {which}", device.format(which), form)


class Pace:
    """Holds frames back until they are due, so that a recording plays as fast as it was made.

    Args:
        clock: gives seconds.
        wait: waits for so many seconds.
    """

    def __init__(self, clock: Callable[[], float], wait: Callable[[float], object]) -> None:
        self._clock, self._wait = clock, wait
        self._last: float | None = None
        self._origin = 0.0  # on the clock, of the recording's time 0

    def hold(self, time: float) -> None:
        """Wait until a frame is due; `time` in seconds of the recording."""
        if self._last is None or not 0 <= time - self._last <= _LONGEST_GAP:  # the first, or the times have jumped
            self._origin = self._clock() - time
        self._last = time
        ahead = self._origin + time - self._clock()
        if ahead > 0:
            self._wait(ahead)


@contextmanager
def live_frames(
    source: str | Path | int,
    *,
    frames_per_second: float | None = None,
    timeout_seconds: float | None = None,
    queue_size: int = 2,
) -> Iterator[LiveFrames]:
    """Read a source in a thread for as long as the context lasts.

    Args:
        source: see `Address.of`.
        frames_per_second: how many are wanted; None: all.
        timeout_seconds: how long opening, and each read, may take; None: for ever.
        queue_size: as of `LiveFrames`.
    """
    address = Address.of(source)
    frames, stop = LiveFrames(name=address.name, queue_size=queue_size), threading.Event()

    def work() -> None:
        try:
            pace = Pace(frames.clock, stop.wait)
            read(address, frames, frames_per_second, timeout_seconds, pace=pace, stopped=stop.is_set)
        except BaseException as error:  # raised where the frames are taken
            frames.end(error=error)
        else:
            frames.end()

    reader = threading.Thread(target=work, name=address.name, daemon=True)
    reader.start()
    try:
        yield frames
    finally:
        stop.set()
        reader.join(_JOIN_SECONDS)


def read(
    address: Address,
    frames: LiveFrames,
    frames_per_second: float | None,
    timeout: float | None,
    *,
    pace: Pace,
    stopped: Callable[[], bool],
) -> None:
    """Push what a source gives, to its end or until `stopped`.

    Recordings (files, and addresses of a known length) and formats that are sent in pieces of seconds are held back to
    their own pace. Frames of other sources have the time of their arrival, as few sources state a true one.

    Raises:
        VideoError: it cannot be opened or read, or nearly nothing of it can be decoded.
    """
    with _open(address, timeout) as container:
        stream = main_stream(container, address.name)
        stream.thread_type = "SLICE"  # threads for frames would hold back as many frames
        recorded = address.url.startswith(_FILE) or container.duration is not None
        paced = recorded or container.format.name in _IN_PIECES
        wanted, pictures, last = _Slots(frames_per_second), Pictures(), 0.0
        for frame in _decoded(address, container, stream, frames, timeout):
            if stopped():
                return
            last = _time(frame, stream, last)
            if paced:
                pace.hold(last)
            now = last if paced else frames.clock()
            if wanted(now):
                with guarded(address.name):
                    image = pictures.image(frame)
                frames.push(torch.from_numpy(image).permute(2, 0, 1), time=now)


def _time(frame: VideoFrame, stream: VideoStream, last: float) -> float:
    """Seconds by the source; where it states none, one frame after `last`."""
    if frame.pts is None or not stream.time_base:
        return last + 1 / float(stream.average_rate or UNTIMED_RATE)
    return float(frame.pts * stream.time_base)  # frame.time is NaN for what a decoder gives at the end


class _Slots:
    """Whether a frame is wanted: the first in each slot of 1 / rate seconds is."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._slot: int | None = None
        self._start = 0.0

    def __call__(self, time: float) -> bool:
        if self._rate is None:
            return True
        if self._slot is None:
            self._start = time
        slot = int((time - self._start) * self._rate + ROUNDING)
        wanted, self._slot = slot != self._slot, slot
        return wanted


def _open(address: Address, timeout: float | None) -> InputContainer:
    name, url = address.name, address.url
    if url.startswith(_FILE):
        return open_media(url.removeprefix(_FILE), name, limits=Limits.from_environment(), timeout=timeout)
    return open_address(url, name, format=address.format, options=address.options, timeout=timeout)


def _decoded(
    address: Address, container: InputContainer, stream: VideoStream, frames: LiveFrames, timeout: float | None
) -> Iterator[VideoFrame]:
    """Every frame, stepping over what cannot be read or decoded and counting it."""
    packets, in_a_row, codec = container.demux(stream), 0, stream.codec_context
    while in_a_row < _MOST_DAMAGED:
        try:
            packet = _next_packet(packets, address, frames, timeout)
            decoded = codec.decode(clean_packet(packet, codec.name) if packet else None)
        except av.FFmpegError:
            frames.damaged += 1
            in_a_row += 1
            packets = container.demux(stream)  # an error ends the former iterator
            continue
        for frame in decoded:
            in_a_row = 0
            frames.damaged += frame.is_corrupt
            yield frame
        if packet is None:
            return
    raise VideoError(f"{address.name}: {in_a_row} packets in a row cannot be decoded")


def _next_packet(
    packets: Iterator[Packet[VideoStream]], address: Address, frames: LiveFrames, timeout: float | None
) -> Packet[VideoStream] | None:
    """The next packet, None at the end. Lets an InvalidDataError pass: it concerns this packet alone."""
    start = time.monotonic()
    try:
        packet = next((packet for packet in packets if packet.size), None)  # an empty one would end the decoding
    except av.InvalidDataError:
        raise
    except av.ExitError:
        raise _stalled(address, timeout) from None
    except av.FFmpegError as error:
        if error.errno != EIO:
            raise VideoError(f"{address.name}: cannot be read on ({error.strerror})") from None
        # FFmpeg's error where a server has closed the connection without having stated a length
        frames.ending = f"reading stopped: {error.strerror}"
        return None
    if packet is None and timeout is not None and time.monotonic() - start >= timeout:
        raise _stalled(address, timeout)  # HLS reports a read that timed out as the end
    return packet


def _stalled(address: Address, timeout: float | None) -> VideoError:
    return VideoError(f"{address.name}: no frame for {timeout:g} s")
