"""PNG without what its decoder would inflate to any size: texts and colour profiles, which change no pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import av

if TYPE_CHECKING:
    from av import Packet, VideoStream

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CODECS = frozenset({"png", "apng"})  # FFmpeg's names

_SIGNATURES = (PNG_SIGNATURE, b"\x8aMNG\r\n\x1a\n")  # the decoder takes both
_INFLATED = (b"zTXt", b"iTXt", b"iCCP")
_FRAME_OF_CHUNK = 12  # bytes: length, kind, checksum


def without_inflated(content: bytes) -> bytes:
    """PNG images, one behind the other, or chunks alone, without their compressed texts and colour profiles."""
    if not any(kind in content for kind in _INFLATED):
        return content
    kept, start = [], 0  # of the bytes that are kept next
    position = 0
    while position + _FRAME_OF_CHUNK <= len(content):
        if content.startswith(_SIGNATURES, position):
            position += len(PNG_SIGNATURE)
            continue
        end = position + _FRAME_OF_CHUNK + int.from_bytes(content[position : position + 4], "big")
        if content[position + 4 : position + 8] in _INFLATED:
            kept.append(content[start:position])
            start = end
        position = end
    return b"".join([*kept, content[start:]])


def clean_packet(packet: Packet[VideoStream], codec: str) -> Packet[VideoStream]:
    """A packet as the decoder may see it: the same one, but for PNG with something to leave out.

    Args:
        codec: FFmpeg's name.
    """
    if codec not in PNG_CODECS:
        return packet
    content = bytes(packet)
    cleaned = without_inflated(content)
    if len(cleaned) == len(content):
        return packet
    copy: Packet[VideoStream] = av.Packet(cleaned)  # type: ignore[assignment]
    copy.stream, copy.time_base = packet.stream, packet.time_base
    copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
    copy.is_keyframe, copy.is_corrupt = packet.is_keyframe, packet.is_corrupt
    return copy
