"""Which pictures the packets of a stream hold and in which order they are shown, by their headers, without decoding.

Decoders go by these headers; the timestamps of a file may say something else. See ITU-T H.264 (7.3, 8.2.1), H.265
(7.3, 8.3.1), H.262 (6.2.3), ISO/IEC 14496-2 (6.2.5) and RFC 6386 (9.1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext

# every packet is a picture, shown in the order of decoding
_PLAIN = frozenset(
    {"vp9", "av1", "libdav1d", "mjpeg", "prores", "dnxhd", "ffv1", "huffyuv", "ffvhuff", "rawvideo", "dvvideo"}
    | {"h263", "flv", "wmv1", "wmv2", "msmpeg4", "msmpeg4v2", "msmpeg4v1"}
)
_START_CODE = re.compile(rb"\x00\x00\x01")
_UNIT_BYTES = 1024  # more than parameter sets have
_HEADER_BYTES = 64  # of a slice: more than what is read of it
_HIGH_PROFILES = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})
_SHORTEST_MPEG4_PICTURE = 10  # bytes; a shorter one marks a missing frame


class Picture(NamedTuple):
    """A picture's place in the order of showing, by (period, order), and how pictures depend on each other."""

    period: int
    order: int
    is_referenced: bool = True  # by others
    # HEVC alone: the pictures of its period that are kept for it or for later ones, by order: whether it needs them
    kept: Mapping[int, bool] = MappingProxyType({})


class NotCovered(Exception):
    """The headers do not tell which pictures there are."""


def picture_headers(codec: VideoCodecContext) -> Callable[[bytes], Picture | None] | None:
    """A function that takes the packets of a stream in the order of decoding and returns the picture of each.

    It returns None of a packet that shows nothing, and raises NotCovered. None: not known for this codec.
    """
    try:
        if codec.name == "h264":
            return _H264(codec.extradata).picture
        if codec.name == "hevc":
            return _Hevc(codec.extradata).picture
    except (IndexError, KeyError, NotCovered):
        return None
    if codec.name in _MPEG:
        return _Mpeg(codec.name).picture
    if codec.name == "vp8":  # some frames are only referred to
        return lambda packet: Picture(0, 0) if packet[0] & 0x10 else None
    return (lambda _: Picture(0, 0)) if codec.name in _PLAIN else None


_MPEG = {"mpeg1video": b"\x00\x00\x01\x00", "mpeg2video": b"\x00\x00\x01\x00", "mpeg4": b"\x00\x00\x01\xb6"}


class _Mpeg:
    """MPEG-1, -2 and -4: a B picture is shown at once, any other when the next of them comes."""

    def __init__(self, codec: str) -> None:
        self._is_mpeg4, self._start_code = codec == "mpeg4", _MPEG[codec]
        self._others = 0

    def picture(self, packet: bytes) -> Picture | None:
        start = packet.find(self._start_code) + 4
        if self._is_mpeg4 and (len(packet) < _SHORTEST_MPEG4_PICTURE or packet.find(self._start_code, start) >= 0):
            raise NotCovered("a packet of two frames, or in place of one")
        if start < 4 or start + 1 >= len(packet):
            return None
        is_b = packet[start] >> 6 == 2 if self._is_mpeg4 else packet[start + 1] >> 3 & 7 == 3
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
            parameter_sets = _counted(extradata[6:], extradata[5] & 31)
            for unit in (*parameter_sets[0], *_counted(parameter_sets[1][1:], parameter_sets[1][0])[0]):
                self._parameters(unit)
        else:
            for unit in _units(extradata or b"", 0):
                self._parameters(unit)

    def picture(self, packet: bytes) -> Picture | None:
        """None where the packet holds no picture. Raises NotCovered."""
        try:
            for unit in _units(packet, self._width):
                kind = unit[0] & 31
                if kind in (1, 2, 5):
                    return self._slice(unit)
                if kind in (7, 8):
                    self._parameters(unit)
        except (IndexError, KeyError, ValueError) as error:
            raise NotCovered(f"{error!r}") from None
        return None

    def _parameters(self, unit: bytes) -> None:
        bits = _Bits(unit[1:])
        if unit[0] & 31 == 8:
            number = bits.golomb()
            _remember(self._sets, unit, number)
            self._sequence_of[number] = bits.golomb()
            return
        profile = bits.number(8)
        bits.number(16)
        number = bits.golomb()
        _remember(self._sets, unit, number)
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
        # as `_Bits` does, but many times faster
        header = unit[1:_HEADER_BYTES].replace(b"\x00\x00\x03", b"\x00\x00")
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
        high = _high_part(low, self._before, 1 << sequence.order_bits)
        if is_referenced:
            self._before = high, low
        return Picture(self._period, high + low, is_referenced)


