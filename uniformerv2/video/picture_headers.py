"""Which pictures the packets of a stream hold and in which order they are shown, by their headers, without decoding.

Decoders go by these headers; the timestamps of a file may say something else. See ITU-T H.264 (7.3, 8.2.1), H.265
(7.3, 8.3.1), H.262 (6.2.3), ISO/IEC 14496-2 (6.2.3), RFC 6386 (9.1) and 9043 (4.9).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from uniformerv2.video.hevc_headers import Hevc
from uniformerv2.video.mpeg4_headers import Mpeg4
from uniformerv2.video.units import HEADER_BYTES, Bits, NotCovered, Picture, counted, high_part, remember, units

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext

# Every packet is a picture, shown in the order of decoding. H.263 and what was made of it (FLV1, WMV, MS-MPEG-4) are
# not here: of damaged pictures their decoders make what they have in memory, and such videos are small enough to be
# decoded from their start.
_PLAIN = frozenset({"vp9", "av1", "libdav1d", "mjpeg", "prores", "dnxhd", "huffyuv", "ffvhuff", "rawvideo", "dvvideo"})
_HIGH_PROFILES = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})


def picture_headers(codec: VideoCodecContext) -> Callable[[bytes], Picture | None] | None:
    """A function that takes the packets of a stream in the order of decoding and returns the picture of each.

    It returns None of a packet that shows nothing, and raises NotCovered. None: not known for this codec.
    """
    try:
        if codec.name == "h264":
            return _H264(codec.extradata).picture
        if codec.name == "hevc":
            return Hevc(codec.extradata).picture
        if codec.name == "mpeg4":
            return Mpeg4(codec.extradata, codec.codec_tag).picture
    except (IndexError, KeyError, NotCovered, UnicodeDecodeError):  # the last of a tag that is no text
        return None
    if codec.name in MPEG:
        return _Mpeg().picture
    if codec.name == "ffv1":
        return _ffv1
    if codec.name == "vp8":  # some frames are only referred to
        return lambda packet: Picture(0, 0) if packet[0] & 0x10 else None
    return (lambda _: Picture(0, 0)) if codec.name in _PLAIN else None


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ffv1(packet: bytes) -> Picture:
    """By the checksums of its slices (RFC 9043, 4.9): damage is concealed with the picture before, in silence."""
    end = len(packet)
    while end:
        start = end - 8 - int.from_bytes(packet[end - 8 : end - 5], "big")
        # zlib's polynomial with the bits in the other order, and without its inversions
        if not 0 <= start < end - 8 or ~crc32(packet[start:end].translate(_MIRRORED), 0xFFFFFFFF) & 0xFFFFFFFF:
            raise NotCovered("a damaged slice, or none has a checksum")
        end = start
    return Picture(0, 0)


MPEG = frozenset({"mpeg1video", "mpeg2video", "mpeg4"})  # whose pictures are shown with the next that others refer to


class _Mpeg:
    """MPEG-1 and -2: a B picture is shown at once."""

    def __init__(self) -> None:
        self._others = 0

    def picture(self, packet: bytes) -> Picture | None:
        start = packet.find(b"\x00\x00\x01\x00") + 4
        if start < 4 or start + 1 >= len(packet):
            return None
        is_b = packet[start + 1] >> 3 & 7 == 3
        self._others += not is_b
        return Picture(self._others, not is_b, is_referenced=not is_b)


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
