"""A video file, or the content of one: it is indexed, decoded where the index says, and else from its start."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import accumulate, chain, pairwise, zip_longest
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from uniformerv2.errors import VideoError
from uniformerv2.video.container import guarded
from uniformerv2.video.decoding import ROUNDING, ReadStatistics
from uniformerv2.video.limits import Limits
from uniformerv2.video.orientation import Orientation
from uniformerv2.video.packet_index import PacketIndex, index_packets
from uniformerv2.video.packets import PacketSource, Reading, Undecodable
from uniformerv2.video.pictures import Pictures

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream

    from uniformerv2.video.packets import Packets

    Frames = Generator[tuple[int, VideoFrame], None, None]

KEPT_BYTES = 8 << 20  # of packets that are kept once they are read; of a longer video they are read again

_SHORT_GAP = 16  # packets that are read over rather than sought past


class _IndexWrong(Exception):
    """Decoding contradicts the index."""


class VideoFile:
    """Upright images of whatever FFmpeg can read as a video.

    Where the packets tell the frames, a wanted frame is decoded from the key frame before it. Where that shows damage
    after all, the frames from that key frame to the next are those of decoding from the start, which conceals damage
    best; a frame that is lost even so is shown as the one before it, for a second at most.
    """

    def __init__(self, source: str | Path | bytes, name: str, threads: int, limits: Limits) -> None:
        try:
            size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        except OSError as error:
            raise VideoError(f"{name}: {error.strerror}") from None
        if size == 0:
            raise VideoError(f"{name}: the file is empty")
        self._source, self._threads = source, threads
        self._reading = Reading(name, limits)
        self._pictures = Pictures(threads)
        self._passes = 0  # how often images were asked for
        self._seeks = True  # until a seek lands behind its target, or in the middle of a packet
        self._kept: list[Packet[VideoStream]] = []  # all packets, or none
        self._damaged: set[int] = set()  # positions of key frames, up to the next of which the index proved wrong
        self._times: list[float] | None = None  # of the frames that decoding from the start gives, once it was done
        self._shown_at: np.ndarray | None = None  # ticks from the first frame to each, once they were asked for
        self._open()
        # a new decoder does not know of the display matrix of its file
        self._is_stated_by_frames = self._opened.may_be_turned and not self._opened.is_renewed
        self._tick, self._stated_rate = self._opened.tick, self._opened.stated_rate
        self._index = self._read_index()
        with closing(self._decode([0])) as frames:
            _, first = next(frames)
        self._coded_size = (first.height, first.width)
        with guarded(name):
            is_turned = self._opened.may_be_turned or first.rotation
            self._orientation = self._pictures.orientation(first) if is_turned else Orientation()
            self.size = self._orientation.upright_size(*self._coded_size)

    def __len__(self) -> int:
        return len(self._frame_times()) if self._index is None else len(self._index.shown)

    @property
    def rate(self) -> float:
        """Frames per second by the times of the frames, else as the file states it."""
        spread = self._frame_times()[-1] if self._index is None else self._index.spread * self._tick
        return (len(self) - 1) / spread if spread > 0 else self._stated_rate

    def indices_at(self, seconds: np.ndarray) -> np.ndarray:
        """The frame that is shown at each moment; -1 before the first."""
        if self._shown_at is None:
            index = self._index
            ticks = [time / self._tick for time in self._frame_times()] if index is None else index.shown_at()
            self._shown_at = np.array(ticks, dtype=np.float64)
        return np.searchsorted(self._shown_at, seconds / self._tick + ROUNDING, side="right") - 1

    def images(self, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Index and uint8 RGB image (height, width, 3) of the wanted frames, which increase.

        Where the index proves wrong midway, some images come once more, and the later ones count.
        """
        height, width = self._coded_size
        self._passes += 1
        this = self._passes
        self._reading.begin()
        with closing(self._decode(wanted)) as frames:
            for index, frame in frames:
                orientation = None if frame.rotation or self._is_stated_by_frames else self._orientation
                with guarded(self._reading.name):
                    image = self._pictures.image(frame, width=width, height=height, orientation=orientation)
                del frame  # or what damage leaves in memory that is used again would depend on the question
                yield index, image
                if self._passes != this:  # the only decoder has moved on
                    raise RuntimeError(f"{self._reading.name}: other frames were read before these had all been read")

    @property
    def damage(self) -> str:
        """Its first sign, in words."""
        return self._reading.damage

    @property
    def statistics(self) -> ReadStatistics:
        return ReadStatistics(**self._reading.statistics, indexed=self._index is not None and not self._damaged)

    def close(self) -> None:
        """Give back all that is held."""
        self._kept = []
        self._opened.close()

    def _open(self) -> None:
        self._opened = PacketSource(self._source, self._reading, threads=self._threads, strict=True)
        self._position = 0  # of the next packet

    def _read_index(self) -> PacketIndex | None:
        """Index of the packets, all of which are read; they are kept where they are few."""
        kept, space = [], KEPT_BYTES

        def noted() -> Iterator[Packet[VideoStream]]:
            nonlocal space
            for packet in self._opened.packets:
                space -= packet.size
                kept.append(packet)
                if space < 0:
                    kept.clear()
                self._position += 1
                yield packet

        index = index_packets(noted(), self._opened.codec)
        if self._reading.damage or index is None:
            return None
        self._kept = kept if space >= 0 else []
        return index

    def _frame_times(self) -> list[float]:
        """Seconds from the first frame to each that decoding from the start gives; at least one frame."""
        if self._times is None:
            self._reading.begin()
            stamps = [(frame.pts, frame.dts) for frame in self._decode_all()]
            presented, decoded = (_steps(times) for times in zip(*stamps, strict=True)) if stamps else ([], [])
            # B-frames that AVI packs have wrong times of presentation, but right ones of decoding
            steps = presented if _rises(presented) or not _rises(decoded) else decoded
            # a clock that stands still or goes back, as where one recording follows another, does not tell a step
            usual = median([step for step in steps if step and step > 0] or [1 / self._stated_rate / self._tick])
            ticks = accumulate((step if step and step > 0 else usual for step in steps), initial=0.0)
            self._times = [tick * self._tick for tick in ticks]
        return self._times

    def _decode(self, wanted: Sequence[int]) -> Frames:
        """Number and frame of the wanted frames, which increase."""
        index = self._index
        if index is None:
            with closing(self._decode_counted()) as frames:
                yield from self._picked(frames, wanted)
            return
        with closing(self._decode_timed(index)) as from_start:
            for key, group in index.groups(wanted):
                if key not in self._damaged:
                    try:
                        yield from self._decode_group(index, key, group)
                        continue
                    except (_IndexWrong, Undecodable):
                        self._damaged.add(key)
                yield from self._picked(from_start, group)

    def _picked(self, frames: Frames, wanted: Sequence[int]) -> Frames:
        """Those of the frames that are wanted. Raises VideoError where one is not among them."""
        left = iter(wanted)
        number = next(left, None)
        while number is not None:
            found, frame = next(frames, (None, None))
            if found is None or frame is None or found > number:
                cause = f" ({self.damage})" if self.damage else ""
                raise VideoError(f"{self._reading.name}: frame {number} cannot be decoded{cause}")
            if found == number:
                yield number, frame
                number = next(left, None)

    def _decode_timed(self, index: PacketIndex) -> Frames:
        """The frames of the index; for one that cannot be decoded, the one that is shown before it, for a second."""
        expected, before, longest = 0, None, max(round(self.rate), 1)
        for frame in self._decode_all():
            number = index.frame_of(frame.pts)
            if number < expected:
                continue
            if number > expected:
                self._reading.note(f"frame {expected} cannot be decoded")
            for lost in range(expected, min(expected + longest, number)):
                yield lost, before or frame
            yield number, frame
            expected, before = number + 1, frame
        if before is not None and expected < len(index.shown):
            self._reading.note(f"frame {expected} cannot be decoded, nor any after it")
            for lost in range(expected, min(expected + longest, len(index.shown))):
                yield lost, before

    def _decode_counted(self) -> Frames:
        yield from enumerate(self._decode_all())

    def _decode_all(self) -> Iterator[VideoFrame]:
        """Every frame that decoding from the start gives, stepping over what cannot be decoded."""
        self._reading.statistics["restarts"] += 1
        # how lost parts are concealed depends on the threads
        with closing(PacketSource(self._source, self._reading, threads=1, strict=False)) as opened:
            for position, packet in enumerate(chain(opened.packets, [None])):  # None: flush
                try:
                    frames = opened.feed(packet)
                except Undecodable as error:
                    self._reading.note(f"packet {position} cannot be decoded: {error}")
                    opened.recover()
                    continue
                for frame in frames:
                    if frame.is_corrupt:
                        self._reading.note(f"packet {position} is damaged")
                    yield frame

    def _decode_group(self, index: PacketIndex, key: int, wanted: Sequence[int]) -> Frames:
        """Decode from a key frame no more than the wanted frames need, and check it against the index."""
        wanted_at = {index.shown[i]: i for i in wanted}  # frame number by position
        needed = index.needed(key, wanted_at)
        due = sorted(set(needed) - index.hidden, key=index.times.__getitem__)
        for position, frame in zip_longest(due, self._decode_packets(index, needed)):
            if position is None or frame is None or frame.pts != index.times[position] or frame.is_corrupt:
                raise _IndexWrong
            if position == key and not frame.key_frame:
                raise _IndexWrong
            if position in wanted_at:
                yield wanted_at[position], frame

    def _decode_packets(self, index: PacketIndex, positions: Sequence[int]) -> Iterator[VideoFrame]:
        """The frames of packets at rising positions, decoded from the first of them on."""
        self._go_to(index, positions[0])
        self._opened.renew_decoder()
        for position in positions:
            while self._position < position:
                self._next_packet(index)
            yield from self._opened.feed(self._next_packet(index))
        yield from self._opened.feed(None)

    def _next_packet(self, index: PacketIndex) -> Packet[VideoStream]:
        packet = self._kept[self._position] if self._kept else next(self._opened.packets, None)
        if packet is None or (not self._kept and index.position_of(packet) != self._position):
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
            self._reading.statistics["restarts"] += 1
            self._opened.close()
            self._open()
        while self._position < position:
            self._next_packet(index)

    def _seek(self, index: PacketIndex, position: int) -> bool:
        """Seek to the packet at a position or one before it; False where that fails."""
        self._position = len(index.times)  # until found
        if not self._opened.seek(index.times[position]):
            return False
        landing = next(self._opened.packets, None)
        if landing is None or not 0 <= index.position_of(landing) <= position:
            return False
        self._opened.packets = _led(landing, self._opened.packets)
        self._position = index.position_of(landing)
        return True


def _led(first: Packet[VideoStream], others: Packets) -> Packets:
    yield first
    yield from others


def _steps(times: Sequence[int | None]) -> list[int | None]:
    """From each time to the next, in ticks; None where one of them is missing."""
    return [None if one is None or following is None else following - one for one, following in pairwise(times)]


def _rises(steps: Sequence[int | None]) -> bool:
    return all(step is None or step > 0 for step in steps)
