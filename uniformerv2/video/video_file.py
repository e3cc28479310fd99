"""A video file, or the content of one: it is indexed, decoded where the index says, and else from its start."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import accumulate, chain, pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from uniformerv2.errors import VideoError
from uniformerv2.machine import available_cores
from uniformerv2.video.container import guarded
from uniformerv2.video.decoding import ROUNDING, ReadStatistics
from uniformerv2.video.groups import GroupDamaged, GroupDecoder, read_index
from uniformerv2.video.limits import Limits
from uniformerv2.video.orientation import Orientation
from uniformerv2.video.packet_index import PacketIndex
from uniformerv2.video.packets import PacketSource, Reading, Undecodable
from uniformerv2.video.pictures import Pictures

if TYPE_CHECKING:
    from av import VideoFrame

    Frames = Generator[tuple[int, VideoFrame], None, None]


class VideoFile:
    """Upright images of whatever FFmpeg can read as a video.

    Where the packets tell the frames, a wanted frame is decoded from the key frame before it. Where that shows damage
    after all, the frames from that key frame to the next are those of decoding from the start, which conceals damage
    best; a frame that is lost even so is shown as the one before it, for a second at most.
    """

    def __init__(self, source: str | Path | bytes, name: str, threads: int, limits: Limits) -> None:
        try:
            size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        except OSError as error:
            raise VideoError(f"{name}: {error.strerror}") from None
        if size == 0:
            raise VideoError(f"{name}: the file is empty")
        self._source = source
        self._reading = Reading(name, limits)
        self._pictures = Pictures(threads)
        self._passes = 0  # how often images were asked for
        self._times: list[float] | None = None  # of the frames that decoding from the start gives, once it was done
        self._ticks: np.ndarray | None = None  # from the first frame to each, once they were asked for
        open_strictly = partial(PacketSource, source, self._reading, threads=threads, strict=True)
        opened = open_strictly()
        # a new decoder does not know of the display matrix of its file
        self._is_stated_by_frames = opened.may_be_turned and not opened.is_renewed
        self.tick, self._stated_rate = opened.tick, opened.stated_rate
        self._index, kept = read_index(opened)
        self._groups: GroupDecoder | None = None
        if self._index is None or self._reading.damage:
            self._index = None
            opened.close()
        else:
            at_once = (threads or available_cores()) if opened.is_apart else 1
            self._groups = GroupDecoder(open_strictly, opened, self._index, kept, at_once=at_once)
        with closing(self._decode([0])) as frames:
            _, first = next(frames)
        self._coded_size = (first.height, first.width)
        with guarded(name):
            is_turned = opened.may_be_turned or first.rotation
            self._orientation = self._pictures.orientation(first) if is_turned else Orientation()
            self.size = self._orientation.upright_size(*self._coded_size)

    def __len__(self) -> int:
        return len(self._frame_times()) if self._index is None else len(self._index.shown)

    @property
    def rate(self) -> float:
        """Frames per second by the times of the frames, else as the file states it."""
        spread = self._frame_times()[-1] if self._index is None else self._index.spread * self.tick
        return (len(self) - 1) / spread if spread > 0 else self._stated_rate

    @property
    def ticks(self) -> np.ndarray:
        """From the first frame to each."""
        if self._ticks is None:
            index = self._index
            ticks = [time / self.tick for time in self._frame_times()] if index is None else index.shown_at()
            self._ticks = np.array(ticks, dtype=np.float64)
        return self._ticks

    def indices_at(self, seconds: np.ndarray) -> np.ndarray:
        """The frame that is shown at each moment; -1 before the first."""
        return np.searchsorted(self.ticks, seconds / self.tick + ROUNDING, side="right") - 1

    def images(self, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Index and uint8 RGB image (height, width, 3) of the wanted frames, which increase.

        Where the index proves wrong midway, some images come once more, and the later ones count.
        """
        height, width = self._coded_size
        self._passes += 1
        this = self._passes
        self._reading.begin()
        with closing(self._decode(wanted)) as frames:
            for index, frame in frames:
                orientation = None if frame.rotation or self._is_stated_by_frames else self._orientation
                with guarded(self._reading.name):
                    image = self._pictures.image(frame, width=width, height=height, orientation=orientation)
                del frame  # or what damage leaves in memory that is used again would depend on the question
                yield index, image
                if self._passes != this:  # the only decoder has moved on
                    raise RuntimeError(f"{self._reading.name}: other frames were read before these had all been read")

    @property
    def damage(self) -> str:
        """Its first sign, in words."""
        return self._reading.damage

    @property
    def statistics(self) -> ReadStatistics:
        indexed = self._groups is not None and not self._groups.damaged
        return ReadStatistics(**self._reading.statistics, indexed=indexed)

    def close(self) -> None:
        """Give back all that is held."""
        if self._groups:
            self._groups.close()

    def _frame_times(self) -> list[float]:
        """Seconds from the first frame to each that decoding from the start gives; at least one frame."""
        if self._times is None:
            self._reading.begin()
            stamps = [(frame.pts, frame.dts) for frame in self._decode_all()]
            presented, decoded = (_steps(times) for times in zip(*stamps, strict=True)) if stamps else ([], [])
            # B-frames that AVI packs have wrong times of presentation, but right ones of decoding
            steps = presented if _rises(presented) or not _rises(decoded) else decoded
            # a clock that stands still or goes back, as where one recording follows another, does not tell a step
            usual = median([step for step in steps if step and step > 0] or [1 / self._stated_rate / self.tick])
            ticks = accumulate((step if step and step > 0 else usual for step in steps), initial=0.0)
            self._times = [tick * self.tick for tick in ticks]
        return self._times

    def _decode(self, wanted: Sequence[int]) -> Frames:
        """Number and frame of the wanted frames, which increase."""
        if self._groups is None or self._index is None:
            with closing(self._decode_counted()) as counted:
                yield from self._picked(counted, wanted)
            return
        with (
            closing(self._decode_timed(self._index)) as from_start,
            closing(self._groups.decode(wanted)) as groups,
        ):
            for numbers, frames in groups:
                try:
                    yield from frames
                except GroupDamaged:
                    yield from self._picked(from_start, numbers)

    def _picked(self, frames: Frames, wanted: Sequence[int]) -> Frames:
        """Those of the frames that are wanted. Raises VideoError where one is not among them."""
        left = iter(wanted)
        number = next(left, None)
        while number is not None:
            found, frame = next(frames, (None, None))
            if found is None or frame is None or found > number:
                cause = f" ({self.damage})" if self.damage else ""
                raise VideoError(f"{self._reading.name}: frame {number} cannot be decoded{cause}")
            if found == number:
                yield number, frame
                number = next(left, None)

    def _decode_timed(self, index: PacketIndex) -> Frames:
        """The frames of the index; for one that cannot be decoded, the one that is shown before it, for a second."""
        expected, before, longest = 0, None, max(round(self.rate), 1)
        for frame in self._decode_all():
            number = index.frame_of(frame.pts)
            if number < expected:
                continue
            if number > expected:
                self._reading.note(f"frame {expected} cannot be decoded")
            for lost in range(expected, min(expected + longest, number)):
                yield lost, before or frame
            yield number, frame
            expected, before = number + 1, frame
        if before is not None and expected < len(index.shown):
            self._reading.note(f"frame {expected} cannot be decoded, nor any after it")
            for lost in range(expected, min(expected + longest, len(index.shown))):
                yield lost, before

    def _decode_counted(self) -> Frames:
        yield from enumerate(self._decode_all())

    def _decode_all(self) -> Iterator[VideoFrame]:
        """Every frame that decoding from the start gives, stepping over what cannot be decoded."""
        # how lost parts are concealed depends on the threads
        with closing(PacketSource(self._source, self._reading, threads=1, strict=False)) as opened:
            for position, packet in enumerate(chain(opened.packets, [None])):  # None: flush
                try:
                    frames = opened.feed(packet)
                except Undecodable as error:
                    self._reading.note(f"packet {position} cannot be decoded: {error}")
                    opened.recover()
                    continue
                for frame in frames:
                    if frame.is_corrupt:
                        self._reading.note(f"packet {position} is damaged")
                    yield frame


def _steps(times: Sequence[int | None]) -> list[int | None]:
    """From each time to the next, in ticks; None where one of them is missing."""
    return [None if one is None or following is None else following - one for one, following in pairwise(times)]


def _rises(steps: Sequence[int | None]) -> bool:
    return all(step is None or step > 0 for step in steps)
