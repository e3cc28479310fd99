"""What the boxes of a QuickTime or MP4 file tell before FFmpeg opens it: encryption, and a header that is a bomb."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator

from uniformerv2.errors import VideoError

LARGEST_HEADER = 16 << 20  # bytes that a compressed one may unpack to; 16 MiB describe a film of a day
_FARTHEST = 1 << 60  # bytes

# boxes in which FFmpeg looks for others; in unused space it does for a header alone
_SEARCHED = frozenset(
    {b"moov", b"moof", b"trak", b"traf", b"mdia", b"minf", b"stbl", b"edts", b"udta", b"mvex", b"cmov"}
)
_UNUSED = frozenset({b"free", b"hoov"})
_ENCRYPTED = re.compile(rb"(?:encv|drmi).{78,4000}?schm", re.DOTALL)  # ISO/IEC 14496-12, 8.12
_COMPRESSED = re.compile(rb"cmov....dcom.{8}cmvd(....)", re.DOTALL)  # QuickTime File Format, compressed movie resources


def check_boxes(read: Callable[[int, int], bytes], name: str) -> None:
    """Refuse an encrypted film, and a header that would unpack to more than `LARGEST_HEADER`.

    Args:
        read: gives so many bytes from a position, fewer at the end.
        name: for messages.

    Raises:
        VideoError: as said.
    """
    for content in _headers(read):
        if b"schm" in content and _ENCRYPTED.search(content):
            raise VideoError(f"{name}: the video is encrypted")
        for compressed in _COMPRESSED.finditer(content) if b"cmov" in content else ():
            stated = int.from_bytes(compressed[1], "big")
            unpacked = _unpacked(content[compressed.end() :])
            if stated > LARGEST_HEADER or len(unpacked) > LARGEST_HEADER or b"cmov" in unpacked:
                raise VideoError(f"{name}: its header would unpack to more than {LARGEST_HEADER >> 20} MiB")


def _headers(read: Callable[[int, int], bytes]) -> Iterator[bytes]:
    """Content of the outermost boxes that describe what is in the file."""
    position = 0
    while len(head := read(position, 16)) >= 8:
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        if kind in _SEARCHED:
            yield read(position, size or _FARTHEST)
        elif kind in _UNUSED:
            yield read(position, min(size, 1 << 20))
        if size < 8 or position + size > _FARTHEST:
            return
        position += size


def _unpacked(content: bytes) -> bytes:
    """As far as it goes, and no more than a byte above the limit."""
    try:
        return zlib.decompressobj().decompress(content, LARGEST_HEADER + 1)
    except zlib.error:
        return b""
