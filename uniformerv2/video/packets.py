"""Properties of a packet's frame that its bytes hold, where the container does not state them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av import Packet, VideoStream
    from av.video.codeccontext import VideoCodecContext

_MPEG4_PICTURE = b"\x00\x00\x01\xb6"  # start codes
_MPEG2_PICTURE = b"\x00\x00\x01\x00"
_H264_SLICE = re.compile(rb"\x00\x00\x01([\x01\x21\x41\x61\x02\x22\x42\x62\x05\x25\x45\x65])")
_SHORTEST_MPEG4_PICTURE = 10  # bytes; a shorter one marks a missing frame


def is_hidden(packet: Packet[VideoStream], codec: str) -> bool:
    """Whether the frame of a VP8 packet is never shown, only referred to."""
    return codec == "vp8" and not memoryview(packet)[0] & 0x10


def is_packed(packet: Packet[VideoStream], codec: str) -> bool:
    """Whether an MPEG-4 part 2 packet holds two frames, or stands in for one."""
    return codec == "mpeg4" and (packet.size < _SHORTEST_MPEG4_PICTURE or bytes(packet).count(_MPEG4_PICTURE) != 1)


def is_unreferenced(packet: Packet[VideoStream], codec: VideoCodecContext) -> bool:
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