class _H264Sequence(NamedTuple):
    separate_planes: bool
    frame_num_bits: int
    order_bits: int  # 0: shown in the order of decoding
    frames_only: bool
    may_have_gaps: bool  # in the numbers of frames


class _Hevc:
    """Reads the first slice of each packet, in decode order.

    Args:
        extradata: of the codec.
    """

    def __init__(self, extradata: bytes | None) -> None:
        self._width = 0
        self._sets: dict[tuple[int, int], bytes] = {}
        self._sequences: dict[int, _HevcSequence] = {}
        self._pictures: dict[int, tuple[int, int, int]] = {}  # picture parameters: sequence, extra bits, output flag
        self._period = 0
        self._before = (0, 0)
        units: list[bytes] = []
        if extradata and extradata[0] == 1:
            self._width = (extradata[21] & 3) + 1
            rest = extradata[23:]
            for _ in range(extradata[22]):
                found, rest = _counted(rest[3:], int.from_bytes(rest[1:3], "big"))
                units += found
        else:
            units += _units(extradata or b"", 0)
        for unit in units:
            self._parameters(unit)

    def picture(self, packet: bytes) -> Picture | None:
        """None where the packet holds no picture. Raises NotCovered."""
        try:
            for unit in _units(packet, self._width):
                kind = unit[0] >> 1 & 63
                if kind < 32:
                    return self._slice(unit, kind)
                self._parameters(unit)
        except (IndexError, KeyError) as error:
            raise NotCovered(f"{error!r}") from None
        return None

    def _parameters(self, unit: bytes) -> None:
        kind, bits = unit[0] >> 1 & 63, _Bits(unit[2:])
        if kind == 34:
            number, sequence = bits.golomb(), bits.golomb()
            _remember(self._sets, unit, number)
            bits.number(1)
            output_flag = bits.number(1)
            self._pictures[number] = sequence, bits.number(3), output_flag
        elif kind == 33:
            bits.number(4)
            layers = bits.number(3)
            bits.number(1 + 96)
            present = [(bits.number(1), bits.number(1)) for _ in range(layers)]
            bits.number(2 * (8 - layers) if layers else 0)
            for has_profile, has_level in present:
                bits.number(88 * has_profile + 8 * has_level)
            number = bits.golomb()
            _remember(self._sets, unit, number)
            self._sequences[number] = _hevc_sequence(bits, layers)

    def _slice(self, unit: bytes, kind: int) -> Picture:
        bits = _Bits(unit[2:_HEADER_BYTES])
        if not bits.number(1):
            raise NotCovered("a picture without its first slice")
        if 16 <= kind <= 23:
            bits.number(1)
        sequence, extra_bits, output_flag = self._pictures[bits.golomb()]
        bits.number(extra_bits)
        bits.golomb()
        if output_flag and not bits.number(1):
            raise NotCovered("pictures that are not shown")
        if kind in (19, 20):
            self._period, self._before = self._period + 1, (0, 0)
            return Picture(self._period, 0)
        order_bits, kept_sets, has_long_term = self._sequences[sequence]
        low = bits.number(order_bits)
        if not bits.number(1):
            kept = _kept_set(bits, kept_sets, in_slice=True)
        else:
            kept = kept_sets[bits.number((len(kept_sets) - 1).bit_length())]
        if has_long_term and bits.golomb():
            raise NotCovered("long-term reference pictures")
        if 16 <= kind <= 18:  # a broken link: counting begins anew
            self._period, self._before = self._period + 1, (0, low)
        high = _high_part(low, self._before, 1 << order_bits)
        order = high + low
        # what may be left out of a stream is not counted from: upper layers, pictures that lead a key frame
        if unit[1] & 7 == 1 and (kind > 15 or kind in (1, 3, 5)):
            self._before = high, low
        is_key = 16 <= kind <= 23
        return Picture(self._period, order, kept={order + step: needs and not is_key for step, needs in kept.items()})


class _HevcSequence(NamedTuple):
    order_bits: int
    kept_sets: list[dict[int, bool]]  # steps in order to pictures that are kept: whether the picture needs them
    has_long_term: bool


