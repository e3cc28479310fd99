"""The packets of a file's video, read and decoded within limits."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import av
from av import CodecContext

from uniformerv2.errors import VideoError
from uniformerv2.video.cleaning import clean_packet
from uniformerv2.video.container import FOREIGN, open_media
from uniformerv2.video.decoding import UNTIMED_RATE, main_stream
from uniformerv2.video.limits import Limits, out_of_memory

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.video.codeccontext import VideoCodecContext

    Packets = Generator[Packet[VideoStream], None, None]

# Decoders that give the same pictures of a damaged stream with any number of threads; those of H.264 and HEVC conceal
# damage in other ways in threads, but several of them may decode a group each.
_ANY_THREADS = frozenset({"vp9", "av1", "libdav1d", "rawvideo"})
_APART = frozenset({"h264", "hevc"})
# And after a flush; all others leave in a damaged picture what was in memory before.
_FLUSHED = _ANY_THREADS | {"h264"}
# what a new decoder is told of a stream; not its display matrix, which no property of PyAV has
_PARAMETERS = (
    *("width", "height", "pix_fmt", "codec_tag", "extradata", "bits_per_coded_sample"),
    *("color_range", "colorspace", "color_primaries", "color_trc"),
)
# codecs and containers of which frames can have a display matrix
_TURNED = frozenset({"h264", "hevc", "vvc", "mjpeg", "png", "apng", "webp", "mov", "matroska"})


class Undecodable(Exception):
    """What cannot be read or decoded, in words."""


@dataclass
class Reading:
    """What reading a file has shown and cost so far."""

    name: str  # of the file, for messages
    limits: Limits
    damage: str = ""  # its first sign, in words
    statistics: Counter[str] = field(default_factory=Counter)
    _packets: int = 0  # read for the present answer
    _frames: int = 0  # decoded for the present answer
    _seconds: float = 0.0  # of decoding, for the present answer
    _lock: Lock = field(default_factory=Lock)

    def note(self, sign: str) -> None:
        self.damage = self.damage or sign

    def begin(self) -> None:
        """Another answer begins."""
        self._packets, self._frames, self._seconds = 0, 0, 0.0

    def read(self, size: int) -> None:
        """A packet of so many bytes was read."""
        self._packets += 1
        if size > self.limits.chunk_bytes:
            raise self.limits.exceeded("chunk_bytes", size, self.name)
        if self._packets > self.limits.frames:
            raise self.limits.exceeded("frames", self._packets, self.name)

    def decoded(self, packets: int, frames: int, seconds: float) -> None:
        """Packets were given to a decoder, of any thread, which took so long."""
        with self._lock:
            self.statistics["packets"] += packets
            self.statistics["frames"] += frames
            self._frames += frames
            self._seconds += seconds
        if self._frames > self.limits.frames:
            raise self.limits.exceeded("frames", self._frames, self.name)
        if self._seconds > self.limits.seconds:
            raise self.limits.exceeded("seconds", self._seconds, self.name)

    def failed(self, error: Exception) -> Exception:
        """What is raised instead of an error of the library: an Undecodable, except for a lack of memory."""
        if isinstance(error, MemoryError):
            return VideoError(f"{self.name}: {out_of_memory()}")
        if isinstance(error, (av.FFmpegError, *FOREIGN)):
            return Undecodable(str(getattr(error, "strerror", None) or error))
        return error


class PacketSource:
    """A file that is open at its first packet, with a new decoder.

    Args:
        source: path of the file, or its content.
        reading: of the file.
        threads: that decode; 0: as many as the machine has.
        strict: whether damage ends decoding, where the decoder can tell; else it is concealed.

    Raises:
        VideoError: the file holds no video that can be read.
    """

    def __init__(self, source: str | Path | bytes, reading: Reading, *, threads: int, strict: bool) -> None:
        self._reading, self._threads = reading, threads
        self._container = open_media(source, reading.name, limits=reading.limits)
        self._stream = main_stream(self._container, reading.name)
        self.codec: VideoCodecContext = self._stream.codec_context
        self.is_apart = self.codec.name in _APART
        self.is_renewed = self.codec.name not in _FLUSHED
        stated = ((name, getattr(self.codec, name)) for name in _PARAMETERS if self.is_renewed)
        self._stated: dict[str, Any] = {}
        try:
            self._stated |= {name: value for name, value in stated if value is not None}
        except UnicodeDecodeError:  # so no decoder can be made anew
            reading.note("the tag of its codec is no text")
        self.may_be_turned = self.codec.name in _TURNED or not _TURNED.isdisjoint(
            self._container.format.name.split(",")
        )
        reading.statistics["opened"] += 1
        self._used = False  # whether the decoder has been given a packet
        self.tick = float(self._stream.time_base or 1)  # seconds
        self.stated_rate = float(self._stream.average_rate or self._stream.guessed_rate or UNTIMED_RATE)
        self._options = dict(self.codec.options)  # opening a decoder takes them out
        if strict and self.codec.name != "h264":  # whose decoder takes open groups for damage
            self._options["err_detect"] = "crccheck+explode"
        if strict and self.codec.name == "mpeg4":
            self._options["bug"] = "0"  # or it guesses from all that it has decoded how exact the encoder was
        self._prepare(self.codec)
        self.packets: Packets = self._demux()

    def decode(self, packets: Iterable[Packet[VideoStream]]) -> Iterator[VideoFrame]:
        """The frames of packets, whatever was decoded before. Raises Undecodable."""
        self._renew_decoder()
        for packet in packets:
            yield from self.feed(packet)
        yield from self.feed(None)

    def seek(self, tick: int) -> bool:
        """Go to a packet of this time, or to one before; False where the file does not support that."""
        self._reading.statistics["seeks"] += 1
        try:
            self._container.seek(tick, stream=self._stream)
        except (av.FFmpegError, *FOREIGN):
            return False
        self.packets.close()
        self.packets = self._demux()
        return True

    def feed(self, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        """Give the decoder a packet, or None to flush it, and take the frames that are ready.

        Raises:
            Undecodable: a damaged packet.
        """
        self._used = True
        start = time.perf_counter()
        try:
            frames = self.codec.decode(clean_packet(packet, self.codec.name) if packet else None)
        except Exception as error:
            raise self._reading.failed(error) from None
        self._reading.decoded(packet is not None, len(frames), time.perf_counter() - start)
        return frames

    def recover(self) -> None:
        """After an error, let the decoder go on, where it would not by itself."""
        if self.codec.name == "libdav1d":
            self.codec.flush_buffers()

    def close(self) -> None:
        """Give back the file, the decoder and its packets, which refer to each other."""
        self.packets.close()
        self._container.close()
        del self._stream, self.codec

    def _renew_decoder(self) -> None:
        if self._used and self.is_renewed:
            codec: Any = CodecContext.create(self.codec.codec, "r")
            for name, value in self._stated.items():
                setattr(codec, name, value)
            self._prepare(codec)
            self.codec = codec
        elif self._used:
            self.codec.flush_buffers()
        self._used = False

    def _prepare(self, codec: VideoCodecContext) -> None:
        codec.thread_type = "AUTO"
        codec.thread_count = self._threads if codec.name in _ANY_THREADS else 1
        codec.options = dict(self._options)

    def _demux(self) -> Packets:
        """Packets in the order of decoding, up to the end or to where the file cannot be read on."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except Exception as error:
                failure = self._reading.failed(error)
                if not isinstance(failure, Undecodable):
                    raise failure from None
                self._reading.note(f"reading stops early: {failure}")
                return
            if packet is None:
                return
            if packet.is_corrupt:
                self._reading.note("a packet is incomplete")
            self._reading.read(packet.size)
            if packet.size:  # an empty one would tell the decoder that the stream has ended
                yield packet
