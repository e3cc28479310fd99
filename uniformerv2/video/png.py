"""PNG without what its decoder would inflate to any size: texts and colour profiles, which change no pixel."""

from __future__ import annotations

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
