"""Which packet of a video holds which frame, found out without decoding."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av import Packet, VideoStream
    from av.video.codeccontext import VideoCodecContext


_MPEG4_PICTURE = b"\x00\x00\x01\xb6"  # start codes
_MPEG2_PICTURE = b"\x00\x00\x01\x00"
_H264_SLICE = re.compile(rb"\x00\x00\x01([\x01\x21\x41\x61\x02\x22\x42\x62\x05\x25\x45\x65])")
_SHORTEST_MPEG4_PICTURE = 10  # bytes; a shorter one marks a missing frame


@dataclass(frozen=True)
class PacketIndex:
    """Which packet holds which frame. Positions count packets in decode order; times are in ticks of the stream."""

    times: list[int]  # of each packet, by position
    sizes: list[int]  # of each packet in bytes, by position
    positions: dict[int | None, int]  # by time
    keys: list[int]  # positions where decoding can start
    shown: list[int]  # position of each frame, in presentation order
    hidden: set[int]  # positions of packets that are decoded, but not shown
    unreferenced: set[int]  # positions of packets that no other packet refers to

    @property
    def start(self) -> int:
        """Time of the first frame."""
        return self.times[self.shown[0]]

    @property
    def spread(self) -> int:
        """Time from the first frame to the last."""
        return self.times[self.shown[-1]] - self.start

    def frame_at(self, time: float) -> int:
        return bisect_right(self.shown, time, key=self.times.__getitem__) - 1

    def position_of(self, packet: Packet[VideoStream]) -> int:
        """Position of a packet; -1 for one that is not in the index, such as half a packet after a seek."""
        position = self.positions.get(packet.pts, -1)
        return position if position >= 0 and self.sizes[position] == packet.size else -1

    def spans(self, wanted: Sequence[int]) -> list[tuple[int, int]]:
        """First and last position of each run of packets that the wanted frames need."""
        spans: list[tuple[int, int]] = []
        for first, last in sorted((self._key_before(self.shown[i]), self.shown[i]) for i in wanted):
            if spans and first <= spans[-1][1] + 1:
                spans[-1] = (spans[-1][0], max(spans[-1][1], last))
            else:
                spans.append((first, last))
        return spans

    def needed(self, first: int, last: int, wanted: Container[int]) -> list[int]:
        """Positions of one span whose packets have to be decoded, in decode order."""
        # frames shown before the key frame lead into an open group and could not be decoded
        spare = {p for p in range(first, last + 1) if p in self.unreferenced or self.times[p] < self.times[first]}
        return [p for p in range(first, last + 1) if p in wanted or p not in spare]

    def _key_before(self, position: int) -> int:
        """The last key frame that comes before a packet in decode order and in time.

        In an open group the frames that follow the key frame in the file but are shown before it refer to the group
        before as well, so decoding has to start there.
        """
        key = bisect_right(self.keys, position) - 1
        while self.times[self.keys[key]] > self.times[position]:
            key -= 1
        return self.keys[key]


def index_packets(
    packets: Iterable[Packet[VideoStream]], codec: VideoCodecContext, *, timed: bool
) -> PacketIndex | None:
    """Read every packet; None where that does not tell which frames there are and when each is shown.

    Args:
        packets: all of a stream, in decode order.
        codec: of the stream.
        timed: whether the container states when a frame is shown.
    """
    sizes: dict[Any, int] = {}  # by time, in decode order
    keys, hidden, unreferenced = [], set(), set()
    for position, packet in enumerate(packets):
        timed = timed and packet.pts not in sizes and not _is_packed(packet, codec.name)
        sizes[packet.pts] = packet.size
        if packet.is_keyframe:
            keys.append(position)
        elif _is_unreferenced(packet, codec):
            unreferenced.add(position)
        # some frames of VP8 are never shown, only referred to
        if packet.is_discard or (codec.name == "vp8" and not memoryview(packet)[0] & 0x10):
            hidden.add(position)
    times = list(sizes)
    if not timed or None in sizes or len(hidden) == len(times):
        return None
    if keys[:1] != [0] or times[0] != min(times):  # frames that refer to others before the first
        return None
    shown = sorted(set(range(len(times))) - hidden, key=times.__getitem__)
    positions = {time: position for position, time in enumerate(times)}
    return PacketIndex(times, list(sizes.values()), positions, keys, shown, hidden, unreferenced)


def _is_packed(packet: Packet[VideoStream], codec: str) -> bool:
    """Whether an MPEG-4 part 2 packet holds two frames, or stands in for one."""
    return codec == "mpeg4" and (packet.size < _SHORTEST_MPEG4_PICTURE or bytes(packet).count(_MPEG4_PICTURE) != 1)


def _is_unreferenced(packet: Packet[VideoStream], codec: VideoCodecContext) -> bool:
    """Whether no other packet refers to this one, by its container, which seldom states it, or its own headers."""
    if packet.is_disposable:
        return True
    if codec.name == "h264":  # nal_ref_idc of every slice
        headers = _h264_slice_headers(bytes(packet), codec.extradata)
        return bool(headers) and not any(header & 0x60 for header in headers)
    if codec.name == "mpeg4":  # vop_coding_type
        header = bytes(packet).partition(_MPEG4_PICTURE)[2]
        return len(header) > 0 and header[0] >> 6 == 2
    if codec.name in ("mpeg1video", "mpeg2video"):  # picture_coding_type
        header = bytes(packet).partition(_MPEG2_PICTURE)[2]
        return len(header) > 1 and header[1] >> 3 & 7 == 3
    return False


def _h264_slice_headers(content: bytes, extradata: bytes | None) -> list[int]:
    """First byte of every slice in a packet, whose units are led by a length (avcC) or by a start code."""
    if not extradata or extradata[0] != 1:
        return [match[1][0] for match in _H264_SLICE.finditer(content)]
    width = (extradata[4] & 3) + 1
    headers = []
    start = 0
    while start + width < len(content):
        header = content[start + width]
        if header & 0x1F in (1, 2, 5):
            headers.append(header)
        start += width + int.from_bytes(content[start : start + width], "big")
    return headers if start == len(content) else []
