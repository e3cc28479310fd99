"""What the packets of a file say, what they cannot hide, and what reading them may cost."""

from __future__ import annotations

import gc
import io
import os
import random
import weakref
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from helpers import write_video
from media import Drawing, decode, draw, pictures, with_damaged_packets
from uniformerv2.errors import VideoError
from uniformerv2.video import groups
from uniformerv2.video.limits import Limits
from uniformerv2.video.reader import VideoReader


def with_packets(content: bytes, container: str, *more: bytes, without: int | None = None) -> bytes:
    """The packets of a video but one, and more behind them, each a twenty-fifth of a second later."""
    memory = io.BytesIO()
    with av.open(io.BytesIO(content)) as source, av.open(memory, "w", format=container) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        last = packets[-1]
        if without is not None:
            del packets[without]
        for number, data in enumerate(more, start=1):
            packet = av.Packet(data)
            packet.time_base = last.time_base
            packet.pts = packet.dts = last.pts + round(number / 25 / last.time_base)
            packets.append(packet)
        for packet in packets:
            packet.stream = stream
            target.mux(packet)
    return memory.getvalue()


def test_a_packet_without_a_slice_is_no_frame(tmp_path: Path) -> None:
    """As at the end of files that an editor of Mozilla wrote."""
    content = write_video(tmp_path / "a.mp4", pictures(12), codec="libx264", rate=25, bf=0).read_bytes()
    end_of_sequence = b"\x00\x00\x00\x01\x0a"
    longer = with_packets(content, "mp4", end_of_sequence)
    with VideoReader(longer) as reader:
        assert (len(reader), reader.duration) == (12, pytest.approx(12 / 25))
        assert reader.statistics.indexed
        assert len(reader.frames_at(range(12))) == 12


def test_a_comment_behind_a_gif_is_no_frame(tmp_path: Path) -> None:
    content = write_video(tmp_path / "a.gif", pictures(5), codec="gif", pixels="rgb8", rate=10).read_bytes()
    assert content[-1:] == b";"
    with VideoReader(content[:-1] + b"\x21\xfe\x05words\x00;") as reader:
        assert len(reader) == 5
        assert len(reader.frames_at(range(5))) == 5


def test_one_recording_behind_another(tmp_path: Path) -> None:
    """The clock of the second begins within the first, as where a camera connected again."""
    first = write_video(tmp_path / "a.flv", pictures(40), codec="libx264", rate=25, g=10, bf=2)
    times = [40 * number + 13 for number in range(40)]
    upside_down = (image[::-1].copy() for image in pictures(40))
    second = write_video(tmp_path / "b.flv", upside_down, codec="libx264", rate=25, times=times, g=10, bf=2)
    content = first.read_bytes() + second.read_bytes()[13:]  # without another header of the file
    expected = decode(content).images
    for threads in (0, 1, 2):
        for indices in ([60], [5, 79], range(80), [79, 41, 3]):
            with VideoReader(content, threads=threads) as reader:
                assert len(reader) == len(expected) == 80
                frames = reader.frames_at(list(indices)).permute(0, 2, 3, 1).numpy()
                assert np.array_equal(frames, np.stack([expected[i] for i in indices]))
                assert reader.rate == pytest.approx(25, rel=0.01)
                assert reader.duration == pytest.approx(80 / 25, rel=0.01)
                assert reader.index_at(1.0) == 25


def damaged(path: Path) -> bytes:
    """Noise in the middle of every tenth packet."""
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as source:
        for packet in [packet for packet in source.demux(video=0) if packet.size][5::10]:
            start, size = packet.pos + packet.size // 2, packet.size // 4
            content[start : start + size] = np.random.default_rng(0).bytes(size)
    return bytes(content)


