"""Frames of a video at given indices: exactly those of a full sequential decode, at a fraction of its cost.

A video file is indexed once by reading its packets without decoding them. Asked for frames, the reader decodes only
the groups of pictures that hold them, each from its key frame to its last wanted frame, and drops on the way what no
other frame refers to.

The packets are trusted where each has a time of its own and the times have the order that the headers of the pictures
state; else frames, count, rate and times are those of decoding the file from its start. While decoding, the frames are
checked against the index: key frames where it has them, every frame found, no decoding error. Where a check fails, the
frames of that group are those of decoding the file from its start, on one thread, which conceals damage best; of a
frame that is lost even so, the one before it is shown, for a second at most. So a frame does not depend on what else
is asked for.
"""

from __future__ import annotations

import operator
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from uniformerv2.errors import VideoError
from uniformerv2.video.cleaning import clean_packet
from uniformerv2.video.container import NO_IMAGE, guarded, open_media
from uniformerv2.video.decoding import ROUNDING, UNTIMED_RATE, ReadStatistics, main_stream
from uniformerv2.video.limits import Limits
from uniformerv2.video.orientation import orientation_of_image
from uniformerv2.video.pictures import Pictures
from uniformerv2.video.suffixes import IMAGE_SUFFIXES
from uniformerv2.video.video_file import VideoFile

SHORTEST_SIDE = 2  # pixels


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
        threads: of conversion, and of decoding where frames do not depend on it: VP9, AV1 and raw video, and several
            groups of pictures of H.264 and HEVC at once; other codecs are decoded on one. 0 for as many as the machine
            has, 1 where many readers run side by side.
        name: used in messages; None: the path.
        limits: what the video may cost; None: those of the environment, see `Limits`.

    Raises:
        VideoError: there is no frame to read, or reading it is over a limit; the message names the file and the reason.
        RecipeError: a limit in the environment that is no positive number.
    """

    def __init__(
        self,
        source: str | Path | bytes,
        *,
        threads: int = 0,
        name: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        if threads < 0:
            raise ValueError(f"threads must be 0 (automatic) or more, got {threads}")
        self.name = name or (f"video of {len(source)} bytes" if isinstance(source, bytes) else str(source))
        self.limits = limits or Limits.from_environment()
        self._warned = False
        self._frames: VideoFile | _FrameFolder
        if not isinstance(source, bytes) and Path(source).is_dir():
            self._frames = _FrameFolder(Path(source), threads, self.limits)
        else:
            self._frames = VideoFile(source, self.name, threads, self.limits)
        if min(self._frames.size) < SHORTEST_SIDE:
            raise VideoError(f"{self.name}: {self.width}x{self.height} pixels show nothing")

    def __len__(self) -> int:
        """Number of frames that a full sequential decode gives.

        Free where the packets can be trusted; else the video is decoded once to count. Frames that only decoding
        shows to be lost count too; the frame before is shown for them, for a second.
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

    @property
    def tick(self) -> float:
        """The unit of time that the video counts in, in seconds."""
        return self._frames.tick

    @property
    def ticks(self) -> np.ndarray:
        """When each frame is shown: float64 (len(self),), ticks after the first frame, which rise."""
        return self._frames.ticks

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
                raise IndexError(f"{self.name}: no frame {index}, there are {len(self)} from 0")
            slots[index].append(slot)
        # channels innermost in memory, as the decoder gives them: resizing is several times faster on that
        frames = np.empty((len(indices), self.height, self.width, 3), dtype=np.uint8)
        for index, image in self._frames.images(sorted(slots)):
            for slot in slots[index]:
                frames[slot] = image
        if self._frames.damage and not self._warned:
            self._warned = True
            warnings.warn(f"{self.name}: damaged video ({self._frames.damage})", VideoWarning, stacklevel=2)
        return torch.from_numpy(frames).permute(0, 3, 1, 2)

    def iter_frames(self, indices: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """The same frames one at a time in one pass of the decoder, for more of them than fit into memory.

        Args:
            indices: increasing, each in [0, len(self)).

        Yields:
            (index, uint8 (3, height, width)), in order; where the packets prove wrong midway, reading begins
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

    @property
    def statistics(self) -> ReadStatistics:
        """The cost of reading so far."""
        return self._frames.statistics

    def index_at(self, seconds: float) -> int:
        """Index of the frame shown `seconds` after the start of the first one, clamped to the video."""
        return int(self.indices_at(np.array(seconds)))

    def indices_at(self, seconds: np.ndarray) -> np.ndarray:
        """`index_at` of many times: int64, in the shape of `seconds`."""
        return self._frames.indices_at(seconds).clip(0, len(self) - 1)

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
        """Close the file."""
        self._frames.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _FrameFolder:
    """Upright images of a folder with one image per frame."""

    damage = ""
    rate = UNTIMED_RATE
    tick = 1 / UNTIMED_RATE

    def __init__(self, folder: Path, threads: int, limits: Limits) -> None:
        images = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
        if not images:
            raise VideoError(f"{folder}: a folder without frame images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        # runs of digits are compared by their value
        self._paths = sorted(
            images, key=lambda path: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", path.name)]
        )
        self._limits = limits
        self._pictures = Pictures(threads)
        self._images_read = 0
        self.size = self._read(self._paths[0]).shape[:2]

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def ticks(self) -> np.ndarray:
        return np.arange(len(self), dtype=np.float64)

    def indices_at(self, seconds: np.ndarray) -> np.ndarray:
        return (seconds * self.rate + ROUNDING).astype(np.int64)

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

    @property
    def statistics(self) -> ReadStatistics:
        return ReadStatistics(frames=self._images_read)

    def close(self) -> None:
        pass

    def _read(self, path: Path) -> np.ndarray:
        self._images_read += 1
        name = str(path)
        with guarded(name, NO_IMAGE):
            content = path.read_bytes()
            with open_media(content, name, limits=self._limits, problem=NO_IMAGE) as container:
                stream = main_stream(container, name)
                codec = stream.codec_context
                packets = (clean_packet(packet, codec.name) for packet in container.demux(stream))
                frame = next((frame for packet in packets for frame in codec.decode(packet)), None)
                if frame is None:
                    raise VideoError(f"{name}: {NO_IMAGE} (there is no picture in it)")
                return self._pictures.image(frame, orientation=orientation_of_image(content))
