"""Files damaged by chance, and what fails made smaller."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Mapping

from media import with_damaged_packets

NUMBERS = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0xFF_FFFF,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    (1 << 63) - 1,
)
HEADER = 2048  # bytes at the start and at the end, where containers keep what they say of themselves
BOX = re.compile(rb"[a-zA-Z][a-zA-Z0-9 ]{3}")  # the name of a box or chunk, which its size precedes or follows
# EBML elements of which Matroska is made: EBML, Segment, Info, Tracks, TrackEntry, Video, Cluster, SimpleBlock, Cues
EBML = re.compile(
    rb"\x1a\x45\xdf\xa3|\x18\x53\x80\x67|\x15\x49\xa9\x66|\x16\x54\xae\x6b|\xae|\xe0|\x1f\x43\xb6\x75|\xa3|\x1c\x53\xbb\x6b"
)

WORDS = re.compile(rb"[a-zA-Z ]{5,}")
PLAYLISTS = (
    b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n",
    b"ffconcat version 1.0\nfile 'other.mp4'\n",
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 0 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><BaseURL>other.mp4</BaseURL></MPD>",
    b"[Reference]\nRef1=http://127.0.0.1/other.mp4\n",
)

Mutation = Callable[[bytes, bytes, random.Random], bytes]  # of a file, with another file at hand


def _replaced(content: bytes, start: int, new: bytes) -> bytes:
    return (content[:start] + new + content[start + len(new) :])[: len(content)]


def _block(content: bytes, dice: random.Random) -> tuple[int, int]:
    """Start and length of a part, more often a short one."""
    length = min(int(2 ** dice.uniform(0, 12)), len(content))
    return dice.randrange(len(content) - length + 1), length


def bits(content: bytes, other: bytes, dice: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(int(2 ** dice.uniform(0, 6))):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def zeros(content: bytes, other: bytes, dice: random.Random) -> bytes:
    start, length = _block(content, dice)
    return _replaced(content, start, bytes(length))


def noise(content: bytes, other: bytes, dice: random.Random) -> bytes:
    start, length = _block(content, dice)
    return _replaced(content, start, dice.randbytes(length))


def packets(content: bytes, other: bytes, dice: random.Random) -> bytes:
    return with_damaged_packets(content, dice)


def truncation(content: bytes, other: bytes, dice: random.Random) -> bytes:
    return content[: dice.randrange(1, len(content))] if len(content) > 1 else content


def deletion(content: bytes, other: bytes, dice: random.Random) -> bytes:
    start, length = _block(content, dice)
    return content[:start] + content[start + length :] or content


def swap(content: bytes, other: bytes, dice: random.Random) -> bytes:
    (one, length), (two, _) = _block(content, dice), _block(content, dice)
    first, second = content[one : one + length], content[two : two + length]
    return _replaced(_replaced(content, one, second), two, first)


def header_field(content: bytes, other: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(min(HEADER, len(content)))
    if dice.random() < 0.3:
        start = len(content) - 1 - start
    return _number(content, start, dice)


def box_size(content: bytes, other: bytes, dice: random.Random) -> bytes:
    found = [match.start() for match in BOX.finditer(content)]
    if not found:
        return header_field(content, other, dice)
    return _number(content, max(dice.choice(found) + dice.choice([-4, 4]), 0), dice, width=4)


def ebml_size(content: bytes, other: bytes, dice: random.Random) -> bytes:
    found = [match.end() for match in EBML.finditer(content)]
    if not content.startswith(b"\x1a\x45\xdf\xa3") or not found:
        return box_size(content, other, dice)
    size = dice.choice([b"\xff", b"\x01" + b"\xff" * 7, b"\x80", b"\x08\xff\xff\xff\xff", dice.randbytes(2)])
    return _replaced(content, dice.choice(found), size)


def text(content: bytes, other: bytes, dice: random.Random) -> bytes:
    """Letters above ASCII, which are seldom UTF-8."""
    found = [match.span() for match in WORDS.finditer(content)]
    if not found:
        return bits(content, other, dice)
    start, end = dice.choice(found)
    return _replaced(content, dice.randrange(start, end), bytes([dice.randrange(128, 256)]))


def chunk(content: bytes, other: bytes, dice: random.Random) -> bytes:
    """A profile, EXIF or compressed text in an image, with content by chance, or much of it."""
    data = dice.choice(
        [dice.randbytes(dice.randrange(200)), zlib.compress(bytes(dice.choice([10, 100_000, 50_000_000])), 9)]
    )
    at = content.find(b"IHDR") + 21
    if content.startswith(b"\x89PNG") and at > 20:
        kind = dice.choice(
            [b"iCCP", b"zTXt", b"eXIf", b"iTXt", b"tEXt", b"cHRM", b"gAMA", b"mDCV", b"cLLI", b"acTL", b"fcTL"]
        )
        body = kind + dice.choice([b"a\0\0", b"MM\0*\0\0\0\x08", b""]) + data
        made = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    elif content.startswith(b"\xff\xd8"):
        at, body = (
            2,
            dice.choice([b"Exif\0\0MM\0*\0\0\0\x08", b"ICC_PROFILE\0\1\1", b"JFIF\0", b"Adobe\0"]) + data[:60_000],
        )
        made = b"\xff" + bytes([dice.randrange(0xE0, 0xF0)]) + (len(body) + 2).to_bytes(2, "big") + body
    elif content.startswith(b"RIFF"):
        at = 12
        made = (
            dice.choice([b"EXIF", b"ICCP", b"XMP ", b"LIST", b"VP8X", b"JUNK"]) + len(data).to_bytes(4, "little") + data
        )
    elif content[4:8] == b"ftyp":
        at = 0
        made = (
            (len(data) + 8).to_bytes(4, "big")
            + dice.choice([b"uuid", b"meta", b"udta", b"moov", b"sidx", b"cmov"])
            + data
        )
    else:
        return text(content, other, dice)
    return content[:at] + made + content[at:]


def playlist(content: bytes, other: bytes, dice: random.Random) -> bytes:
    """A text that refers to other files, in place of the file or before it."""
    line = dice.choice(PLAYLISTS)
    return dice.choice([line, line + content])


def splice(content: bytes, other: bytes, dice: random.Random) -> bytes:
    return content[: dice.randrange(1, len(content) + 1)] + other[dice.randrange(len(other)) :]


def insertion(content: bytes, other: bytes, dice: random.Random) -> bytes:
    start, length = _block(other, dice)
    at = dice.randrange(len(content) + 1)
    return content[:at] + other[start : start + length] + content[at:]


def _number(content: bytes, start: int, dice: random.Random, width: int = 0) -> bytes:
    width = width or dice.choice([1, 2, 4, 8])
    value = dice.choice([*NUMBERS, dice.getrandbits(8 * width)]) % (1 << 8 * width)
    return _replaced(content, start, value.to_bytes(width, dice.choice(["big", "little"])))


MUTATIONS: Mapping[str, Mutation] = {
    "bits": bits,
    "zeros": zeros,
    "noise": noise,
    "packets": packets,
    "truncation": truncation,
    "deletion": deletion,
    "swap": swap,
    "header field": header_field,
    "box size": box_size,
    "EBML size": ebml_size,
    "text": text,
    "chunk": chunk,
    "playlist": playlist,
    "splice": splice,
    "insertion": insertion,
}


def mutate(content: bytes, other: bytes, dice: random.Random) -> tuple[bytes, list[str]]:
    """A damaged file, and the kinds of mutations that were made, one to four."""
    kinds = dice.choices(list(MUTATIONS), k=dice.choice([1, 1, 1, 2, 2, 3, 4]))
    kinds.sort(key="packets".__ne__)  # which are found in a whole file
    for kind in kinds:
        content = MUTATIONS[kind](content, other, dice)
    return content, kinds


def shrink(content: bytes, origin: bytes, fails: Callable[[bytes], bool], *, checks: int = 80) -> bytes:
    """A file that still fails, nearer to the one that it was made of, and shorter.

    Args:
        content: fails.
        origin: what it was made of, which need not fail.
        fails: whether a content fails in the same way.
        checks: calls of `fails` at most.
    """
    left = checks

    def better(tried: bytes) -> bool:
        nonlocal left, content
        if left <= 0 or not tried or tried == content:
            return False
        left -= 1
        if not fails(tried):
            return False
        content = tried
        return True

    step = len(content)
    while step >= 1 and left > 0:  # parts of it as they were, from the largest to single bytes
        for start in range(0, len(content), step):
            part = origin[start : start + step]
            if content[start : start + step] != part and len(part) == len(content[start : start + step]):
                better(content[:start] + part + content[start + step :])
        step //= 4
    step = len(content) // 2
    while step >= 16 and left > 0:  # without its end
        if not better(content[:-step]):
            step //= 2
    return content
