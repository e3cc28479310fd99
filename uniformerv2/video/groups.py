"""Groups of pictures, decoded where the index of a video says, several at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING

from uniformerv2.video.packet_index import PacketIndex, index_packets
from uniformerv2.video.packets import PacketSource, Undecodable

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream

    from uniformerv2.video.packets import Packets

    Frames = Iterable[tuple[int, VideoFrame]]

WORTH_A_THREAD = 1 << 20  # pixels to decode, with which a thread has more to do than to open the file once more
KEPT_BYTES = 8 << 20  # of packets that are kept once they are read; of a longer video they are read again

_SHORT_GAP = 16  # packets that are read over rather than sought past
_AHEAD_BYTES = 256 << 20  # of decoded frames and packets that wait for groups before them


def read_index(source: PacketSource) -> tuple[PacketIndex | None, list[Packet[VideoStream]]]:
    """Index of the packets of a file, all of which are read, and the packets where they are few."""
    kept, space = [], KEPT_BYTES

    def noted() -> Iterator[Packet[VideoStream]]:
        nonlocal space
        for packet in source.packets:
            space -= packet.size
            kept.append(packet)
            if space < 0:
                kept.clear()
            yield packet

    index = index_packets(noted(), source.codec)
    return index, kept if space >= 0 else []


class GroupDamaged(Exception):
    """The frames of a group are not what the index says."""


class _IndexWrong(Exception):
    """Decoding contradicts the index."""


class GroupDecoder:
    """Decodes the groups of pictures that hold wanted frames, each from its key frame.

    Args:
        open: opens the file.
        opened: the file, all of which was read.
        index: of its packets.
        kept: all of its packets, or none.
        at_once: groups that are decoded at once.
    """

    def __init__(
        self,
        open: Callable[[], PacketSource],
        opened: PacketSource,
        index: PacketIndex,
        kept: list[Packet[VideoStream]],
        *,
        at_once: int,
    ) -> None:
        self._open, self._opened, self._index, self._kept, self._at_once = open, opened, index, kept, at_once
        self._position = len(index.times)  # of the next packet
        self._seeks = True  # until a seek lands behind its target, or in the middle of a packet
        self._pixels = opened.codec.width * opened.codec.height  # of a frame
        self.damaged: set[int] = set()  # positions of their key frames
        self._helpers: list[PacketSource] = []  # whose decoders other threads use
        self._is_closed = False

    def decode(self, wanted: Sequence[int]) -> Generator[tuple[list[int], Frames], None, None]:
        """The wanted frames, which increase, of each group, and an iterator over their numbers and frames.

        The iterator raises GroupDamaged; it has to be used up before the next one.
        """
        groups = self._index.groups(wanted)
        if self._at_once == 1 or len(groups) == 1:
            yield from ((group, self._marked(key, partial(self._decode_here, key, group))) for key, group in groups)
            return
        started: deque[tuple[list[int], Frames]] = deque()
        pool = ThreadPoolExecutor(self._at_once)
        try:
            for key, group in groups:
                most = min(self._at_once, _AHEAD_BYTES // (2 * self._pixels * len(group) + 1))
                while len(started) > max(most, 1):
                    yield started.popleft()
                begun = self._begin(pool, key, group) if most > 1 else None
                started.append((group, self._marked(key, begun or partial(self._decode_here, key, group))))
            yield from started
        finally:
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Give back all that is held."""
        self._kept, self._is_closed = [], True
        self._opened.close()
        self._close_helpers()

    def _close_helpers(self) -> None:
        with suppress(IndexError):  # several threads may be here
            while True:
                self._helpers.pop().close()

    def _marked(self, key: int, decode: Callable[[], Frames]) -> Frames:
        """What `decode` gives; a damaged group is not tried again."""
        if key in self.damaged:
            raise GroupDamaged
        try:
            yield from decode()
        except (_IndexWrong, Undecodable):
            self.damaged.add(key)
            raise GroupDamaged from None

    def _begin(self, pool: ThreadPoolExecutor, key: int, wanted: list[int]) -> Callable[[], Frames] | None:
        """Have another thread decode a group; None where that is not worth it."""
        needed = self._index.needed(key, wanted)
        if key in self.damaged or len(needed) * self._pixels < WORTH_A_THREAD:
            return None
        packets, space = [], _AHEAD_BYTES // self._at_once
        with suppress(_IndexWrong):  # it will be raised again where the frames are due
            self._go_to(needed[0])
            for packet in self._at(needed):
                packets.append(packet)
                space -= packet.size
                if space < 0:
                    return None
            return pool.submit(self._decode_apart, wanted, needed, packets).result
        return None

    def _decode_apart(self, wanted: list[int], needed: list[int], packets: list[Packet[VideoStream]]) -> Frames:
        try:
            source = self._helpers.pop()
        except IndexError:
            source = self._open()
            for _ in source.decode([next(source.packets)]):  # some decoders mistrust groups before they have seen it
                pass
        try:
            return list(self._checked(wanted, needed, source.decode(packets)))
        finally:
            self._helpers.append(source)
            if self._is_closed:  # while this decoded for an iteration that was left
                self._close_helpers()

    def _decode_here(self, key: int, wanted: list[int]) -> Frames:
        needed = self._index.needed(key, wanted)
        self._go_to(needed[0])
        return self._checked(wanted, needed, self._opened.decode(self._at(needed)))

    def _checked(self, wanted: list[int], needed: list[int], frames: Iterable[VideoFrame]) -> Frames:
        """Number and frame of the wanted ones among all that decoding a group from its key frame gives."""
        index, key = self._index, needed[0]
        number_of = {index.shown[number]: number for number in wanted}  # by position
        due = sorted(set(needed) - index.hidden, key=index.times.__getitem__)
        for position, frame in zip_longest(due, frames):
            if position is None or frame is None or frame.pts != index.times[position] or frame.is_corrupt:
                raise _IndexWrong
            if position == key and not frame.key_frame:
                raise _IndexWrong
            if position in number_of:
                yield number_of[position], frame

    # --- packets

    def _at(self, positions: Iterable[int]) -> Iterator[Packet[VideoStream]]:
        """The packets at rising positions from the present one on."""
        for position in positions:
            while self._position < position:
                self._next_packet()
            yield self._next_packet()

    def _next_packet(self) -> Packet[VideoStream]:
        packet = self._kept[self._position] if self._kept else next(self._opened.packets, None)
        if packet is None or (not self._kept and self._index.position_of(packet) != self._position):
            raise _IndexWrong
        self._position += 1
        return packet

    def _go_to(self, position: int) -> None:
        """Move to the packet at a position: by reading on, by a seek, or from the start."""
        if self._kept:
            self._position = position
            return
        is_near = 0 <= position - self._position <= _SHORT_GAP
        if self._seeks and not is_near:
            self._seeks = self._seek(position)
        if self._position > position:
            self._opened.close()
            self._opened, self._position = self._open(), 0
        while self._position < position:
            self._next_packet()

    def _seek(self, position: int) -> bool:
        """Seek to the packet at a position or one before it; False where that fails."""
        self._position = len(self._index.times)  # until found
        if not self._opened.seek(self._index.times[position]):
            return False
        landing = next(self._opened.packets, None)
        if landing is None or not 0 <= self._index.position_of(landing) <= position:
            return False
        self._opened.packets = _led(landing, self._opened.packets)
        self._position = self._index.position_of(landing)
        return True


def _led(first: Packet[VideoStream], others: Packets) -> Packets:
    yield first
    yield from others