@pytest.mark.filterwarnings("ignore:.*damaged video")
@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libvpx"])
def test_a_damaged_video_is_the_same_whatever_is_asked(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "WORTH_A_THREAD", 0)
    path = write_video(tmp_path / "a.mkv", pictures(60, 96, 128), codec=codec, rate=25, g=12, bf=0)
    content = damaged(path)
    plain = decode(content).images
    with VideoReader(content) as reader:
        expected = reader.frames_at(range(len(reader)))
    if len(plain) == len(expected):
        assert np.array_equal(expected.permute(0, 2, 3, 1).numpy(), np.stack(plain))
    for threads in (0, 1, 2):
        for indices in (range(60), [59], [7], [6, 40, 20]):
            with VideoReader(content, threads=threads) as reader:
                assert torch.equal(reader.frames_at(indices), expected[list(indices)])


def assert_every_answer_is_the_same(content: bytes) -> str:
    """Frames one by one are those of all at once; returns the damage that these showed."""
    with VideoReader(content, threads=1) as reader:
        expected = reader.frames_at(range(len(reader)))
        damage = reader.damage
    for index, frame in enumerate(expected):
        with VideoReader(content, threads=1) as reader:
            assert torch.equal(reader.frames_at([index])[0], frame), index
    return damage


# (codec, container, B-frames in a row, seed of the damage), and what one question hid from the next
DAMAGED = [
    ("ffv1", "matroska", 0, 41),  # what is concealed in silence
    ("ffv1", "matroska", 0, 106),
    ("msmpeg4", "avi", 0, 163),  # how numbers are rounded, which a damaged key frame leaves as it was
    ("flv", "flv", 0, 41),
    ("mpeg4", "m4v", 3, 10),  # how exact the encoder was, as the decoder guesses
    ("mpeg4", "matroska", 1, 26),
    ("mpeg4", "matroska", 2, 34),
    ("mpeg4", "mp4", 0, 5),
    ("mpeg1video", "mpeg", 1, 30),  # a picture that comes with the next one, or not
    ("mpeg2video", "matroska", 2, 123),
]


@pytest.mark.filterwarnings("ignore:.*damaged video")
@pytest.mark.parametrize(("codec", "container", "b_frames", "seed"), DAMAGED)
def test_damaged_packets_are_the_same_in_every_answer(codec: str, container: str, b_frames: int, seed: int) -> None:
    content = draw(Drawing(container, codec, 28, 96, 64, "yuv420p", group=7, b_frames=b_frames))
    assert_every_answer_is_the_same(with_damaged_packets(content, random.Random(seed)))


@pytest.mark.filterwarnings("ignore:.*damaged video")
@pytest.mark.parametrize("b_frames", [0, 1])
@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
def test_a_picture_that_goes_with_the_damaged_one_after_it_goes_in_every_answer(
    codec: str, b_frames: int, tmp_path: Path
) -> None:
    """These decoders give a picture with the next that is referred to, if that can be decoded."""
    content = write_video(
        tmp_path / "a", pictures(20), codec=codec, container=codec, rate=25, g=30, bf=b_frames
    ).read_bytes()
    content += b"\0\0\1\x40" + bytes(range(1, 100))  # the last picture has a slice below its end
    assert assert_every_answer_is_the_same(content)


@pytest.mark.filterwarnings("ignore:.*damaged video")
def test_a_group_of_mpeg4_with_damaged_parameters_is_the_same_in_every_answer(tmp_path: Path) -> None:
    """The decoder keeps what it has understood of them for the groups after."""
    path = write_video(tmp_path / "a", pictures(28), codec="mpeg4", container="m4v", rate=25, g=4, bf=3)
    content = path.read_bytes()
    starts = [place for place in range(len(content)) if content.startswith(b"\0\0\1\xb0", place)]
    cut = starts[4] + 25  # within the video object layer
    content = content[:cut] + content[cut + 3 :]
    assert_every_answer_is_the_same(content)


