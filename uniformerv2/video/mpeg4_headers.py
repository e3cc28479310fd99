"""Which pictures the packets of an MPEG-4 stream hold, by ISO/IEC 14496-2, 6.2.3 to 6.2.5."""

from __future__ import annotations

import re

from uniformerv2.video.units import Bits, NotCovered, Picture

_SHORTEST_PICTURE = 10  # bytes; a shorter one marks a missing frame
_PICTURE = b"\x00\x00\x01\xb6"
_LAYER = re.compile(rb"\x00\x00\x01[\x20-\x2f]")
_TIME_CODE = re.compile(rb"\x00\x00\x01\xb3.*?(?=\x00\x00\x01|\Z)", re.DOTALL)  # of a group
_ENCODER = re.compile(rb"\x00\x00\x01\xb2(.{,10})", re.DOTALL)
_WITHOUT_FAULTS = re.compile(rb"Lavc(5[0-489]|[6-9]\d)\.|XviD00(3[3-9]|[4-9]\d)")
_TAGS_WITH_FAULTS = frozenset({"DIVX", "RMP4", "SIPP", "UMP4", "XVID", "XVIX", "ZMP4"})  # unless the encoder is stated


class Mpeg4:
    """Reads the header of each packet, in decode order: a B picture is shown at once, any other with the next of these.

    What the decoder makes of a picture must not depend on those before its group. So the faults of an old encoder,
    which it learns of along the way, and what makes it doubt its parameters are not covered.

    Args:
        extradata: of the codec.
        tag: of the codec.

    Raises:
        NotCovered: the extradata do not describe the stream.
        IndexError: they are cut off.
    """

    def __init__(self, extradata: bytes | None, tag: str) -> None:
        self._headers, self._tag, self._others = extradata or b"", tag, 0
        self._parameters = b""  # of the first key frame that has any
        layer = _LAYER.search(self._headers)
        if layer is None:
            raise NotCovered("no video object layer")
        self._is_interlaced, self._time_bits = _layer(self._headers[layer.end() :])

    def picture(self, packet: bytes) -> Picture | None:
        """None where the packet holds no picture. Raises NotCovered."""
        start = packet.find(_PICTURE) + 4
        if len(packet) < _SHORTEST_PICTURE or packet.find(_PICTURE, start) >= 0:
            raise NotCovered("a packet of two frames, or in place of one")
        if start < 4:
            return None
        if start > 4:
            self._check_parameters(_TIME_CODE.sub(b"", packet[: start - 4]))
        if self._others == 0 and _has_faults(self._headers + self._parameters, self._tag):
            raise NotCovered("an encoder with faults that the decoder learns of")
        # two bits of the kind, a 1 for each second, 0, 1, the time, 1; `Bits` would take ten times as long
        value = int.from_bytes(packet[start : start + 16].ljust(16, b"\0"), "big")
        is_b = value >> 126 == 2
        last = (~value & (1 << 126) - 1).bit_length() - 3 - self._time_bits  # place of the last 1
        if last < 0 or not value >> last & value >> last + self._time_bits + 1 & 1:
            raise NotCovered("a damaged time, by which the decoder corrects how long times are")
        if is_b and self._is_interlaced:
            raise NotCovered("fields of B-frames, which are scaled by the time of the first B-frame that was decoded")
        self._others += not is_b
        return Picture(self._others, not is_b, is_referenced=not is_b)

    def _check_parameters(self, parameters: bytes) -> None:
        if parameters:
            self._parameters = self._parameters or parameters
            if parameters != self._parameters:
                raise NotCovered("parameters that change, or are damaged")


def _has_faults(headers: bytes, tag: str) -> bool:
    encoders = _ENCODER.findall(headers)
    return not all(map(_WITHOUT_FAULTS.match, encoders)) if encoders else tag in _TAGS_WITH_FAULTS


def _layer(content: bytes) -> tuple[bool, int]:
    """Of a video object layer: whether it may be interlaced, and the bits of its times."""
    number = Bits(content, escaped=False).number
    number(9)
    if number(1):
        number(7)
    if number(4) == 15:
        number(16)
    if number(1):
        number(3)
        if number(1):
            number(79)
    if number(2):
        raise NotCovered("another shape than a rectangle")
    number(1)
    resolution = number(16)
    number(1)
    bits = max((resolution - 1).bit_length(), 1)
    if number(1):
        number(bits)
    number(29)
    return bool(number(1)), bits
