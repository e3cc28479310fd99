"""What the headers of H.264 and HEVC have in common: units, numbers in bits, how pictures are counted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

_START_CODE = re.compile(rb"\x00\x00\x01")
_UNIT_BYTES = 1024  # more than parameter sets have
HEADER_BYTES = 64  # of a slice: more than what is read of it


class Picture(NamedTuple):
    """A picture's place in the order of showing, by (period, order), and how pictures depend on each other."""

    period: int
    order: int
    is_referenced: bool = True  # by others
    # HEVC alone: the pictures of its period that are kept for it or for later ones, by order: whether it needs them
    kept: Mapping[int, bool] = MappingProxyType({})


class NotCovered(Exception):
    """The headers do not tell which pictures there are."""


def remember(sets: dict[tuple[int, int], bytes], unit: bytes, number: int) -> None:
    """Raises NotCovered where a parameter set takes the place of another: pictures depend on which was read last."""
    content = unit.partition(b"\x00\x00\x01")[0].rstrip(b"\0")
    if sets.setdefault((unit[0], number), content) != content:
        raise NotCovered("parameter sets that change")


def high_part(low: int, before: tuple[int, int], size: int) -> int:
    """The multiple of `size` that makes the whole number nearest to the one before."""
    high, low_before = before
    if low < low_before and low_before - low >= size // 2:
        return high + size
    if low > low_before and low - low_before > size // 2:
        return high - size
    return high


def units(content: bytes, width: int) -> Iterator[bytes]:
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


def counted(content: bytes, count: int) -> tuple[list[bytes], bytes]:
    """So many units, each after its length in two bytes, and what follows them."""
    units = []
    for _ in range(count):
        end = 2 + int.from_bytes(content[:2], "big")
        units.append(content[2:end])
        content = content[end:]
    return units, content


class Bits:
    """Numbers out of a unit. Raises IndexError at its end.

    Args:
        content: of the unit.
        escaped: whether bytes were put into it that keep start codes out, as in H.264 and HEVC.
    """

    def __init__(self, content: bytes, *, escaped: bool = True) -> None:
        if escaped:
            content = content.replace(b"\x00\x00\x03", b"\x00\x00")
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
