"""What the boxes of a QuickTime or MP4 file tell before FFmpeg opens it: encryption, and headers that cost too much."""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from uniformerv2.errors import VideoError
from uniformerv2.video.limits import Limits

_Box = tuple[bytes, bytes]  # kind and content

LARGEST_HEADER = 16 << 20  # bytes that a compressed one may unpack to; 16 MiB describe a film of a day
_FARTHEST = 1 << 60  # bytes
# sizes, durations or fragments that are stated for many samples at once
_COUNTED = re.compile(rb"stsz.{4}(?!\0{4})|stts.{4}\0{3}\x01.{4}\0{3}\x01|trun", re.DOTALL)
_OWN_FIELDS = 0xF00  # flags of a fragment that has bytes for each of its samples
_DEEPEST = 10  # boxes in boxes, as FFmpeg allows

# boxes in which FFmpeg looks for others; in unused space it does for a header alone
_SEARCHED = frozenset(
    {b"moov", b"moof", b"trak", b"traf", b"mdia", b"minf", b"stbl", b"edts", b"udta", b"mvex", b"cmov"}
)
_UNUSED = frozenset({b"free", b"hoov"})
_ENCRYPTED = re.compile(rb"(?:encv|drmi).{78,4000}?schm", re.DOTALL)  # ISO/IEC 14496-12, 8.12
_COMPRESSED = re.compile(rb"cmov....dcom.{8}cmvd(....)", re.DOTALL)  # QuickTime File Format, compressed movie resources


def check_boxes(read: Callable[[int, int], bytes], name: str, limits: Limits) -> None:
    """Refuse an encrypted film, a header that unpacks to more than `LARGEST_HEADER`, and tables that cost too much.

    Where a table gives one size for all samples, a few bytes make FFmpeg describe any number of them. And where a track
    has no number, or one above 2^31, FFmpeg 8 counts to a billion at each fragment.

    Args:
        read: gives so many bytes from a position, fewer at the end.
        name: for messages.
        limits: `frames` holds for the samples of a track, and of all fragments.

    Raises:
        VideoError: as said.
    """
    samples, films = 0, []
    for content in _headers(read):
        films.append(content)
        if b"moof" in content:
            if not all(_is_numbered(track) for film in films for track in _tracks(film)):
                raise VideoError(f"{name}: the film has fragments, and a track without a number")
            films.clear()
        if _COUNTED.search(content):  # of most films nothing more is looked at
            more, most = _counts(content)
            samples += more
            if max(samples, most) > limits.frames:
                raise limits.exceeded("frames", max(samples, most), name)
        if b"schm" in content and _ENCRYPTED.search(content):
            raise VideoError(f"{name}: the video is encrypted")
        for compressed in _COMPRESSED.finditer(content) if b"cmov" in content else ():
            stated = int.from_bytes(compressed[1], "big")
            unpacked = _unpacked(content[compressed.end() :])
            if stated > LARGEST_HEADER or len(unpacked) > LARGEST_HEADER or b"cmov" in unpacked:
                raise VideoError(f"{name}: its header would unpack to more than {LARGEST_HEADER >> 20} MiB")


def _headers(read: Callable[[int, int], bytes]) -> Iterator[bytes]:
    """Content, with its head, of the outermost boxes that describe what is in the file."""
    position = 0
    while len(head := read(position, 16)) >= 8:
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        if kind in _SEARCHED or kind == b"trun":
            yield read(position, size or _FARTHEST)
        elif kind in _UNUSED:
            yield read(position, min(size, 1 << 20))
        if size < 8 or position + size > _FARTHEST:
            return
        position += size


def _tracks(content: bytes) -> Iterator[list[_Box]]:
    """The boxes of each track."""
    return (list(_all_boxes(box)) for kind, box in _all_boxes(content) if kind == b"trak")


def _is_numbered(track: Sequence[_Box]) -> bool:
    *_, header = b"", *(box for kind, box in track if kind == b"tkhd")  # FFmpeg goes by the last
    start = 20 if header[:1] == b"\1" else 12  # ISO/IEC 14496-12, 8.3.2
    return len(header) >= start + 4 and _number(header, start) < 1 << 31


def _counts(content: bytes) -> tuple[int, int]:
    """Samples of all fragments that give them one size, and the most of one fragment or track."""
    fragments = [box for kind, box in _all_boxes(content) if kind == b"trun"]  # ISO/IEC 14496-12, 8.8.8
    alike = (_number(box, 4) for box in fragments if not _number(box, 0) & _OWN_FIELDS)
    return sum(alike), max(chain((_number(box, 4) for box in fragments), map(_samples, _tracks(content))), default=0)


def _samples(track: Sequence[_Box]) -> int:
    """Of a track, for which FFmpeg keeps entries though the table has none (ISO/IEC 14496-12, 8.6 and 8.7)."""
    tables: dict[bytes, list[bytes]] = defaultdict(list)
    for kind, box in track:
        tables[kind].append(box)
    rates = tables[b"stts"]
    is_sound = any(box[8:12] == b"soun" for box in tables[b"hdlr"])
    if is_sound and rates and all(_number(box, 4) == _number(box, 12) == 1 for box in rates):
        # of plain sound, 1024 samples make an entry
        chunks = max((_number(box, 4) for box in tables[b"stco"] + tables[b"co64"]), default=0)
        sizes = (_number(box, place) for box in tables[b"stsc"] for place in range(12, len(box), 12))
        return chunks * max(sizes, default=0) // 1024
    return max((_number(box, 8) for box in tables[b"stsz"] if _number(box, 4)), default=0)


def _number(box: bytes, start: int) -> int:
    return int.from_bytes(box[start : start + 4].ljust(4, b"\0"), "big")  # as FFmpeg reads on behind the end


def _all_boxes(content: bytes, depth: int = 0) -> Iterator[_Box]:
    """Kind and content of boxes that follow each other, and of those in them."""
    position = 0
    while len(head := content[position : position + 16]) >= 8:
        size, kind, start = _number(head, 0), head[4:8], 8
        if size == 1:
            size, start = int.from_bytes(head[8:], "big"), 16
        size = size or len(content) - position
        if size < start:
            return
        inner = content[position + start : position + size]
        yield kind, inner
        if kind in _SEARCHED and depth < _DEEPEST:
            yield from _all_boxes(inner, depth + 1)
        position += size


def _unpacked(content: bytes) -> bytes:
    """As far as it goes, and no more than a byte above the limit."""
    try:
        return zlib.decompressobj().decompress(content, LARGEST_HEADER + 1)
    except zlib.error:
        return b""
