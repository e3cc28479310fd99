"""Packets as the decoder may see them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import av

from uniformerv2.video.png import PNG_CODECS, without_inflated

if TYPE_CHECKING:
    from av import Packet, VideoStream

_CHANGED = PNG_CODECS | {"gif"}
_GIF_TABLE_SIZE, _GIF_BACKGROUND = 10, 11  # places of these bytes in the header (GIF89a, 18)


def clean_packet(packet: Packet[VideoStream], codec: str) -> Packet[VideoStream]:
    """The same packet, but for images: PNG without what would inflate, GIF with a transparent background.

    Args:
        codec: FFmpeg's name.
    """
    if codec not in _CHANGED:
        return packet
    content = bytes(packet)
    cleaned = _transparent(content) if codec == "gif" else without_inflated(content)
    if cleaned == content:
        return packet
    copy: Packet[VideoStream] = av.Packet(cleaned)  # type: ignore[assignment]
    copy.stream, copy.time_base = packet.stream, packet.time_base
    copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
    copy.is_keyframe, copy.is_corrupt = packet.is_keyframe, packet.is_corrupt
    return copy


def _transparent(content: bytes) -> bytes:
    """With no colour behind the pictures, as browsers show them: FFmpeg takes one beyond the table for transparent."""
    if not content.startswith(b"GIF8") or content[_GIF_TABLE_SIZE:_GIF_BACKGROUND][0] & 7 == 7:
        return content  # no header, or a table without a free number
    return content[:_GIF_BACKGROUND] + b"\xff" + content[_GIF_BACKGROUND + 1 :]
