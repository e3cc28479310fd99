"""Images and containers that no encoder writes, put together byte by byte."""

from __future__ import annotations

import struct
import zlib
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