def _hevc_sequence(bits: _Bits, layers: int) -> _HevcSequence:
    """The rest of a sequence parameter set (7.3.2.2), from the format of its colours on."""
    if bits.golomb() == 3 and bits.number(1):
        raise NotCovered("separate colour planes")
    bits.golombs(2)
    if bits.number(1):
        bits.golombs(4)
    bits.golombs(2)
    order_bits = bits.golomb() + 4
    bits.golombs(3 * (layers + 1 if bits.number(1) else 1))
    bits.golombs(6)
    if bits.number(1) and bits.number(1):
        raise NotCovered("scaling lists in the sequence parameters")
    bits.number(2)
    if bits.number(1):
        bits.number(8)
        bits.golombs(2)
        bits.number(1)
    kept_sets: list[dict[int, bool]] = []
    for _ in range(bits.golomb()):
        kept_sets.append(_kept_set(bits, kept_sets))
    has_long_term = bool(bits.number(1))
    if has_long_term and bits.golomb():
        raise NotCovered("long-term reference pictures")
    return _HevcSequence(order_bits, kept_sets, has_long_term)


def _kept_set(bits: _Bits, former: list[dict[int, bool]], *, in_slice: bool = False) -> dict[int, bool]:
    """A short-term reference picture set (7.3.7): the negative steps first, the nearest first, as others count them."""
    kept = {}
    if former and bits.number(1):  # told by its difference from another
        other = former[-1 - (bits.golomb() if in_slice else 0)]
        sign = bits.number(1)
        difference = (1 - 2 * sign) * (bits.golomb() + 1)
        for step in (*other, 0):
            needs = bool(bits.number(1))
            if needs or bits.number(1):
                kept[step + difference] = needs
        kept.pop(0, None)
    else:
        counts = bits.golomb(), bits.golomb()
        for direction, count in zip((-1, 1), counts, strict=True):
            step = 0
            for _ in range(count):
                step += direction * (bits.golomb() + 1)
                kept[step] = bool(bits.number(1))
    return {step: kept[step] for step in sorted(kept, key=lambda step: (step > 0, abs(step)))}


def _remember(sets: dict[tuple[int, int], bytes], unit: bytes, number: int) -> None:
    """Raises NotCovered where a parameter set takes the place of another: pictures depend on which was read last."""
    content = unit.partition(b"\x00\x00\x01")[0].rstrip(b"\0")
    if sets.setdefault((unit[0], number), content) != content:
        raise NotCovered("parameter sets that change")


def _high_part(low: int, before: tuple[int, int], size: int) -> int:
    """The multiple of `size` that makes the whole number nearest to the one before."""
    high, low_before = before
    if low < low_before and low_before - low >= size // 2:
        return high + size
    if low > low_before and low - low_before > size // 2:
        return high - size
    return high


def _units(content: bytes, width: int) -> Iterator[bytes]:
    """The beginnings of a packet's units, which are led by lengths of `width` bytes, or (0) by start codes."""
    if not width:
        for code in _START_CODE.finditer(content):
            yield content[code.end() : code.end() + _UNIT_BYTES]
        return
    end = 0
    while end + width < len(content):
        start = end + width
        end = start + int.from_bytes(content[end:start], "big")
        yield content[start : min(end, start + _UNIT_BYTES)]


def _counted(content: bytes, count: int) -> tuple[list[bytes], bytes]:
    """So many units, each after its length in two bytes, and what follows them."""
    units = []
    for _ in range(count):
        end = 2 + int.from_bytes(content[:2], "big")
        units.append(content[2:end])
        content = content[end:]
    return units, content


class _Bits:
    """Numbers out of a unit. Raises IndexError at its end."""

    def __init__(self, content: bytes) -> None:
        content = content.replace(b"\x00\x00\x03", b"\x00\x00")  # what keeps start codes out of a unit
        self._value, self._left = int.from_bytes(content, "big"), 8 * len(content)

    def number(self, bits: int) -> int:
        if bits > self._left:
            raise IndexError("the header is cut off")
        self._left -= bits
        value = self._value >> self._left
        self._value &= (1 << self._left) - 1
        return value

    def golomb(self) -> int:
        """An unsigned Exp-Golomb code."""
        return self.number(2 * (self._left - self._value.bit_length()) + 1) - 1

    def golombs(self, count: int) -> None:
        """Pass over so many."""
        for _ in range(count):
            self.golomb()
