"""Every media file beside the checkout, read or refused as an independent sequential decode says."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import pytest

from uniformerv2.errors import VideoError
from uniformerv2.video.reader import VideoReader, VideoWarning

NO_MEDIA = {".txt", ".tsv", ".jpg"}


@dataclass
class Decoded:
    """What a plain decode from the start finds in a file."""

    count: int = 0
    errors: int = 0
    images: dict[int, np.ndarray] = field(default_factory=dict)  # upright, by frame
    sound: set[int] = field(default_factory=set)  # frames before the first error


def decode(path: Path) -> Decoded:
    """Decode all frames and keep about six of them, spread over the file, among them the first and the last."""
    found = Decoded()
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        if stream is None:
            return found
        packets = sum(packet.size > 0 for packet in container.demux(stream))
    wanted = {round(i * (packets - 1) / 5) for i in range(6)}
    frame = None
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.thread_type, stream.thread_count = "SLICE", 2
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                found.errors += 1
                continue
            for frame in frames:
                if found.count in wanted:
                    found.images[found.count] = upright(frame)
                if not found.errors:
                    found.sound.add(found.count)
                found.count += 1
    if frame is not None:
        found.images[found.count - 1] = upright(frame)
    return found


def upright(frame: av.VideoFrame) -> np.ndarray:
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


def difference(path: Path) -> str:
    """What the reader makes of a file other than the decode does; empty if nothing."""
    expected = decode(path)
    if expected.count == 0 or min(expected.images[0].shape[:2]) == 1:
        try:
            VideoReader(path)
        except VideoError as error:
            return "" if str(error).startswith(f"{path}: ") else f"refused with {error}"
        return "read, though there is no frame in it, or one of a single pixel"
    indices = sorted(expected.images, reverse=True)
    with warnings.catch_warnings(record=True) as caught, VideoReader(path) as reader:
        warnings.simplefilter("always")
        length = len(reader)
        frames = reader.frames_at(indices)
        if len(reader) != expected.count or (length != expected.count and not expected.errors):
            return f"{length}, then {len(reader)} frames instead of {expected.count}"
        if (reader.height, reader.width) != frames.shape[2:]:
            return f"{reader.width}x{reader.height} pixels announced, {frames.shape} given"
    if [w.category for w in caught] != [VideoWarning] * bool(expected.errors):
        return f"warnings {[str(w.message) for w in caught]} for {expected.errors} errors"
    # what stands in for lost parts is up to the decoder and to chance
    wrong = [
        i
        for i, frame in zip(indices, frames, strict=True)
        if i in expected.sound and not np.array_equal(frame.permute(1, 2, 0).numpy(), expected.images[i])
    ]
    return f"frames {wrong} differ" if wrong else ""


def test_every_media_file_is_read_exactly_or_refused(shared: Path) -> None:
    root = shared / "data" / "videos"
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix not in NO_MEDIA)
    assert len(files) >= 60
    differences = {str(path.relative_to(root)): difference(path) for path in files}
    assert {name: text for name, text in differences.items() if text} == {}


def test_every_folder_of_frames_is_read_in_order(shared: Path) -> None:
    folders = sorted({path.parent for path in (shared / "data" / "videos").rglob("*.jpg")})
    assert len(folders) >= 4
    for folder in folders:
        paths = sorted(folder.glob("*.jpg"), key=lambda path: int(re.findall(r"\d+", path.name)[-1]))
        with VideoReader(folder) as reader:
            assert len(reader) == len(paths)
            frames = reader.frames_at(range(len(reader)))
        for path, frame in zip(paths, frames, strict=True):
            with av.open(str(path)) as container:
                expected = next(container.decode(video=0)).to_ndarray(format="rgb24")
            assert np.array_equal(frame.permute(1, 2, 0).numpy(), expected), path


@pytest.mark.parametrize(("angle", "turns"), [(0, 0), (90, -1), (180, 2), (270, 1)])
def test_phone_videos_are_turned_upright(angle: int, turns: int, shared: Path) -> None:
    """The letters on the keyboard filmed here stand upright after so many quarter turns to the left: seen by eye."""
    path = shared / "data" / "videos" / "decord" / f"video_{angle}.mov"
    with av.open(str(path)) as container:
        coded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with VideoReader(path) as reader:
        frames = reader.frames_at(range(len(reader))).permute(0, 2, 3, 1)
        assert np.array_equal(frames.numpy(), np.rot90(coded, turns, axes=(1, 2)))
