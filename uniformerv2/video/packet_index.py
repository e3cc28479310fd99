"""Which packet of a video holds which frame, found out without decoding."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING
from zlib import crc32

from uniformerv2.video.picture_headers import MPEG, picture_headers
from uniformerv2.video.units import NotCovered, Picture

if TYPE_CHECKING:
    from av import Packet, VideoStream
    from av.video.codeccontext import VideoCodecContext


@dataclass(frozen=True)
class PacketIndex:
    """Which packet holds which frame. Positions count packets in decode order; times are in ticks of the stream."""

    times: list[int]  # of each packet, by position
    checksums: list[int]  # of each packet, by position
    positions: dict[int | None, int]  # by time
    keys: list[int]  # positions where decoding can start
    shown: list[int]  # position of each frame, in presentation order
    hidden: set[int]  # positions of packets that are decoded, but not shown
    unreferenced: set[int]  # positions of packets that no other packet refers to
    held_back: bool = False  # whether the decoder gives a picture only with a later packet, and loses it if that is bad

    @property
    def start(self) -> int:
        """Time of the first frame."""
        return self.times[self.shown[0]]

    @property
    def spread(self) -> int:
        """Time from the first frame to the last."""
        return self.times[self.shown[-1]] - self.start

    def shown_at(self) -> list[int]:
        """Ticks from the first frame to each."""
        return [self.times[position] - self.start for position in self.shown]

    def frame_of(self, time: int | None) -> int:
        """The frame of exactly this time; -1 if there is none."""
        frame = -1 if time is None else bisect_right(self.shown, time, key=self.times.__getitem__) - 1
        return frame if frame >= 0 and self.times[self.shown[frame]] == time else -1

    def position_of(self, packet: Packet[VideoStream]) -> int:
        """Position of a packet; -1 for one that is not in the index, such as half a packet after a seek."""
        position = self.positions.get(packet.pts, -1)
        return position if position >= 0 and self.checksums[position] == _checksum(bytes(packet)) else -1

    def groups(self, wanted: Iterable[int]) -> list[tuple[int, list[int]]]:
        """The wanted frames, which increase, by the position of the key frame that each is decoded from."""
        numbers: dict[int, list[int]] = {}
        for number in wanted:
            numbers.setdefault(self.key_before(self.shown[number]), []).append(number)
        return list(numbers.items())

    def needed(self, key: int, wanted: Iterable[int]) -> list[int]:
        """Positions of the packets that have to be decoded for the wanted frames of one group, in order."""
        positions = {self.shown[number] for number in wanted}
        last = max(positions)
        if self.held_back:  # damage of the next one has to be found whichever frame is asked for
            last = next((p for p in range(last + 1, len(self.times)) if p not in self.unreferenced), last)
        # frames shown before the key frame lead into an open group and could not be decoded
        spare = {p for p in range(key, last + 1) if self.times[p] < self.times[key]}
        if not self.held_back:  # else how damage shows depends on what was decoded before
            spare |= self.unreferenced
        return [p for p in range(key, last + 1) if p in positions or p not in spare]

    def key_before(self, position: int) -> int:
        """The last key frame that comes before a packet in decode order and in time.

        In an open group the frames that follow the key frame in the file but are shown before it refer to the group
        before as well, so decoding has to start there.
        """
        key = bisect_right(self.keys, position) - 1
        while self.times[self.keys[key]] > self.times[position]:
            key -= 1
        return self.keys[key]


def index_packets(packets: Iterable[Packet[VideoStream]], codec: VideoCodecContext) -> PacketIndex | None:
    """Read the packets; None where they do not tell which frames there are and when each is shown.

    They do where every packet has a time of its own, and the times have the order in which the decoder will show the
    pictures, by their own headers.

    Args:
        packets: all of a stream, in decode order.
        codec: of the stream.
    """
    read = picture_headers(codec)
    if read is None:
        return None
    checksums: dict[int, int] = {}  # by time, in decode order
    keys, hidden, unreferenced, shown = [], set(), set(), []
    kept: list[tuple[int, Picture]] = []  # positions and pictures that state which others they need
    for position, packet in enumerate(packets):
        if packet.pts is None or packet.pts in checksums:
            return None
        content = bytes(packet)
        checksums[packet.pts] = _checksum(content)
        try:
            picture = read(content)
        except NotCovered:
            return None
        if packet.is_keyframe:
            keys.append(position)
        elif picture and not picture.is_referenced:
            unreferenced.add(position)
        if picture and picture.kept:
            kept.append((position, picture))
        if packet.is_discard or picture is None:
            hidden.add(position)
        else:
            shown.append((picture.period, picture.order, position))
    times = list(checksums)
    order = [position for *_, position in sorted(shown)]
    if not order or keys[:1] != [0] or times[0] != min(times):  # else frames refer to others before the first
        return None
    if any(times[one] >= times[following] for one, following in pairwise(order)):
        return None
    positions: dict[int | None, int] = {time: position for position, time in enumerate(times)}
    held_back = codec.name in MPEG and (codec.has_b_frames or order != sorted(order))
    index = PacketIndex(times, list(checksums.values()), positions, keys, order, hidden, unreferenced, held_back)
    if codec.name == "hevc":  # its decoder puts something in place of a lost picture, and is silent
        position_of = {(period, number): position for period, number, position in shown}
        if not _are_groups_whole(index, kept, position_of):
            return None
        referenced = {position_of.get((picture.period, other)) for _, picture in kept for other in picture.kept}
        unreferenced |= set(order) - set(keys) - referenced
    return index


def _are_groups_whole(
    index: PacketIndex, kept: Iterable[tuple[int, Picture]], position_of: Mapping[tuple[int, int], int]
) -> bool:
    """Whether every picture needs only what is decoded before it from its key frame on."""
    for position, picture in kept:
        key = index.key_before(position)
        for order, is_needed in picture.kept.items():
            other = position_of.get((picture.period, order), -1)
            if is_needed and not (key <= other < position and index.times[key] <= index.times[other]):
                return False
    return True


def _checksum(content: bytes) -> int:
    """Of some 256 bytes all over it, and its length."""
    return crc32(content[:: 1 + len(content) // 256], len(content))
