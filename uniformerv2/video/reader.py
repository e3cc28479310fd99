"""Frames of a video at given indices: exactly those of a full sequential decode, at a fraction of its cost.

A video file is indexed once by reading its packets without decoding them. Asked for frames, the reader decodes only
the groups of pictures that hold them, each from its key frame to its last wanted frame, and drops on the way what no
other frame refers to.

That is exact as long as the packets tell the truth, so it is checked all along: complete and unique times, no damaged
packet, a key frame where one was promised, frames in the promised order, every wanted frame found, no decoding error.
Where a check fails, the reader decodes that video from its start and counts; slower, and right by definition.
"""

from __future__ import annotations

import io
import operator
import re
import warnings
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import av
import numpy as np
import torch
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from uniformerv2.errors import VideoError
from uniformerv2.video.packets import is_hidden, is_packed, is_unreferenced
from uniformerv2.video.suffixes import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer

SHORTEST_SIDE = 2  # pixels
UNTIMED_RATE = 25.0  # frames/s where nothing states it, as in a folder of images

_SHORT_GAP = 16  # packets that are read over rather than sought past
_KEPT = 8 << 20  # bytes of packets that are kept once they are read; of a longer video they are read again
_ROUNDING = 1e-6  # of a tick or frame: an inexact number of seconds must not point at the frame before


class VideoWarning(UserWarning):
    """A damaged or truncated video of which the wanted frames could be read all the same."""


