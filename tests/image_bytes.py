"""Images and containers that no encoder writes, put together byte by byte."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np


def encoded(image: np.ndarray, codec: str, pixels: str, *, format: str = "rgb24") -> bytes:
    """An image (height, width, channels) as a file of its codec."""
    encoder = av.CodecContext.create(codec, "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.height, encoder.width = image.shape[:2]
    encoder.pix_fmt, encoder.time_base = pixels, Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(image, format=format).reformat(format=pixels)
    frame.pts = 0
    return b"".join(map(bytes, encoder.encode(frame) + encoder.encode(None)))


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_png_chunks(png: bytes, *chunks: bytes) -> bytes:
    """Chunks put behind the header."""
    return png[:33] + b"".join(chunks) + png[33:]


def exif(orientation: int) -> bytes:
    """TIFF data with one tag."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)


def with_exif(file: bytes, orientation: int) -> bytes:
    """A JPEG, PNG or WebP file of 48x32 pixels with an Exif tag."""
    tag = exif(orientation)
    if file.startswith(b"\x89PNG"):
        return with_png_chunks(file, png_chunk(b"eXIf", tag))
    if file.startswith(b"RIFF"):
        size = struct.pack("<I", 47)[:3] + struct.pack("<I", 31)[:3]
        header = b"VP8X" + struct.pack("<I", 10) + bytes([8, 0, 0, 0]) + size
        body = b"WEBP" + header + file[12:] + b"EXIF" + struct.pack("<I", len(tag)) + tag
        return b"RIFF" + struct.pack("<I", len(body)) + body
    marked = b"Exif\0\0" + tag
    return file[:2] + b"\xff\xe1" + struct.pack(">H", len(marked) + 2) + marked + file[2:]


@dataclass(frozen=True)
class GifFrame:
    """A picture of palette indices (height, width) at a place of the canvas."""

    pixels: np.ndarray
    left: int = 0
    top: int = 0
    disposal: int = 0  # what happens before the next frame: 2 the place is cleared, 3 it is as before
    transparent: int | None = None  # index that draws nothing


def gif(
    frames: Sequence[GifFrame], palette: Sequence[tuple[int, int, int]], *, side: int, background: int = 0
) -> bytes:
    """An animation on a square canvas (GIF89a); of at most 8 colours."""
    table = b"".join(map(bytes, palette)).ljust(24, b"\0")
    parts = [b"GIF89a", struct.pack("<HHBBB", side, side, 0xF2, background, 0), table]
    for frame in frames:
        has, index = frame.transparent is not None, frame.transparent or 0
        height, width = frame.pixels.shape
        parts += [b"\x21\xf9\x04", struct.pack("<BHBB", frame.disposal << 2 | has, 10, index, 0)]
        parts += [b"\x2c", struct.pack("<HHHHB", frame.left, frame.top, width, height, 0), b"\x07"]
        values = frame.pixels.astype(np.uint8).tobytes()
        # codes of 8 bits: a clear code, 128, comes before they would grow to 9; 129 ends
        codes = b"".join(b"\x80" + values[at : at + 100] for at in range(0, len(values), 100)) + b"\x81"
        parts += [bytes([len(codes[at : at + 255])]) + codes[at : at + 255] for at in range(0, len(codes), 255)]
        parts.append(b"\0")
    return b"".join([*parts, b"\x3b"])


def matroska(images: Sequence[bytes], *, key: bytes = b"") -> bytes:
    """A film of JPEG images of 48x32 pixels (RFC 9559); encrypted by its own account where there is a key."""

    def element(number: str, *content: bytes) -> bytes:
        joined = b"".join(content)
        return bytes.fromhex(number) + (1 << 56 | len(joined)).to_bytes(8, "big") + joined

    encryption = element("5035", element("47E1", b"\5"), element("47E2", key))  # AES
    encodings = element("6D80", element("6240", element("5032", b"\1"), element("5033", b"\1"), encryption))
    size = element("E0", element("B0", b"\x30"), element("BA", b"\x20"))
    track = element("D7", b"\1") + element("73C5", b"\1") + element("83", b"\1") + element("86", b"V_MJPEG") + size
    blocks = [element("A3", b"\x81", struct.pack(">hB", 100 * at, 0x80), image) for at, image in enumerate(images)]
    return b"".join(
        [
            element("1A45DFA3", element("4282", b"matroska"), element("4287", b"\4"), element("4285", b"\2")),
            element(
                "18538067",
                element("1549A966", element("2AD7B1", (10**6).to_bytes(4, "big"))),
                element("1654AE6B", element("AE", track, encodings if key else b"")),
                element("1F43B675", element("E7", b"\0"), *blocks),
            ),
        ]
    )
