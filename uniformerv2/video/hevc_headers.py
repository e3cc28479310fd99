"""Which pictures the packets of an HEVC stream hold, by ITU-T H.265, 7.3 and 8.3.1."""

from __future__ import annotations

from typing import NamedTuple

from uniformerv2.video.units import HEADER_BYTES, Bits, NotCovered, Picture, counted, high_part, remember, units


class Hevc:
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
        parameter_sets: list[bytes] = []
        if extradata and extradata[0] == 1:
            self._width = (extradata[21] & 3) + 1
            rest = extradata[23:]
            for _ in range(extradata[22]):
                found, rest = counted(rest[3:], int.from_bytes(rest[1:3], "big"))
                parameter_sets += found
        else:
            parameter_sets += units(extradata or b"", 0)
        for unit in parameter_sets:
            self._parameters(unit)

    def picture(self, packet: bytes) -> Picture | None:
        """None where the packet holds no picture. Raises NotCovered."""
        try:
            for unit in units(packet, self._width):
                kind = unit[0] >> 1 & 63
                if kind < 32:
                    return self._slice(unit, kind)
                self._parameters(unit)
        except (IndexError, KeyError) as error:
            raise NotCovered(f"{error!r}") from None
        return None

    def _parameters(self, unit: bytes) -> None:
        kind, bits = unit[0] >> 1 & 63, Bits(unit[2:])
        if kind == 34:
            number, sequence = bits.golomb(), bits.golomb()
            remember(self._sets, unit, number)
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
            remember(self._sets, unit, number)
            self._sequences[number] = _hevc_sequence(bits, layers)

    def _slice(self, unit: bytes, kind: int) -> Picture:
        bits = Bits(unit[2:HEADER_BYTES])
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
        high = high_part(low, self._before, 1 << order_bits)
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


def _hevc_sequence(bits: Bits, layers: int) -> _HevcSequence:
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


def _kept_set(bits: Bits, former: list[dict[int, bool]], *, in_slice: bool = False) -> dict[int, bool]:
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
