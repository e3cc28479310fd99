"""Which pictures the packets of a stream hold and in which order they are shown, by their headers, without decoding.

Decoders go by these headers; the timestamps of a file may say something else. See ITU-T H.264 (7.3, 8.2.1), H.265
(7.3, 8.3.1), H.262 (6.2.3), ISO/IEC 14496-2 (6.2.5) and RFC 6386 (9.1).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from uniformerv2.video.hevc_headers import Hevc
from uniformerv2.video.units import HEADER_BYTES, Bits, NotCovered, Picture, counted, high_part, remember, units

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext

# Every packet is a picture, shown in the order of decoding. H.263 is not here: in a lost part of a picture its decoder
# leaves what was in memory, and its videos are small enough to be decoded from their start.
_PLAIN = frozenset(
    {"vp9", "av1", "libdav1d", "mjpeg", "prores", "dnxhd", "ffv1", "huffyuv", "ffvhuff", "rawvideo", "dvvideo"}
    | {"flv", "wmv1", "wmv2", "msmpeg4", "msmpeg4v2", "msmpeg4v1"}
)
_HIGH_PROFILES = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})
_SHORTEST_MPEG4_PICTURE = 10  # bytes; a shorter one marks a missing frame


def picture_headers(codec: VideoCodecContext) -> Callable[[bytes], Picture | None] | None:
    """A function that takes the packets of a stream in the order of decoding and returns the picture of each.

    It returns None of a packet that shows nothing, and raises NotCovered. None: not known for this codec.
    """
    try:
        if codec.name == "h264":
            return _H264(codec.extradata).picture
        if codec.name == "hevc":
            return Hevc(codec.extradata).picture
    except (IndexError, KeyError, NotCovered):
        return None
    if codec.name in MPEG:
        return _Mpeg(codec.name, codec.extradata).picture
    if codec.name == "vp8":  # some frames are only referred to
        return lambda packet: Picture(0, 0) if packet[0] & 0x10 else None
    return (lambda _: Picture(0, 0)) if codec.name in _PLAIN else None


MPEG = {"mpeg1video": b"\x00\x00\x01\x00", "mpeg2video": b"\x00\x00\x01\x00", "mpeg4": b"\x00\x00\x01\xb6"}


class _Mpeg:
    """MPEG-1, -2 and -4: a B picture is shown at once, any other when the next of them comes."""

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        self._is_mpeg4, self._start_code = codec == "mpeg4", MPEG[codec]
        self._others, self._parameters = 0, b""  # of the first key frame that has any
        self._may_be_interlaced = self._is_mpeg4 and not _is_progressive(extradata or b"")

    def picture(self, packet: bytes) -> Picture | None:
        start = packet.find(self._start_code) + 4
        if self._is_mpeg4 and (len(packet) < _SHORTEST_MPEG4_PICTURE or packet.find(self._start_code, start) >= 0):
            raise NotCovered("a packet of two frames, or in place of one")
        if start < 4 or start + 1 >= len(packet):
            return None
        if self._is_mpeg4 and start > 4 and (parameters := _TIME_CODE.sub(b"", packet[: start - 4])):
            self._parameters = self._parameters or parameters
            if parameters != self._parameters:
                raise NotCovered("parameters that change, or are damaged")
        is_b = packet[start] >> 6 == 2 if self._is_mpeg4 else packet[start + 1] >> 3 & 7 == 3
        if is_b and self._may_be_interlaced:
            raise NotCovered("fields of B-frames, which are scaled by the time of the first B-frame that was decoded")
        self._others += not is_b
        return Picture(self._others, not is_b, is_referenced=not is_b)


_TIME_CODE = re.compile(rb"\x00\x00\x01\xb3.*?(?=\x00\x00\x01|\Z)", re.DOTALL)  # of a group


def _is_progressive(extradata: bytes) -> bool:
    """Whether the video object layer of MPEG-4 (ISO/IEC 14496-2, 6.2.3) says so; False where it cannot be read."""
    start = re.search(rb"\x00\x00\x01[\x20-\x2f]", extradata)
    if start is None:
        return False
    number = Bits(extradata[start.end() :].ljust(40, b"\0"), escaped=False).number
    number(9)
    if number(1):
        number(7)
    if number(4) == 15:
        number(16)
    if number(1):
        number(3)
        if number(1):
            number(79)
    if number(2):  # another shape than a rectangle
        return False
    number(1)
    resolution = number(16)
    number(1)
    if number(1):
        number(max((resolution - 1).bit_length(), 1))
    number(29)
    return not number(1)


class _H264:
    """Reads the first slice of each packet, in decode order.

    Args:
        extradata: of the codec.
    """

    def __init__(self, extradata: bytes | None) -> None:
        self._width = 0  # bytes of the length before each unit; 0: start codes
        self._sets: dict[tuple[int, int], bytes] = {}
        self._sequences: dict[int, _H264Sequence] = {}
        self._sequence_of: dict[int, int] = {}  # by number of the picture parameter set
        self._period = self._count = 0
        self._frame_num = 0  # of the last picture that others refer to
        self._before = (0, 0)  # of the reference picture before: multiple of the low part's range, and low part
        if extradata and extradata[0] == 1:
            self._width = (extradata[4] & 3) + 1
            parameter_sets = counted(extradata[6:], extradata[5] & 31)
            for unit in (*parameter_sets[0], *counted(parameter_sets[1][1:], parameter_sets[1][0])[0]):
                self._parameters(unit)
        else:
            for unit in units(extradata or b"", 0):
                self._parameters(unit)

    def picture(self, packet: bytes) -> Picture | None:
        """None where the packet holds no picture. Raises NotCovered."""
        try:
            for unit in units(packet, self._width):
                kind = unit[0] & 31
                if kind in (1, 2, 5):
                    return self._slice(unit)
                if kind in (7, 8):
                    self._parameters(unit)
        except (IndexError, KeyError, ValueError) as error:
            raise NotCovered(f"{error!r}") from None
        return None

    def _parameters(self, unit: bytes) -> None:
        bits = Bits(unit[1:])
        if unit[0] & 31 == 8:
            number = bits.golomb()
            remember(self._sets, unit, number)
            self._sequence_of[number] = bits.golomb()
            return
        profile = bits.number(8)
        bits.number(16)
        number = bits.golomb()
        remember(self._sets, unit, number)
        separate_planes = False
        if profile in _HIGH_PROFILES:
            if bits.golomb() == 3:  # chroma_format_idc
                separate_planes = bool(bits.number(1))
            bits.golomb()
            bits.golomb()
            bits.number(1)
            if bits.number(1):
                raise NotCovered("scaling matrices in the sequence parameters")
        frame_num_bits = bits.golomb() + 4
        kind = bits.golomb()  # pic_order_cnt_type
        if kind == 1:
            raise NotCovered("pic_order_cnt_type 1")
        order_bits = bits.golomb() + 4 if kind == 0 else 0
        bits.golomb()
        may_have_gaps = bool(bits.number(1))
        bits.golombs(2)
        frames_only = bool(bits.number(1))
        self._sequences[number] = _H264Sequence(separate_planes, frame_num_bits, order_bits, frames_only, may_have_gaps)

    def _slice(self, unit: bytes) -> Picture:
        is_referenced, is_start = bool(unit[0] & 0x60), unit[0] & 31 == 5
        # as `Bits` does, but many times faster
        header = unit[1:HEADER_BYTES].replace(b"\x00\x00\x03", b"\x00\x00")
        value, left, number = int.from_bytes(header, "big"), 8 * len(header), 0
        for _ in range(3):  # first_mb_in_slice, slice_type, pic_parameter_set_id
            left -= 2 * (left - value.bit_length()) + 1
            if left < 0:
                raise NotCovered("the header is cut off")
            number = (value >> left) - 1
            value &= (1 << left) - 1
        sequence = self._sequences[self._sequence_of[number]]
        left -= 2 * sequence.separate_planes + sequence.frame_num_bits
        frame_num = value >> left & (1 << sequence.frame_num_bits) - 1
        step = (frame_num - self._frame_num) % (1 << sequence.frame_num_bits)
        if step != 1 and not is_start and not sequence.may_have_gaps:
            raise NotCovered("a lost picture, in whose place the decoder puts what it has")
        if is_referenced:
            self._frame_num = frame_num
        if not sequence.frames_only:
            left -= 1
            if value >> left & 1:
                raise NotCovered("pictures in two fields")
        value &= (1 << left) - 1
        if is_start:
            left -= 2 * (left - value.bit_length()) + 1  # idr_pic_id
            self._period, self._before = self._period + 1, (0, 0)
        self._count += 1
        if not sequence.order_bits:
            return Picture(self._period, self._count, is_referenced)
        left -= sequence.order_bits
        low = value >> left & (1 << sequence.order_bits) - 1
        high = high_part(low, self._before, 1 << sequence.order_bits)
        if is_referenced:
            self._before = high, low
        return Picture(self._period, high + low, is_referenced)


class _H264Sequence(NamedTuple):
    separate_planes: bool
    frame_num_bits: int
    order_bits: int  # 0: shown in the order of decoding
    frames_only: bool
    may_have_gaps: bool  # in the numbers of frames