def test_a_group_is_decoded_alone_if_its_encoder_is_known_to_be_exact(tmp_path: Path) -> None:
    """For others the decoder changes its ways while it decodes."""
    content = write_video(tmp_path / "a.avi", pictures(20), codec="mpeg4", rate=25, g=5).read_bytes()
    encoder = content[content.index(b"Lavc") :][:12]
    for stated, is_indexed in ((encoder, True), (b"Lavc56.60.100", False), (b"DivX503b1393p", False)):
        named = content.replace(encoder, stated[:12])
        with VideoReader(named) as reader:
            assert reader.statistics.indexed is is_indexed, stated
            frames = reader.frames_at([17, 3])
        assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), np.stack(decode(named).images)[[17, 3]])


HEVC = "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=2:b-adapt=0:b-pyramid=0:log-level=none"


def test_pictures_of_hevc_that_no_other_needs_are_not_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", pictures(36), codec="libx265", rate=25, x265_params=HEVC)
    expected = decode(path.read_bytes()).images
    with VideoReader(path, threads=1) as reader:
        before = reader.statistics.packets
        assert np.array_equal(reader.frames_at([11])[0].permute(1, 2, 0).numpy(), expected[11])
        assert reader.statistics.packets - before <= 6  # two of three are B-frames


CODED = {"libx264": {"g": 36, "bf": 1}, "libx265": {"x265_params": HEVC}}


@pytest.mark.filterwarnings("ignore:.*damaged video")
@pytest.mark.parametrize("lost", [3, 13, 17, 19])
@pytest.mark.parametrize("codec", CODED)
def test_a_lost_picture_is_missing_in_every_answer(codec: str, lost: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", pictures(36), codec=codec, rate=25, **CODED[codec])
    content = with_packets(path.read_bytes(), "matroska", without=lost)
    expected = decode(content).images
    last = len(expected) - 1
    for threads in (0, 1, 2):
        for indices in (range(last + 1), [last], [16, 20], [5, 15, 24], [last, 22, 7]):
            with VideoReader(content, threads=threads) as reader:
                assert len(reader) == len(expected)
                frames = reader.frames_at(indices).permute(0, 2, 3, 1).numpy()
                assert np.array_equal(frames, np.stack([expected[i] for i in indices]))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kept", [groups.KEPT_BYTES, 0])
def test_a_closed_reader_holds_nothing(
    kept: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its decoder and its pictures are gone without the collector of garbage."""
    if int(av.__version__.split(".")[0]) < 18:
        pytest.skip("PyAV 17 keeps a decoder in a cycle of references when its packets were kept")
    monkeypatch.setattr(groups, "KEPT_BYTES", kept)
    path = write_video(tmp_path / "a.mp4", pictures(8, 1080, 1920), codec="libx264", rate=25, g=2, bf=0)
    frames_of: list[weakref.ref[object]] = []

    def memory() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("the memory of a process is read from /proc")
    gc.disable()
    try:
        for turn in range(20):
            with VideoReader(path, threads=threads) as reader:
                reader.frames_at([3, 6])
                left = iter(reader.iter_frames(range(8)))
                next(left)
            del left  # after the reader was closed, as where an error ends a loop
            frames_of.append(weakref.ref(reader))
            if turn == 5:  # each thread has its heap by now
                before = memory()
        assert all(reference() is None for reference in frames_of[:-1])
        assert memory() - before < 14 * 1.5 * 1080 * 1920  # a picture of each; a decoder has several
    finally:
        gc.enable()


LIMITS = {"frames": Limits(frames=20), "seconds": Limits(seconds=1e-9), "chunk_bytes": Limits(chunk_bytes=100)}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_video_over_a_limit_is_one_line(limit: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", pictures(40), codec="libx264", rate=25, g=40, bf=0)
    message = rf"a\.mkv: {limit} is .*UNIFORMERV2_MAX_{limit.upper()}=VALUE"
    with pytest.raises(VideoError, match=message) as error, VideoReader(path, limits=LIMITS[limit]) as reader:
        reader.frames_at([39])
    assert "\n" not in str(error.value)
