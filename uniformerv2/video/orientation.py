"""How the image of a frame is turned and mirrored when it is shown.

PyAV's `frame.side_data` is never read as it comes from a file: it frees the metadata of a colour profile twice, raises
for types that it does not know, and keeps the picture until garbage is collected. `frame.rotation` is safe, but cannot
tell mirroring. So a filter graph says whether a frame has a display matrix, and another removes all other side data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from av.error import BlockingIOError, EOFError
from av.filter import Graph

if TYPE_CHECKING:
    from av import VideoFrame

_DISPLAY_MATRIX = 6  # AV_FRAME_DATA_DISPLAYMATRIX
_SIDE_DATA_TYPES = 48  # FFmpeg 8.1 has 32
_MATRIX_BYTES = 9 * 4

# the tag 0x0112 in the first directory of TIFF data, by its byte order; as JPEG, PNG and WebP have it
_EXIF = re.compile(rb"(?:Exif\0\0|eXIf|EXIF....)(II\*\0|MM\0\*)(....)", re.DOTALL)
_ORIENTATION_TAG = {"little": b"\x12\x01\x03\x00\x01\x00\x00\x00", "big": b"\x01\x12\x00\x03\x00\x00\x00\x01"}


class Orientation(NamedTuple):
    """Rows and columns are exchanged first, then their order is reversed."""

    exchanged: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    def upright(self, image: np.ndarray) -> np.ndarray:
        """Turn and mirror an image (height, width, channels)."""
        image = image.swapaxes(0, 1) if self.exchanged else image
        image = image[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1]
        return np.ascontiguousarray(image)  # torch takes no negative stride

    def upright_size(self, height: int, width: int) -> tuple[int, int]:
        return (width, height) if self.exchanged else (height, width)


_OF_EXIF = {
    2: Orientation(columns_reversed=True),
    3: Orientation(rows_reversed=True, columns_reversed=True),
    4: Orientation(rows_reversed=True),
    5: Orientation(exchanged=True),
    6: Orientation(exchanged=True, columns_reversed=True),
    7: Orientation(exchanged=True, rows_reversed=True, columns_reversed=True),
    8: Orientation(exchanged=True, rows_reversed=True),
}


def orientation_of_image(content: bytes) -> Orientation:
    """By the Exif tag of a JPEG, PNG or WebP file, which FFmpeg heeds in some formats and versions only."""
    match = _EXIF.search(content)
    if match is None:
        return Orientation()
    order: Any = "little" if match[1][:2] == b"II" else "big"
    directory = match.start(1) + int.from_bytes(match[2], order)
    for entry in range(int.from_bytes(content[directory : directory + 2], order)):
        start = directory + 2 + 12 * entry
        if content[start : start + 8] == _ORIENTATION_TAG[order]:
            return _OF_EXIF.get(int.from_bytes(content[start + 8 : start + 10], order), Orientation())
        if start > len(content):
            break
    return Orientation()


def orientation_of_frame(frame: VideoFrame) -> Orientation:
    """By its display matrix, to the nearest quarter turn."""
    if _filtered(frame, [("sidedata", f"mode=select:type={_DISPLAY_MATRIX}")]) is None:
        return Orientation()
    others = (number for number in range(_SIDE_DATA_TYPES) if number != _DISPLAY_MATRIX)
    # a tiny copy, since reading side data keeps the picture until garbage is collected
    tiny = ("scale", "2:2:flags=neighbor")
    copy = _filtered(frame, [*(("sidedata", f"mode=delete:type={number}") for number in others), tiny])
    side_data = copy.side_data if copy else {}
    matrix = side_data.get("DISPLAYMATRIX")
    if matrix is None or matrix.buffer_size < _MATRIX_BYTES:
        return Orientation()
    # x' = a·x + c·y and y' = b·x + d·y
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    exchanged = abs(b) + abs(c) > abs(a) + abs(d)
    if exchanged:
        a, d = c, b
    return Orientation(exchanged, d < 0, a < 0)


def _filtered(frame: VideoFrame, filters: Sequence[tuple[str, str]]) -> Any:
    """A frame behind filters; None for one that does not pass."""
    graph = Graph()
    with suppress(AttributeError):  # before PyAV 18
        graph.threads = 1  # starting threads takes longer than all the rest
    source = last = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
    )
    for name, arguments in [*filters, ("buffersink", None)]:
        following = graph.add(name, arguments)
        last.link_to(following)
        last = following
    graph.configure()
    source.push(frame)
    try:
        return last.pull()
    except (BlockingIOError, EOFError):
        return None
