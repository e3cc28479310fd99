"""A video file, or the content of one: it is indexed, decoded where the index says, and else from its start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import av
import numpy as np

from uniformerv2.errors import VideoError
from uniformerv2.video.container import guarded, open_media
from uniformerv2.video.decoding import ROUNDING, UNTIMED_RATE, ReadStatistics, main_stream
from uniformerv2.video.limits import Limits
from uniformerv2.video.packet_index import PacketIndex, index_packets
from uniformerv2.video.pictures import Pictures

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream

KEPT_BYTES = 8 << 20  # of packets that are kept once they are read; of a longer video they are read again

_SHORT_GAP = 16  # packets that are read over rather than sought past


class _IndexWrong(Exception):
    """Decoding contradicts the index."""


class VideoFile:
    """Upright images of whatever FFmpeg can read as a video."""

    def __init__(self, source: str | Path | bytes, name: str, threads: int, limits: Limits) -> None:
        try:
            size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        except OSError as error:
            raise VideoError(f"{name}: {error.strerror}") from None
        if size == 0:
            raise VideoError(f"{name}: the file is empty")
        self.damage = ""  # its first sign, in words
        self._statistics: Counter[str] = Counter()
        self._source = source
        self._name = name
        self._threads = threads
        self._limits = limits
        self._pictures = Pictures(threads)
        self._count: int | None = None  # frames of a full sequential decode, once counted
        self._passes = 0  # how often images were asked for
        self._seeks = True  # until a seek lands behind its target, or in the middle of a packet
        self._kept: list[Packet[VideoStream]] = []  # all packets, or none
        self._open("AUTO", threads)
        self._index = self._read_index()
        self.rate = self._average_rate()
        _, first = next(self._decode([0]))
        self._coded_size = (first.height, first.width)
        with guarded(name):
            self.size = self._pictures.orientation(first).upright_size(*self._coded_size)

    def __len__(self) -> int:
        if self._index is not None:
            return len(self._index.shown)
        if self._count is None:
            self._count = sum(1 for _ in self._decode_all())
        return self._count

    def index_at(self, seconds: float) -> int:
        if self._index is None:
            return int(seconds * self.rate + ROUNDING)
        return self._index.frame_at(self._index.start + seconds / self._tick + ROUNDING)

    def images(self, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Index and uint8 RGB image (height, width, 3) of the wanted frames.

        Where the index proves wrong midway, all images come once more, and the later ones count.
        """
        height, width = self._coded_size
        self._passes += 1
        this = self._passes
        for index, frame in self._decode(wanted):
            with guarded(self._name):
                image = self._pictures.image(frame, width=width, height=height)
            yield index, image
            if self._passes != this:  # the only decoder has moved on
                raise RuntimeError(f"{self._name}: other frames were read before these had all been read")

    @property
    def statistics(self) -> ReadStatistics:
        return ReadStatistics(**self._statistics, indexed=self._index is not None)

    def close(self) -> None:
        self._container.close()

    def _reopen(self, threading: Literal["AUTO", "SLICE"], threads: int) -> None:
        self._statistics["restarts"] += 1
        self.close()
        self._open(threading, threads)

    def _open(self, threading: Literal["AUTO", "SLICE"], threads: int) -> None:
        """Begin at the first packet, with a new decoder."""
        self._container = open_media(self._source, self._name, limits=self._limits)
        self._stream = main_stream(self._container, self._name)
        self._tick = float(self._stream.time_base or 1)  # seconds
        self._stream.thread_type = threading
        self._stream.thread_count = threads
        self._packets: Iterator[Packet[VideoStream]] = self._demux()
        self._position = 0  # of the next packet

    def _demux(self) -> Iterator[Packet[VideoStream]]:
        """Packets of the stream in decode order, up to the end or to where the file cannot be read on."""
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:  # an empty one would tell the decoder that the stream has ended
                    yield packet
        except av.FFmpegError as error:
            self.damage = self.damage or f"reading stops early: {error.strerror}"

    def _read_index(self) -> PacketIndex | None:
        """Index of the packets, all of which are read; they are kept where they are few."""
        kept, space = [], KEPT_BYTES

        def noted() -> Iterator[Packet[VideoStream]]:
            nonlocal space
            for packet in self._packets:
                space -= packet.size
                kept.append(packet)
                if space < 0:
                    kept.clear()
                if packet.is_corrupt:
                    self.damage = self.damage or f"packet {self._position} is incomplete"
                self._position += 1
                yield packet

        codec = self._stream.codec_context
        timed = not (self._container.format.name == "avi" and codec.has_b_frames)  # AVI has no presentation times
        index = index_packets(noted(), codec, timed=timed)
        if self.damage or index is None:
            return None
        self._kept = kept if space >= 0 else []
        return index

    def _average_rate(self) -> float:
        """Frames per second by the times of the frames, else as the file states it."""
        if self._index is not None and self._index.spread > 0:
            return (len(self._index.shown) - 1) / (self._index.spread * self._tick)
        return float(self._stream.average_rate or self._stream.guessed_rate or UNTIMED_RATE)

    def _decode(self, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Index and frame of the wanted frames; all of them once more where the index proves wrong."""
        if self._index is not None:
            try:
                yield from self._decode_spans(self._index, wanted)
                return
            except (_IndexWrong, av.FFmpegError):
                self._index = None
        missing = set(wanted)
        count = 0
        for frame in self._decode_all():
            if count in missing:
                missing.remove(count)
                yield count, frame
            if not missing:
                return
            count += 1
        self._count = count
        cause = f" ({self.damage})" if self.damage else ""
        raise VideoError(f"{self._name}: frame {min(missing)} cannot be decoded, only {count} frames can{cause}")

    def _decode_all(self) -> Iterator[VideoFrame]:
        """Every frame that decoding from the start gives, stepping over what cannot be decoded."""
        # how lost parts are concealed depends on the threads; these are the defaults of PyAV, on any machine
        self._reopen("SLICE", 2)
        for position, packet in enumerate(chain(self._packets, [None])):  # None: flush
            try:
                frames = self._feed(packet)
            except av.FFmpegError as error:
                self.damage = self.damage or f"packet {position} cannot be decoded: {error.strerror}"
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self.damage = self.damage or f"packet {position} is damaged"
                yield frame

    def _decode_spans(self, index: PacketIndex, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decode no more than the wanted frames need, and check it against the index."""
        wanted_at = {index.shown[i]: i for i in wanted}  # frame index by position
        for first, last in index.spans(wanted):
            needed = index.needed(first, last, wanted_at)
            due = sorted(set(needed) - index.hidden, key=index.times.__getitem__)
            for position, frame in zip_longest(due, self._decode_packets(index, needed)):
                if position is None or frame is None or frame.pts != index.times[position] or frame.is_corrupt:
                    raise _IndexWrong
                if position == first and not frame.key_frame:
                    raise _IndexWrong
                if position in wanted_at:
                    yield wanted_at[position], frame

    def _decode_packets(self, index: PacketIndex, positions: Sequence[int]) -> Iterator[VideoFrame]:
        """The frames of packets at rising positions, decoded from the first of them on."""
        self._go_to(index, positions[0])
        self._stream.codec_context.flush_buffers()
        for position in positions:
            while self._position < position:
                self._next_packet(index)
            yield from self._feed(self._next_packet(index))
        yield from self._feed(None)

    def _feed(self, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        """Give the decoder a packet, or None to flush it, and take the frames that are ready."""
        frames = self._stream.codec_context.decode(packet)
        self._statistics["packets"] += packet is not None
        self._statistics["frames"] += len(frames)
        return frames

    def _next_packet(self, index: PacketIndex) -> Packet[VideoStream]:
        if self._kept:
            self._position += 1
            return self._kept[self._position - 1]
        packet = next(self._packets, None)
        if packet is None or index.position_of(packet) != self._position:
            raise _IndexWrong
        self._position += 1
        return packet

    def _go_to(self, index: PacketIndex, position: int) -> None:
        """Move to the packet at a position: by reading on, by a seek, or from the start."""
        if self._kept:
            self._position = position
            return
        is_near = 0 <= position - self._position <= _SHORT_GAP
        if self._seeks and not is_near:
            self._seeks = self._seek(index, position)
        if self._position > position:
            self._reopen("AUTO", self._threads)
        while self._position < position:
            self._next_packet(index)

    def _seek(self, index: PacketIndex, position: int) -> bool:
        """Seek to the packet at a position or one before it; False where the file does not support that."""
        self._statistics["seeks"] += 1
        self._position = len(index.times)  # until found
        try:
            self._container.seek(index.times[position], stream=self._stream)
        except av.FFmpegError:
            return False
        packets = self._demux()
        landing = next(packets, None)
        if landing is None or not 0 <= index.position_of(landing) <= position:
            return False
        self._packets = chain([landing], packets)
        self._position = index.position_of(landing)
        return True
