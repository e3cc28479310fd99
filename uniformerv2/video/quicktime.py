"""What the boxes of a QuickTime or MP4 file tell before FFmpeg opens it: encryption, and headers that cost too much."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator

from uniformerv2.errors import VideoError

LARGEST_HEADER = 16 << 20  # bytes that a compressed one may unpack to; 16 MiB describe a film of a day
_FARTHEST = 1 << 60  # bytes
_DEEPEST = 10  # boxes in boxes, as FFmpeg allows

# boxes in which FFmpeg looks for others; in unused space it does for a header alone
_SEARCHED = frozenset(
    {b"moov", b"moof", b"trak", b"traf", b"mdia", b"minf", b"stbl", b"edts", b"udta", b"mvex", b"cmov"}
)
_UNUSED = frozenset({b"free", b"hoov"})
_ENCRYPTED = re.compile(rb"(?:encv|drmi).{78,4000}?schm", re.DOTALL)  # ISO/IEC 14496-12, 8.12
_COMPRESSED = re.compile(rb"cmov....dcom.{8}cmvd(....)", re.DOTALL)  # QuickTime File Format, compressed movie resources


def check_boxes(read: Callable[[int, int], bytes], name: str) -> None:
    """Refuse an encrypted film, a header that unpacks to more than `LARGEST_HEADER`, and fragments without a track.

    Where a track has no number, or one above 2^31, FFmpeg 8 counts to a billion at each fragment.

    Args:
        read: gives so many bytes from a position, fewer at the end.
        name: for messages.

    Raises:
        VideoError: as said.
    """
    films: list[bytes] = []
    for kind, content in _headers(read):
        films += [content] * (kind == b"moov")
        if kind == b"moof":
            if any(not 0 <= number < 1 << 31 for film in films for number in _track_numbers(film)):
                raise VideoError(f"{name}: the film has fragments, and a track without a number")
            films.clear()
        if b"schm" in content and _ENCRYPTED.search(content):
            raise VideoError(f"{name}: the video is encrypted")
        for compressed in _COMPRESSED.finditer(content) if b"cmov" in content else ():
            stated = int.from_bytes(compressed[1], "big")
            unpacked = _unpacked(content[compressed.end() :])
            if stated > LARGEST_HEADER or len(unpacked) > LARGEST_HEADER or b"cmov" in unpacked:
                raise VideoError(f"{name}: its header would unpack to more than {LARGEST_HEADER >> 20} MiB")


def _headers(read: Callable[[int, int], bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content, with its head, of the outermost boxes that describe what is in the file."""
    position = 0
    while len(head := read(position, 16)) >= 8:
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        if kind in _SEARCHED:
            yield kind, read(position, size or _FARTHEST)
        elif kind in _UNUSED:
            yield kind, read(position, min(size, 1 << 20))
        if size < 8 or position + size > _FARTHEST:
            return
        position += size


def _track_numbers(content: bytes, depth: int = 0) -> Iterator[int]:
    """Of the tracks in some boxes; -1 for one that has none."""
    for kind, inner in _boxes(content):
        if kind == b"trak":
            *_, header = b"", *(box for name, box in _boxes(inner) if name == b"tkhd")  # FFmpeg goes by the last
            start = 20 if header[:1] == b"\1" else 12  # ISO/IEC 14496-12, 8.3.2
            yield int.from_bytes(header[start : start + 4], "big") if len(header) >= start + 4 else -1
        if kind in _SEARCHED and depth < _DEEPEST:
            yield from _track_numbers(inner, depth + 1)


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of boxes that follow each other."""
    position = 0
    while len(head := content[position : position + 16]) >= 8:
        size, start = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, start = int.from_bytes(head[8:], "big"), 16
        size = size or len(content) - position
        if size < start:
            return
        yield head[4:8], content[position + start : position + size]
        position += size


def _unpacked(content: bytes) -> bytes:
    """As far as it goes, and no more than a byte above the limit."""
    try:
        return zlib.decompressobj().decompress(content, LARGEST_HEADER + 1)
    except zlib.error:
        return b""