class VideoReader:
    """Random access to the frames of a video file, of the content of one, or of a folder of frame images.

    Frame i is the i-th frame that a full sequential decode gives, at constant and at variable frame rate. Display
    rotation and mirroring are applied; the pixel aspect ratio is not. Of several video streams the default one is
    read; cover pictures are not video. Images in a folder are ordered naturally (`2.jpg` before `10.jpg`), must be of
    one size, and play at `UNTIMED_RATE`.

    Args:
        source: path of a file or folder, or the content of a file.
        threads: decoding threads; 0 for as many as the machine has, 1 where many readers run side by side.
        name: what messages call it; None: its path.

    Raises:
        VideoError: there is no frame to read; the message names the file and the reason.
    """

    def __init__(self, source: str | Path | bytes, *, threads: int = 0, name: str | None = None) -> None:
        if threads < 0:
            raise ValueError(f"threads must be 0 (automatic) or more, got {threads}")
        self._name = name or (f"video of {len(source)} bytes" if isinstance(source, bytes) else str(source))
        self._warned = False
        self._frames: _VideoFile | _ImageFolder
        if not isinstance(source, bytes) and Path(source).is_dir():
            self._frames = _ImageFolder(Path(source), threads)
        else:
            self._frames = _VideoFile(source, self._name, threads)
        if min(self._frames.size) < SHORTEST_SIDE:
            raise VideoError(f"{self._name}: {self.width}x{self.height} pixels show nothing")

    def __len__(self) -> int:
        """Number of frames that a full sequential decode gives.

        Free where the packets can be trusted. A video that is visibly damaged, or whose packets are not its frames,
        is decoded once to count. Damage that only decoding shows comes to light when `frames_at` meets it; from then
        on the length is that of what can be decoded.
        """
        return len(self._frames)

    @property
    def rate(self) -> float:
        """Frames per second, on average."""
        return self._frames.rate

    @property
    def duration(self) -> float:
        """Seconds from the start of the first frame to the end of the last, which counts as long as the average."""
        return len(self) / self.rate

    @property
    def width(self) -> int:
        """Width of an upright frame in pixels."""
        return self._frames.size[1]

    @property
    def height(self) -> int:
        """Height of an upright frame in pixels."""
        return self._frames.size[0]

    def frames_at(self, indices: Sequence[int]) -> torch.Tensor:
        """Frames in the order asked for; an index may come more than once.

        Args:
            indices: of frames in presentation order, each in [0, len(self)).

        Returns:
            uint8 RGB tensor (len(indices), 3, height, width), channels last in memory. Where the frame size of a
            video changes midway, every frame has the size of the first.

        Raises:
            IndexError: an index outside the video.
            VideoError: a wanted frame cannot be decoded.

        Warns:
            VideoWarning: the video is damaged, yet the wanted frames are there. Once per reader.
        """
        slots: dict[int, list[int]] = defaultdict(list)
        for slot, index in enumerate(map(operator.index, indices)):
            if not 0 <= index < len(self):
                raise IndexError(f"{self._name}: no frame {index}, there are {len(self)} from 0")
            slots[index].append(slot)
        # channels innermost in memory, as the decoder gives them: resizing is several times faster on that
        frames = np.empty((len(indices), self.height, self.width, 3), dtype=np.uint8)
        for index, image in self._frames.images(sorted(slots)):
            for slot in slots[index]:
                frames[slot] = image
        if self._frames.damage and not self._warned:
            self._warned = True
            warnings.warn(f"{self._name}: damaged video ({self._frames.damage})", VideoWarning, stacklevel=2)
        return torch.from_numpy(frames).permute(0, 3, 1, 2)

    def stream(self, indices: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """The same frames one after the other in one pass of the decoder, for more of them than fit the memory.

        Args:
            indices: increasing, each in [0, len(self)).

        Yields:
            (index, uint8 (3, height, width)), in order; where the way of reading has to change midway, it begins
            again, and frames come twice.

        Raises:
            VideoError: a wanted frame cannot be decoded.
            RuntimeError: other frames of the reader were asked for in between.
        """
        for index, image in self._frames.images(indices):
            yield index, torch.from_numpy(image).permute(2, 0, 1)

    @property
    def damage(self) -> str:
        """What is damaged in the video, as far as reading has shown; empty for nothing."""
        return self._frames.damage

    def index_at(self, seconds: float) -> int:
        """Index of the frame shown `seconds` after the start of the first one, clamped to the video."""
        return min(max(self._frames.index_at(seconds), 0), len(self) - 1)

    def frames_between(self, start: float | None, end: float | None) -> tuple[int, int]:
        """First frame and number of frames of an interval; the frames shown at its two ends belong to it.

        Args:
            start: seconds; None: the beginning. An interval that starts behind the end has no frames.
            end: seconds, not before `start`; None: the end.
        """
        if start is not None and start >= self.duration:
            return len(self), 0
        first = 0 if start is None else self.index_at(start)
        last = len(self) - 1 if end is None else self.index_at(end)
        return first, last - first + 1

    def close(self) -> None:
        """Let go of the file; a closed reader gives no more frames."""
        self._frames.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Distrusted(Exception):
    """Decoding shows something else than the index promised."""


@dataclass(frozen=True)
class _Index:
    """Which packet holds which frame. Positions count packets in decode order; times are in ticks of the stream."""

    times: list[int]  # of each packet, by position
    sizes: list[int]  # of each packet in bytes, by position
    positions: dict[int | None, int]  # by time
    keys: list[int]  # positions where decoding can start
    shown: list[int]  # position of each frame, in presentation order
    hidden: set[int]  # positions of packets that are decoded, but not shown
    unreferenced: set[int]  # positions of packets that no other packet refers to

    @property
    def start(self) -> int:
        """Time of the first frame."""
        return self.times[self.shown[0]]

    @property
    def spread(self) -> int:
        """Time from the first frame to the last."""
        return self.times[self.shown[-1]] - self.start

    def frame_at(self, time: float) -> int:
        return bisect_right(self.shown, time, key=self.times.__getitem__) - 1

    def position_of(self, packet: Packet[VideoStream]) -> int:
        """Position of a packet; -1 for one that is not in the index, such as half a packet after a seek."""
        position = self.positions.get(packet.pts, -1)
        return position if position >= 0 and self.sizes[position] == packet.size else -1

    def spans(self, wanted: Sequence[int]) -> list[tuple[int, int]]:
        """First and last position of each run of packets that the wanted frames need."""
        spans: list[tuple[int, int]] = []
        for first, last in sorted((self._key_before(self.shown[i]), self.shown[i]) for i in wanted):
            if spans and first <= spans[-1][1] + 1:
                spans[-1] = (spans[-1][0], max(spans[-1][1], last))
            else:
                spans.append((first, last))
        return spans

    def needed(self, first: int, last: int, wanted: Container[int]) -> list[int]:
        """Positions of one span whose packets have to be decoded, in decode order."""
        return [p for p in range(first, last + 1) if p in wanted or not self._is_spare(p, first)]

    def _is_spare(self, position: int, first: int) -> bool:
        # what is shown before the key frame leads into an open group and could not be decoded
        return position in self.unreferenced or self.times[position] < self.times[first]

    def _key_before(self, position: int) -> int:
        """The last key frame that comes before a packet in decode order and in time.

        In an open group the frames that follow the key frame in the file but are shown before it refer to the group
        before as well, so decoding has to start there.
        """
        key = bisect_right(self.keys, position) - 1
        while self.times[self.keys[key]] > self.times[position]:
            key -= 1
        return self.keys[key]


class _VideoFile:
    """Upright images of whatever FFmpeg can read as a video."""

    def __init__(self, source: str | Path | bytes, name: str, threads: int) -> None:
        if _size(source, name) == 0:
            raise VideoError(f"{name}: the file is empty")
        self.damage = ""  # its first sign, in words
        self._source = source
        self._name = name
        self._threads = threads
        self._count: int | None = None  # frames of a full sequential decode, once counted
        self._passes = 0  # how often images were asked for
        self._seeks = True  # until a seek lands behind its target, or in the middle of a packet
        self._kept: list[Packet[VideoStream]] = []  # all packets, or none
        self._open("AUTO", threads)
        self._index = self._read_index()
        self.rate = self._average_rate()
        _, first = next(self._decode([0]))
        self._coded_size = (first.width, first.height)
        self.size = upright(np.empty((first.height, first.width, 0)), first).shape[:2]

    def __len__(self) -> int:
        if self._index is not None:
            return len(self._index.shown)
        if self._count is None:
            self._count = sum(1 for _ in self._decode_all())
        return self._count

    def index_at(self, seconds: float) -> int:
        if self._index is None:
            return int(seconds * self.rate + _ROUNDING)
        return self._index.frame_at(self._index.start + seconds / self._tick + _ROUNDING)

    def images(self, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Index and uint8 RGB image (height, width, 3) of the wanted frames.

        Images may come twice where the way of reading has to change midway; the later ones count.
        """
        width, height = self._coded_size
        converter = VideoReformatter()  # of one's own, every frame would make a new one
        self._passes += 1
        this = self._passes
        for index, frame in self._decode(wanted):
            image = converter.reformat(frame, format="rgb24", width=width, height=height, threads=self._threads)
            yield index, upright(image.to_ndarray(), frame)
            if self._passes != this:  # there is one decoder, and it stands elsewhere now
                raise RuntimeError(f"{self._name}: other frames were read before this stream of frames had ended")

    def close(self) -> None:
        self._container.close()

    def _open(self, threading: Literal["AUTO", "SLICE"], threads: int) -> None:
        """Begin at the first packet, with a new decoder."""
        # the prefix keeps a name with a colon from being taken for an address
        source = io.BytesIO(self._source) if isinstance(self._source, bytes) else f"file:{self._source}"
        try:
            self._container = av.open(source, "r")
        except av.FFmpegError as error:
            raise VideoError(f"{self._name}: cannot be read as a video ({error.strerror})") from None
        self._stream = main_stream(self._container, self._name)
        self._tick = float(self._stream.time_base or 1)  # seconds
        self._stream.thread_type = threading
        self._stream.thread_count = threads
        self._packets: Iterator[Packet[VideoStream]] = self._demux()
        self._position = 0  # of the next packet

    def _demux(self) -> Iterator[Packet[VideoStream]]:
        """Packets of the stream in decode order, up to the end or to where the file cannot be read on."""
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:  # an empty one would tell the decoder that the stream has ended
                    yield packet
        except av.FFmpegError as error:
            self.damage = self.damage or f"reading stops early: {error.strerror}"

    def _read_index(self) -> _Index | None:
        """Read every packet; None where that does not tell which frames there are and when each is shown."""
        codec = self._stream.codec_context
        trusted = not (self._container.format.name == "avi" and codec.has_b_frames)  # AVI has no presentation times
        sizes: dict[Any, int] = {}  # by time, in decode order
        keys, hidden, unreferenced = [], set(), set()
        kept, room = [], _KEPT
        for position, packet in enumerate(self._packets):
            room -= packet.size
            kept.append(packet)
            if room < 0:
                kept.clear()
            if packet.is_corrupt:
                self.damage = self.damage or f"packet {position} is incomplete"
            trusted = trusted and packet.pts not in sizes and not is_packed(packet, codec.name)
            sizes[packet.pts] = packet.size
            if packet.is_keyframe:
                keys.append(position)
            if packet.is_discard or is_hidden(packet, codec.name):
                hidden.add(position)
            if not packet.is_keyframe and is_unreferenced(packet, codec):
                unreferenced.add(position)
            self._position += 1
        times = list(sizes)
        if self.damage or not trusted or None in sizes or len(hidden) == len(times):
            return None
        if keys[:1] != [0] or times[0] != min(times):  # frames that refer to others before the first
            return None
        self._kept = kept if room >= 0 else []
        shown = sorted(set(range(len(times))) - hidden, key=times.__getitem__)
        positions = {time: position for position, time in enumerate(times)}
        return _Index(times, list(sizes.values()), positions, keys, shown, hidden, unreferenced)

    def _average_rate(self) -> float:
        """Frames per second by the times of the frames, else as the file states it."""
        if self._index is not None and self._index.spread > 0:
            return (len(self._index.shown) - 1) / (self._index.spread * self._tick)
        return float(self._stream.average_rate or self._stream.guessed_rate or UNTIMED_RATE)

    def _decode(self, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Index and frame of the wanted frames; all of them once more where the index proves wrong."""
        if self._index is not None:
            try:
                yield from self._decode_spans(self._index, wanted)
                return
            except (_Distrusted, av.FFmpegError):
                self._index = None
        missing = set(wanted)
        count = 0
        for frame in self._decode_all():
            if count in missing:
                missing.remove(count)
                yield count, frame
            if not missing:
                return
            count += 1
        self._count = count
        cause = f" ({self.damage})" if self.damage else ""
        raise VideoError(f"{self._name}: frame {min(missing)} cannot be decoded, only {count} frames can{cause}")

    def _decode_all(self) -> Iterator[VideoFrame]:
        """Every frame that decoding from the start gives, stepping over what cannot be decoded."""
        self.close()
        # what stands in for lost parts depends on the threads; this is what PyAV does by itself, but on any machine
        self._open("SLICE", 2)
        for position, packet in enumerate(chain(self._packets, [None])):  # None: give what is left
            try:
                frames = self._feed(packet)
            except av.FFmpegError as error:
                self.damage = self.damage or f"packet {position} cannot be decoded: {error.strerror}"
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self.damage = self.damage or f"packet {position} is damaged"
                yield frame

    def _decode_spans(self, index: _Index, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decode no more than the wanted frames need, and make sure that it is what the index says."""
        wanted_at = {index.shown[i]: i for i in wanted}  # frame index by position
        for first, last in index.spans(wanted):
            needed = index.needed(first, last, wanted_at)
            due = sorted(set(needed) - index.hidden, key=index.times.__getitem__)
            for position, frame in zip_longest(due, self._decode_packets(index, needed)):
                if position is None or frame is None or frame.pts != index.times[position] or frame.is_corrupt:
                    raise _Distrusted
                if position == first and not frame.key_frame:
                    raise _Distrusted
                if position in wanted_at:
                    yield wanted_at[position], frame

    def _decode_packets(self, index: _Index, positions: Sequence[int]) -> Iterator[VideoFrame]:
        """What the packets at rising positions give when decoding starts with the first of them."""
        self._go_to(index, positions[0])
        self._stream.codec_context.flush_buffers()
        for position in positions:
            while self._position < position:
                self._next_packet(index)
            yield from self._feed(self._next_packet(index))
        yield from self._feed(None)

    def _feed(self, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        """Give the decoder a packet, or the end with None, and take the frames that are ready."""
        return self._stream.codec_context.decode(packet)

    def _next_packet(self, index: _Index) -> Packet[VideoStream]:
        if self._kept:
            self._position += 1
            return self._kept[self._position - 1]
        packet = next(self._packets, None)
        if packet is None or index.position_of(packet) != self._position:
            raise _Distrusted
        self._position += 1
        return packet

    def _go_to(self, index: _Index, position: int) -> None:
        """Make the packet at a position the next one: read on, seek, or begin again, whichever serves."""
        if self._kept:
            self._position = position
            return
        is_near = 0 <= position - self._position <= _SHORT_GAP
        if self._seeks and not is_near:
            self._seeks = self._seek(index, position)
        if self._position > position:
            self.close()
            self._open("AUTO", self._threads)
        while self._position < position:
            self._next_packet(index)

    def _seek(self, index: _Index, position: int) -> bool:
        """Jump to the packet at a position or one before it; False where the file does not bear that."""
        self._position = len(index.times)  # until found
        try:
            self._container.seek(index.times[position], stream=self._stream)
        except av.FFmpegError:
            return False
        packets = self._demux()
        landing = next(packets, None)
        if landing is None or not 0 <= index.position_of(landing) <= position:
            return False
        self._packets = chain([landing], packets)
        self._position = index.position_of(landing)
        return True


class _ImageFolder:
    """Upright images of a folder with one image per frame."""

    damage = ""
    rate = UNTIMED_RATE

    def __init__(self, folder: Path, threads: int) -> None:
        images = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
        if not images:
            raise VideoError(f"{folder}: a folder without frame images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        self._paths = sorted(images, key=_natural_order)
        self._threads = threads
        self.size = self._read(self._paths[0]).shape[:2]

    def __len__(self) -> int:
        return len(self._paths)

    def index_at(self, seconds: float) -> int:
        return int(seconds * self.rate + _ROUNDING)

    def images(self, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Index and uint8 RGB image (height, width, 3) of the wanted frames."""
        for index in wanted:
            image = self._read(self._paths[index])
            if image.shape[:2] != self.size:
                (h, w), (height, width) = image.shape[:2], self.size
                raise VideoError(
                    f"{self._paths[index]}: {w}x{h} pixels, but {self._paths[0].name} has {width}x{height}"
                )
            yield index, image

    def close(self) -> None:
        pass

    def _read(self, path: Path) -> np.ndarray:
        try:
            # by content: a name with a percent sign would be taken for a pattern
            with av.open(io.BytesIO(path.read_bytes())) as container:
                frame = next(container.decode(main_stream(container, str(path))))
                return upright(frame.to_ndarray(format="rgb24", threads=self._threads), frame)
        except (av.FFmpegError, OSError, StopIteration) as error:
            raise VideoError(f"{path}: cannot be read as an image ({error})") from None


def _size(source: str | Path | bytes, name: str) -> int:
    try:
        return len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    except OSError as error:
        raise VideoError(f"{name}: {error.strerror}") from None


def main_stream(container: InputContainer, name: str) -> VideoStream:
    """The video stream that a player would show."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams or container.format.name == "tty":  # FFmpeg draws text files as a terminal would
        raise VideoError(f"{name}: no video in this file")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise VideoError(f"{name}: no decoder for this kind of video")
    return stream


def upright(image: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Turn and mirror an image (height, width, channels) as the display matrix of its frame asks for."""
    side_data: Any = frame.side_data
    matrix = side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    # x' = a·x + c·y and y' = b·x + d·y, to the nearest quarter turn
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])  # torch takes no negative stride


def _natural_order(path: Path) -> list[Any]:
    """Sort key that compares runs of digits by their value."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
