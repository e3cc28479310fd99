"""A video file, or the content of one: it is indexed, decoded where the index says, and else from its start."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from itertools import accumulate, chain, pairwise, zip_longest
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from uniformerv2.errors import VideoError
from uniformerv2.video.decoding import ROUNDING, UNTIMED_RATE, ReadStatistics, main_stream, upright
from uniformerv2.video.packet_index import PacketIndex, index_packets

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream

KEPT_BYTES = 8 << 20  # of packets that are kept once they are read; of a longer video they are read again

_SHORT_GAP = 16  # packets that are read over rather than sought past


# of which threads conceal damage in other ways, and do not always tell of it
_ONE_THREAD = frozenset({"h264"})


class _IndexWrong(Exception):
    """Decoding contradicts the index."""


class VideoFile:
    """Upright images of whatever FFmpeg can read as a video."""

    def __init__(self, source: str | Path | bytes, name: str, threads: int) -> None:
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
        self._times: list[float] | None = None  # of the frames that decoding from the start gives, once it was done
        self._passes = 0  # how often images were asked for
        self._seeks = True  # until a seek lands behind its target, or in the middle of a packet
        self._kept: list[Packet[VideoStream]] = []  # all packets, or none
        self._open(threads)
        self._stated_rate = float(self._stream.average_rate or self._stream.guessed_rate or UNTIMED_RATE)
        self._index = self._read_index()
        self._by_index = self._index is not None
        _, first = next(self._decode([0]))
        self._coded_size = (first.width, first.height)
        self.size = upright(np.empty((first.height, first.width, 0)), first).shape[:2]

    def __len__(self) -> int:
        return len(self._frame_times()) if self._index is None else len(self._index.shown)

    @property
    def rate(self) -> float:
        """Frames per second by the times of the frames, else as the file states it."""
        spread = self._frame_times()[-1] if self._index is None else self._index.spread * self._tick
        return (len(self) - 1) / spread if spread > 0 else self._stated_rate

    def index_at(self, seconds: float) -> int:
        if self._index is None:
            return bisect_right(self._frame_times(), seconds + ROUNDING * self._tick) - 1
        return self._index.frame_at(self._index.start + seconds / self._tick + ROUNDING)

    def images(self, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Index and uint8 RGB image (height, width, 3) of the wanted frames.

        Where the index proves wrong midway, all images come once more, and the later ones count.
        """
        width, height = self._coded_size
        converter = VideoReformatter()  # without it every frame would make a new one
        self._passes += 1
        this = self._passes
        for index, frame in self._decode(wanted):
            image = converter.reformat(frame, format="rgb24", width=width, height=height, threads=self._threads)
            yield index, upright(image.to_ndarray(), frame)
            if self._passes != this:  # the only decoder has moved on
                raise RuntimeError(f"{self._name}: other frames were read before these had all been read")

    @property
    def statistics(self) -> ReadStatistics:
        return ReadStatistics(**self._statistics, indexed=self._by_index)

    def close(self) -> None:
        """Give back the file, the decoder and all packets, which stand in cycles of references."""
        self._packets.close()
        self._kept = []
        self._container.close()
        del self._stream

    def _reopen(self, threads: int, *, explode: bool = True) -> None:
        self._statistics["restarts"] += 1
        self.close()
        self._open(threads, explode=explode)

    def _open(self, threads: int, *, explode: bool = True) -> None:
        """Begin at the first packet, with a new decoder."""
        # the prefix keeps a name with a colon from being taken for an address
        source = io.BytesIO(self._source) if isinstance(self._source, bytes) else f"file:{self._source}"
        try:
            self._container = av.open(source, "r")
        except av.FFmpegError as error:
            raise VideoError(f"{self._name}: cannot be read as a video ({error.strerror})") from None
        self._stream = main_stream(self._container, self._name)
        self._tick = float(self._stream.time_base or 1)  # seconds
        self._stream.thread_type = "AUTO"
        self._stream.thread_count = 1 if self._stream.codec_context.name in _ONE_THREAD else threads
        self._stream.codec_context.options = {"err_detect": "explode"} if explode else {}
        self._packets = self._demux()
        self._position = 0  # of the next packet

    def _demux(self) -> Generator[Packet[VideoStream], None, None]:
        """Packets of the stream in decode order, up to the end or to where the file cannot be read on."""
        try:
            for packet in self._container.demux(self._stream):
                if packet.is_corrupt:
                    self._note("a packet is incomplete")
                if packet.size:  # an empty one would tell the decoder that the stream has ended
                    yield packet
        except av.FFmpegError as error:
            self._note(f"reading stops early: {error.strerror}")

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
                self._position += 1
                yield packet

        index = index_packets(noted(), self._stream.codec_context)
        if self.damage or index is None:
            return None
        self._kept = kept if space >= 0 else []
        return index

    def _frame_times(self) -> list[float]:
        """Seconds from the first frame to each that decoding from the start gives; at least one frame."""
        if self._times is None:
            stamps = [frame.pts for frame in self._decode_all()]
            steps = [0 if a is None or b is None else (b - a) * self._tick for a, b in pairwise(stamps)]
            # a clock that stands still or goes back, as where one recording follows another, does not tell a step
            usual = median([step for step in steps if step > 0] or [1 / self._stated_rate])
            self._times = list(accumulate((step if step > 0 else usual for step in steps), initial=0.0))
        return self._times

    def _decode(self, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Index and frame of the wanted frames; all of them once more where the index proves wrong."""
        if self._index is not None and self._by_index:
            try:
                yield from self._decode_spans(self._index, wanted)
                return
            except (_IndexWrong, av.FFmpegError):
                self._by_index = False
        missing = set(wanted)
        for number, frame in enumerate(self._decode_all()) if self._index is None else self._decode_timed(self._index):
            if number in missing:
                missing.remove(number)
                yield number, frame
            if not missing:
                return
        cause = f" ({self.damage})" if self.damage else ""
        raise VideoError(f"{self._name}: frame {min(missing)} cannot be decoded, nor any after it{cause}")

    def _decode_timed(self, index: PacketIndex) -> Iterator[tuple[int, VideoFrame]]:
        """The frames of the index, to the last that can be decoded; of one that cannot, what is shown before it."""
        expected, before = 0, None
        for frame in self._decode_all():
            number = index.frame_of(frame.pts)
            if number < expected:
                continue
            for lost in range(expected, number):
                self._note(f"frame {lost} cannot be decoded, another stands for it")
                yield lost, before or frame
            yield number, frame
            expected, before = number + 1, frame

    def _decode_all(self) -> Iterator[VideoFrame]:
        """Every frame that decoding from the start gives, stepping over what cannot be decoded."""
        self._reopen(1, explode=False)  # how lost parts are concealed depends on the threads
        for position, packet in enumerate(chain(self._packets, [None])):  # None: flush
            try:
                frames = self._feed(packet)
            except av.FFmpegError as error:
                self._note(f"packet {position} cannot be decoded: {error.strerror}")
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self._note(f"packet {position} is damaged")
                yield frame

    def _note(self, sign: str) -> None:
        self.damage = self.damage or sign

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
            self._reopen(self._threads)
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
        self._packets = _led(landing, packets)
        self._position = index.position_of(landing)
        return True


def _led(
    first: Packet[VideoStream], others: Generator[Packet[VideoStream], None, None]
) -> Generator[Packet[VideoStream], None, None]:
    yield first
    yield from others
