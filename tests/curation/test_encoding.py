"""A packed video against the original: the same frames at the same times."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from helpers import noise, write_video
from media import TIMES, pictures, retimed, turned
from uniformerv2.curation.encoding import Encoding, encode_video
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.video.reader import VideoReader

UNEVEN = [0, 10, 50, 51, 300, 301, 333, 400, 1000, 1001, 1002, 5000]  # ms


def packed(source: Path, target: Path, **options: int) -> tuple[VideoReader, VideoReader]:
    """Readers of the video and of the packed one."""
    with VideoReader(source, threads=1) as reader:
        encode_video(reader, target, Encoding(**options))
    return VideoReader(source, threads=1), VideoReader(target, threads=1)


def assert_same_times(original: VideoReader, result: VideoReader) -> None:
    assert len(result) == len(original)
    assert result.rate == pytest.approx(original.rate, rel=1e-12)
    assert result.duration == pytest.approx(original.duration, rel=1e-12)
    shown = original.ticks * original.tick
    edges = np.concatenate([shown, shown - 1e-4, shown + 1e-4, [-1.0, original.duration, 1e6]])
    drawn = np.random.default_rng(0).uniform(-0.1, original.duration + 0.1, 200)
    for seconds in (edges, drawn):
        assert np.array_equal(result.indices_at(seconds), original.indices_at(seconds))
    for start, end in ((None, None), (0.1, None), (None, 0.2), (shown[-1] / 3, shown[-1] / 2), (1e6, None)):
        assert result.frames_between(start, end) == original.frames_between(start, end)
    assert result.statistics.indexed
    assert not result.damage


def assert_same_frames(original: VideoReader, result: VideoReader) -> None:
    """Each frame resembles its own more than any other."""
    every = range(len(original))
    before, after = (reader.frames_at(every)[..., : original.height, : original.width] for reader in (original, result))
    distances = torch.cdist(after.float().flatten(1), before.float().flatten(1))
    assert distances.argmin(1).tolist() == list(every)


SOURCES: dict[str, Callable[[Path], Path]] = {
    "mpeg4": lambda at: write_video(at / "a.avi", pictures(12), rate=10),
    "NTSC in AVI": lambda at: write_video(at / "a.avi", pictures(12), rate=Fraction(30000, 1001)),
    "B-frames": lambda at: write_video(at / "a.mp4", pictures(40), codec="libx264", rate=Fraction(24000, 1001)),
    "uneven": lambda at: write_video(at / "a.mp4", pictures(12), codec="libx264", times=UNEVEN),
    "uneven in Matroska": lambda at: write_video(at / "a.mkv", pictures(12), codec="libx264", times=UNEVEN),
    "WebM": lambda at: write_video(at / "a.webm", pictures(12), codec="libvpx-vp9", rate=30),
    "transport stream": lambda at: write_video(at / "a.ts", pictures(12), codec="mpeg2video", rate=25),
    "no clock": lambda at: write_video(at / "a.h264", pictures(12), codec="libx264", rate=24, container="h264"),
    "GIF": lambda at: write_video(at / "a.gif", pictures(12), codec="gif", pixels="rgb8"),
    "a frame": lambda at: write_video(at / "a.mp4", pictures(1), rate=Fraction(30000, 1001)),
    "a frame in Matroska": lambda at: write_video(at / "a.mkv", pictures(1), rate=Fraction(30000, 1001)),
    "images": lambda at: images(at / "frames", 12),
}


def images(folder: Path, count: int) -> Path:
    for number, image in enumerate(pictures(count)):
        write_video(folder / f"{number}.png", [image], codec="png", pixels="rgb24", container="image2")
    return folder


@pytest.mark.parametrize("keyframe_every", [1, 5])
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_frame_is_there_at_its_time(source: Callable[[Path], Path], keyframe_every: int, tmp_path: Path) -> None:
    original, result = packed(source(tmp_path), tmp_path / "packed.mp4", keyframe_every=keyframe_every)
    assert_same_times(original, result)
    assert_same_frames(original, result)
    assert (result.height, result.width) == (original.height, original.width)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", [*sorted(TIMES.keys() - {"missing"}), "appended"])
def test_hostile_times_are_kept_or_refused(kind: str, seed: int, tmp_path: Path) -> None:
    content = write_video(io.BytesIO(), pictures(20), codec="libx264", container="matroska", rate=25).getvalue()
    (tmp_path / "a.mkv").write_bytes(retimed(content, "matroska", kind, random.Random(seed)))
    too_far = (kind, seed) in {("far", 0), ("far", 1)}  # 30 years; MP4 has 31 bits for the time of a frame
    with pytest.raises(VideoError, match="s between two frames") if too_far else nullcontext():
        original, result = packed(tmp_path / "a.mkv", tmp_path / "packed.mp4")
        assert_same_times(original, result)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_frames_of_a_damaged_video_are_those_that_the_reader_shows(codec: str, tmp_path: Path) -> None:
    """Where its packets prove wrong midway, the reader shows frames once more."""
    path = write_video(tmp_path / "a.mkv", pictures(60, 96, 128), codec=codec, rate=25, g=12, bf=0)
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as source:
        for packet in [packet for packet in source.demux(video=0) if packet.size][5::10]:
            start, size = (packet.pos or 0) + packet.size // 2, packet.size // 4
            content[start : start + size] = np.random.default_rng(0).bytes(size)
    path.write_bytes(content)
    original, result = packed(path, tmp_path / "packed.mp4", crf=10)
    assert_same_times(original, result)
    with pytest.warns(UserWarning, match="damaged video"):
        before = original.frames_at(range(60)).float()
    assert (before - result.frames_at(range(60)).float()).abs().mean((1, 2, 3)).max() < 8


def test_frames_that_come_once_more_are_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.avi", pictures(12), rate=10)
    plain, passes = VideoReader.iter_frames, []

    def twice(reader: VideoReader, indices: Any) -> Iterator[tuple[int, torch.Tensor]]:
        passes.append(reader)
        yield from plain(reader, indices[:8] if len(passes) == 1 else indices)
        yield from plain(reader, indices[4:]) if len(passes) == 1 else ()

    monkeypatch.setattr(VideoReader, "iter_frames", twice)
    original, result = packed(path, tmp_path / "packed.mp4")
    assert len(passes) == 3
    assert_same_times(original, result)
    assert_same_frames(original, result)


@pytest.mark.parametrize(("turns", "mirrored"), [(1, False), (2, False), (3, False), (0, True), (1, True)])
def test_frames_are_upright(turns: int, mirrored: bool, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", pictures(5), rate=25)
    path.write_bytes(turned(path.read_bytes(), turns, mirrored=mirrored))
    original, result = packed(path, tmp_path / "packed.mp4")
    assert (result.height, result.width) == (original.height, original.width) == ((48, 64), (64, 48))[turns % 2]
    assert_same_frames(original, result)
    difference = original.frames_at([0]).float() - result.frames_at([0]).float()
    assert difference.abs().mean() < 10


@pytest.mark.parametrize(
    ("before", "short_side", "after"),
    [
        ((48, 64), 256, (48, 64)),
        ((49, 65), 256, (50, 66)),
        ((48, 65), 48, (48, 66)),
        ((2, 2), 256, (2, 2)),
        ((3, 640), 256, (4, 640)),
        ((64, 49), 32, (42, 32)),
        ((1080, 1920), 256, (256, 456)),
        ((1920, 1080), 256, (456, 256)),
        ((257, 257), 256, (256, 256)),
    ],
)
def test_sizes(before: tuple[int, int], short_side: int, after: tuple[int, int], tmp_path: Path) -> None:
    assert Encoding(short_side=short_side).size(*before) == after
    path = write_video(tmp_path / "a.mkv", pictures(3, *before), codec="ffv1", pixels="bgr0")
    original, result = packed(path, tmp_path / "packed.mp4", short_side=short_side)
    assert (result.height, result.width) == after
    assert_same_times(original, result)


def test_an_odd_side_loses_nothing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", pictures(3, 49, 65), codec="ffv1", pixels="bgr0")
    original, result = packed(path, tmp_path / "packed.mp4", crf=1)
    before, after = original.frames_at(range(3)).float(), result.frames_at(range(3)).float()
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]  # of which 4:2:0 loses no pixel
    difference = ((before - after[..., :49, :65]) * luma).sum(1)
    assert difference.abs().mean() < 2
    assert (after[..., 48, :] - after[..., 49, :]).abs().mean() < 8
    assert (after[..., 64] - after[..., 65]).abs().mean() < 8


def test_colours_stay(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (250, 250, 250), (10, 10, 10), (200, 150, 100)]
    frames = [np.full((64, 64, 3), colour, np.uint8) for colour in colours]
    path = write_video(tmp_path / "a.mkv", frames, codec="ffv1", pixels="bgr0")
    _, result = packed(path, tmp_path / "packed.mp4")
    found = result.frames_at(range(6))[:, :, 32, 32].float()
    assert (found - torch.tensor(colours)).abs().max() <= 5


def test_equal_videos_give_equal_files(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", noise(5))
    for name in ("one.mp4", "two.mp4"):
        packed(path, tmp_path / name)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


def test_key_frames_are_as_near_as_asked(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", pictures(20), codec="libx264", g=250)
    sizes = []
    for every in (1, 4, 20):
        packed(path, tmp_path / "packed.mp4", keyframe_every=every)
        with av.open(str(tmp_path / "packed.mp4")) as container:
            assert not container.streams.audio
            packets = [packet for packet in container.demux(video=0) if packet.size]
        assert all(packet.is_keyframe for packet in packets[::every])
        assert all(packet.pts == packet.dts for packet in packets)  # no B-frames
        sizes.append(sum(packet.is_keyframe for packet in packets))
    assert sizes == [20, 5, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_side": 255}, "even number"),
        ({"short_side": 0}, "even number"),
        ({"keyframe_every": 0}, "1 or more frames"),
        ({"crf": 52}, "crf must lie between 0 and 51"),
    ],
)
def test_invalid_options(options: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Encoding(**options)


def test_a_disk_that_is_full_is_no_fault_of_the_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", noise(5))
    if not Path("/dev/full").exists():
        pytest.skip("a device without room is needed")
    with VideoReader(path) as reader, pytest.raises(OSError, match="No space left"):
        encode_video(reader, Path("/dev/full"), Encoding())
