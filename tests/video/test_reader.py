"""VideoReader against an independent full sequential decode, on small files that the tests write themselves."""

from __future__ import annotations

import io
import logging
import random
import warnings
import wave
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from helpers import Target, write_video
from media import pictures, turned
from uniformerv2.errors import VideoError
from uniformerv2.video import groups
from uniformerv2.video.decoding import UNTIMED_RATE
from uniformerv2.video.reader import VideoReader, VideoWarning

HEIGHT, WIDTH = 48, 64


def write(
    target: Target,
    count: int = 40,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (HEIGHT, WIDTH),
    rotation: int = 0,
    mirrored: bool = False,
    **options: Any,
) -> Target:
    """Encode `count` pictures, to be turned and mirrored when they are shown; other options as of `write_video`."""
    write_video(target, pictures(count, *size), codec=codec, rate=25, **options)
    if rotation or mirrored:
        target.write_bytes(turned(target.read_bytes(), rotation // 90, mirrored=mirrored))
    return target


def packets_of(source: Path | bytes) -> list[av.Packet]:
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def sequential(source: Path | bytes) -> list[np.ndarray]:
    """Every frame of a plain decode from the start, upright, stepping over packets that cannot be decoded."""
    frames = []
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
        stream = container.streams.best("video")
        stream.thread_count = 1
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                continue
            for frame in decoded:
                frames.append(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
    return frames


def assert_exact(source: Path | bytes, expected: list[np.ndarray], **options: int) -> None:
    """All frames, some at random, backwards and repeated, each alone: bit by bit those of the sequential decode."""
    count = len(expected)
    draw = random.Random(0)
    some = sorted(draw.sample(range(count), min(5, count)))
    requests = [list(range(count)), some, some[::-1], [count - 1, 0, count - 1, 0], *([i] for i in some)]
    for indices in requests:
        with VideoReader(source, **options) as reader:
            assert len(reader) == count
            frames = reader.frames_at(indices)
        assert frames.dtype == torch.uint8
        assert frames.is_contiguous(memory_format=torch.channels_last)
        wanted = np.stack([expected[i] for i in indices]).transpose(0, 3, 1, 2)
        assert frames.shape == wanted.shape
        assert np.array_equal(frames.numpy(), wanted), f"frames {indices} differ"


@pytest.fixture(autouse=True, params=["kept", "read again"])
def packets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test with the packets of a short video, which are kept, and of one too long for that."""
    if request.param == "read again":
        monkeypatch.setattr(groups, "KEPT_BYTES", 0)
    return request.param


OPEN_GROUPS = "open-gop=1:keyint=10:min-keyint=5:bframes=3:b-pyramid=normal:b-adapt=0:scenecut=0"
IRREGULAR = np.cumsum(np.random.default_rng(0).integers(1, 90, 40)).tolist()

# name: (file name, how to write it, whether the packets alone tell the frames)
VIDEOS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "b-frames": ("a.mp4", {"g": 12, "bf": 3}, True),
    "one long group": ("a.mp4", {"g": 250}, True),
    "open groups": ("a.mp4", {"x264_params": OPEN_GROUPS}, True),
    "open groups in Matroska": ("a.mkv", {"x264_params": OPEN_GROUPS}, True),
    "open groups in a transport stream": ("a.ts", {"x264_params": OPEN_GROUPS}, True),
    "open groups in HEVC": (
        "a.mp4",
        {"codec": "libx265", "x265_params": "open-gop=1:keyint=10:min-keyint=5:bframes=3:log-level=none"},
        True,
    ),
    "no key frames, but a refresh bit by bit": ("a.mp4", {"x264_params": "intra-refresh=1:keyint=10"}, False),
    "several slices": ("a.mp4", {"x264_params": "slices=3:keyint=10"}, True),
    "interlaced H.264": ("a.mp4", {"x264_params": "interlaced=1:keyint=10"}, True),
    "interlaced MPEG-2": ("a.ts", {"codec": "mpeg2video", "flags": "+ilme+ildct", "bf": 2}, True),
    "MPEG program stream": ("a.mpg", {"codec": "mpeg1video", "bf": 2, "size": (96, 128)}, True),
    "variable rate": ("a.mp4", {"times": IRREGULAR, "g": 10}, True),
    "variable rate in Matroska": ("a.mkv", {"times": IRREGULAR, "g": 10}, True),
    "late start": ("a.mp4", {"times": [t + 5000 for t in IRREGULAR], "g": 10}, True),
    "fragments without a frame count": ("a.mp4", {"muxer": {"movflags": "frag_keyframe+empty_moov"}, "g": 10}, True),
    "10 bit": ("a.mp4", {"pixels": "yuv420p10le", "g": 10}, True),
    "4:4:4": ("a.mp4", {"pixels": "yuv444p", "g": 10}, True),
    "odd size": ("a.mkv", {"codec": "ffv1", "size": (37, 51)}, True),
    "2x2": ("a.mkv", {"codec": "ffv1", "size": (2, 2)}, True),
    "MPEG-4 in AVI": ("a.avi", {"codec": "mpeg4", "g": 12}, True),
    "MPEG-4 with B-frames in AVI": ("a.avi", {"codec": "mpeg4", "g": 12, "bf": 2}, True),
    "MPEG-4 with B-frames in MP4": ("a.mp4", {"codec": "mpeg4", "g": 12, "bf": 2}, True),
    "H.264 with B-frames in AVI": ("a.avi", {"g": 12, "bf": 3}, False),
    "raw H.264 without times": ("a.h264", {"g": 12}, False),
    "Motion JPEG": ("a.mov", {"codec": "mjpeg", "pixels": "yuvj420p"}, True),
    "GIF": ("a.gif", {"codec": "gif", "pixels": "rgb8"}, False),
    "VP8": ("a.webm", {"codec": "libvpx", "g": 10}, True),
    "VP9 with alpha": ("a.webm", {"codec": "libvpx-vp9", "pixels": "yuva420p", "g": 10}, True),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_are_those_of_a_sequential_decode(name: str, tmp_path: Path) -> None:
    file, options, indexed = VIDEOS[name]
    path = write(tmp_path / file, **options)
    expected = sequential(path)
    assert len(expected) == options.get("count", 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of these is damaged
        assert_exact(path, expected)
        assert_exact(path.read_bytes(), expected, threads=1)
    with VideoReader(path) as reader:
        reader.frames_at([len(reader) - 1, len(reader) // 2])
        assert reader.statistics.indexed == indexed


def test_open_groups_start_with_frames_of_the_group_before(tmp_path: Path) -> None:
    """The test above would say nothing about open groups if the encoder had not written any."""
    path = write(tmp_path / "a.mp4", x264_params=OPEN_GROUPS)
    assert any(key.is_keyframe and after.pts < key.pts for key, after in pairwise(packets_of(path)[1:]))


def test_hidden_frames_are_not_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.webm", codec="libvpx", g=20)
    content = bytearray(path.read_bytes())
    packets = packets_of(path)
    for packet in packets[7], packets[30]:
        content[content.index(bytes(packet))] &= ~0x10  # show_frame, RFC 6386 section 9.1
    expected = sequential(bytes(content))
    assert len(expected) == 38
    assert_exact(bytes(content), expected)
    with VideoReader(bytes(content)) as reader:
        assert reader.statistics.indexed


@pytest.mark.parametrize(("rotation", "mirrored"), [(90, False), (180, False), (-90, False), (0, True), (90, True)])
def test_display_rotation_and_mirroring(rotation: int, mirrored: bool, tmp_path: Path) -> None:
    plain = np.stack(sequential(write(tmp_path / "plain.mp4", 5)))
    path = write(tmp_path / "turned.mp4", 5, rotation=rotation, mirrored=mirrored)
    expected = np.rot90(plain, rotation // 90, axes=(1, 2))
    expected = expected[:, :, ::-1] if mirrored else expected
    with VideoReader(path) as reader:
        assert (reader.height, reader.width) == expected.shape[1:3]
        assert np.array_equal(reader.frames_at(range(5)).numpy(), expected.transpose(0, 3, 1, 2))


def test_edit_list_hides_frames(tmp_path: Path) -> None:
    source = write(tmp_path / "whole.mp4", g=30)
    path = tmp_path / "cut.mp4"
    with av.open(str(source)) as whole, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as cut:
        stream = cut.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(whole.streams.video[0]):
            if packet.size:
                packet.stream = stream
                packet.pts, packet.dts = packet.pts - 512 * 15, packet.dts - 512 * 15  # 15 frames before zero
                cut.mux(packet)
    expected = sequential(path)
    assert len(expected) == 25
    assert_exact(path, expected)
    with VideoReader(path) as reader:
        assert reader.statistics.indexed


def test_the_default_one_of_two_streams_is_read(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as output:
        streams = [output.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, (height, width) in zip(streams, [(32, 32), (HEIGHT, WIDTH)], strict=True):
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        streams[0].disposition = av.stream.Disposition(0).value
        streams[1].disposition = av.stream.Disposition.default.value
        for image in pictures(20):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(image).reformat(width=stream.width, height=stream.height)
                output.mux(stream.encode(frame))
        for stream in streams:
            output.mux(stream.encode(None))
    with VideoReader(path) as reader:
        assert (reader.height, reader.width) == (HEIGHT, WIDTH)
    assert_exact(path, sequential(path))


def test_frames_of_a_changing_size_are_scaled_to_the_first(tmp_path: Path) -> None:
    small = write(tmp_path / "small.h264", 10, size=(32, 96))
    large = write(tmp_path / "large.h264", 10)
    path = tmp_path / "both.h264"
    path.write_bytes(large.read_bytes() + small.read_bytes())
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24", width=WIDTH, height=HEIGHT) for frame in container.decode(video=0)]
    assert_exact(path, expected)


def test_wrong_frame_count_in_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", codec="mpeg4")
    content = bytearray(path.read_bytes())
    for offset in (content.index(b"avih") + 24, content.index(b"strh") + 40):
        assert int.from_bytes(content[offset : offset + 4], "little") == 40
        content[offset : offset + 4] = (7).to_bytes(4, "little")
    with VideoReader(bytes(content)) as reader:
        assert len(reader) == 40


def test_rate_duration_and_index_at(tmp_path: Path) -> None:
    with VideoReader(write(tmp_path / "a.mp4", 40)) as reader:
        assert (reader.rate, reader.duration) == pytest.approx((25, 1.6))
        assert [reader.index_at(i / 25) for i in range(40)] == list(range(40))
        assert [reader.index_at(t) for t in (-1, 0.039, 0.041, 99)] == [0, 0, 1, 39]


def test_index_at_follows_a_variable_rate(tmp_path: Path) -> None:
    times = [0, 10, 500, 510, 2000]
    with VideoReader(write(tmp_path / "a.mkv", 5, times=times)) as reader:
        assert [reader.index_at(ms / 1000) for ms in (0, 9, 10, 499, 500, 1999, 2000)] == [0, 0, 1, 1, 2, 3, 4]
        assert reader.rate == pytest.approx(4 / 2)


GROUPS_OF_10 = "keyint=10:min-keyint=10:scenecut=0:bframes=0"
DISPOSABLE = "keyint=300:bframes=2:b-pyramid=0:b-adapt=0:scenecut=0:open-gop=0"  # every third frame is referred to

# name: (encoder, its settings, number of frames, frames that are read, packets that are decoded, seeks at most)
COSTS: dict[str, tuple[str, str, int, Sequence[int], int, int]] = {
    "one frame: its group, from key frame 180 on": ("libx264", GROUPS_OF_10, 200, [185], 6, 1),
    "groups without wanted frames are left out": ("libx264", GROUPS_OF_10, 200, [183, 12, 14, 12, 120], 4 + 5 + 1, 3),
    "one group, once, up to the last wanted frame": ("libx264", "keyint=300:bframes=0", 120, range(0, 101, 10), 101, 1),
    "neighbouring groups": ("libx264", "keyint=5:min-keyint=5:scenecut=0:bframes=0", 60, range(60), 60, 1),
    "frames that no other refers to": ("libx264", DISPOSABLE, 61, [60], 21, 1),
}


@pytest.mark.parametrize("name", COSTS)
def test_no_more_is_decoded_than_wanted_frames_need(name: str, tmp_path: Path, packets: str) -> None:
    codec, settings, count, indices, decoded, seeks = COSTS[name]
    path = write(tmp_path / "a.mp4", count, codec=codec, **{f"{codec.removeprefix('lib')}_params": settings})
    with VideoReader(path) as reader:
        before = reader.statistics
        reader.frames_at(indices)
        after = reader.statistics
    assert (after.packets - before.packets, after.frames - before.frames) == (decoded, decoded)
    assert after.seeks - before.seeks <= (seeks if packets == "read again" else 0)
    assert (after.opened, after.indexed) == (1, True)


def test_a_key_frame_that_is_none_is_found_out(tmp_path: Path) -> None:
    content = write(tmp_path / "a.mp4", codec="mpeg4", g=300).read_bytes()
    content = content.replace(b"stss", b"free")  # without a table of key frames, all are
    assert all(packet.is_keyframe for packet in packets_of(content))
    expected = sequential(content)
    assert_exact(content, expected)
    with VideoReader(content) as reader:
        assert reader.statistics.indexed
        reader.frames_at([30])
        assert not reader.statistics.indexed


@pytest.mark.parametrize("file", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.flv"])
def test_truncated_file(file: str, tmp_path: Path) -> None:
    codec = "mpeg4" if file == "a.avi" else "libx264"
    muxer = {"movflags": "faststart"} if file == "a.mp4" else {}
    content = write(tmp_path / file, 60, codec=codec, muxer=muxer, bf=0).read_bytes()
    content = content[: int(len(content) * 0.7)]
    expected = sequential(content)
    count = len(expected)
    assert 0 < count < 60
    with warnings.catch_warnings(), VideoReader(content) as reader:
        warnings.simplefilter("ignore", VideoWarning)
        assert len(reader) == count
        frames = reader.frames_at(range(count))
    # what stands in for the missing part of the last frame is up to the decoder and to chance
    assert np.array_equal(frames[:-1].numpy(), np.stack(expected[:-1]).transpose(0, 3, 1, 2))


def test_damage_is_warned_of_once(tmp_path: Path) -> None:
    content = write(tmp_path / "a.mp4", 60, muxer={"movflags": "faststart"}).read_bytes()
    with VideoReader(content[: int(len(content) * 0.7)]) as reader:
        with pytest.warns(VideoWarning, match="damaged video.*packet"):
            reader.frames_at([0, 5])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reader.frames_at([1])


def overwritten(path: Path, group: int) -> bytes:
    """The content of a video with noise over two packets of one of its groups of pictures."""
    content = bytearray(path.read_bytes())
    packets = packets_of(path)
    key = [i for i, packet in enumerate(packets) if packet.is_keyframe][group]
    for packet in packets[key + 2 : key + 4]:
        noise = np.random.default_rng(0).integers(0, 255, packet.size - 8, dtype=np.uint8)
        content[packet.pos + 8 : packet.pos + packet.size] = noise.tobytes()
    return bytes(content)


def test_frames_around_lost_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", 60, x264_params=GROUPS_OF_10)
    content = overwritten(path, group=3)
    found = sequential(content)
    assert len(found) == 58  # of the two that are lost, the frame before is shown
    expected = [*found[:32], found[31], found[31], *found[32:]]
    for wanted in ([59, 31, 0, 40, 35], [34], range(60), [33]):
        with VideoReader(content) as reader:
            if {32, 33, 34} & set(wanted):
                with pytest.warns(VideoWarning, match="packet 32 cannot be decoded"):
                    frames = reader.frames_at(wanted)
            else:
                frames = reader.frames_at(wanted)
            assert len(reader) == 60
        assert np.array_equal(frames.numpy(), np.stack([expected[i] for i in wanted]).transpose(0, 3, 1, 2))


def test_damage_elsewhere_does_not_matter(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", 60, x264_params=GROUPS_OF_10)
    expected = sequential(path)
    with warnings.catch_warnings(), VideoReader(overwritten(path, group=3)) as reader:
        warnings.simplefilter("error")
        frames = reader.frames_at([5, 29, 40, 59])
    assert np.array_equal(frames.numpy(), np.stack([expected[i] for i in (5, 29, 40, 59)]).transpose(0, 3, 1, 2))


def test_frames_lost_at_the_end(tmp_path: Path) -> None:
    content = bytearray(write(tmp_path / "a.mp4", 40, x264_params="keyint=300:bframes=0").read_bytes())
    for packet in packets_of(bytes(content))[20:]:
        noise = np.random.default_rng(0).integers(0, 255, packet.size - 8, dtype=np.uint8)
        content[packet.pos + 8 : packet.pos + packet.size] = noise.tobytes()
    found = sequential(bytes(content))
    assert len(found) == 20
    with VideoReader(bytes(content)) as reader:
        with pytest.warns(VideoWarning, match="packet 20 cannot be decoded"):
            frames = reader.frames_at([39, 3])
        assert len(reader) == 40
    assert np.array_equal(frames.numpy(), np.stack([found[19], found[3]]).transpose(0, 3, 1, 2))


def silence(path: Path) -> None:
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))


def cover_art(path: Path) -> None:
    """An audio file with a picture in it."""
    with av.open(str(path), "w") as output:
        sound, picture = output.add_stream("mp3", rate=44100), output.add_stream("png", rate=1)
        picture.height, picture.width, picture.pix_fmt = HEIGHT, WIDTH, "rgb24"
        picture.disposition = av.stream.Disposition.attached_pic.value
        output.mux(picture.encode(av.VideoFrame.from_ndarray(next(pictures(1)))))
        output.mux(picture.encode(None))
        for i in range(10):
            samples = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.float32), format="fltp", layout="stereo")
            samples.sample_rate, samples.pts = 44100, 1152 * i
            output.mux(sound.encode(samples))
        output.mux(sound.encode(None))


def headers_only(path: Path) -> None:
    """A video cut off right behind its index."""
    write(path, muxer={"movflags": "faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 12])


def unknown_codec(path: Path) -> None:
    write(path)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"none"))


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.mp4": (lambda path: None, "No such file"),
    "empty.mp4": (lambda path: path.write_bytes(b""), "the file is empty"),
    "text.mp4": (lambda path: path.write_text("I am a text, not a video.\n" * 50), "Invalid data"),
    "text.txt": (lambda path: path.write_text("FFmpeg would draw this as a terminal does.\n" * 50), "no video"),
    "audio.wav": (silence, "no video"),
    "audio.mp3": (cover_art, "no video"),
    "headers.mp4": (headers_only, "frame 0 cannot be decoded"),
    "codec.mp4": (unknown_codec, "no decoder"),
    "folder": (lambda path: path.mkdir(), "a folder without frame images"),
    "notes": (lambda path: [path.mkdir(), (path / "a.txt").write_text("x")], "a folder without frame images"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_video_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    make, reason = REFUSED[name]
    path = tmp_path / name
    make(path)
    with pytest.raises(VideoError) as caught:
        VideoReader(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert reason in message
    assert "\n" not in message
    assert caught.value.__cause__ is None


def test_a_video_of_one_pixel_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pixel.mkv"
    write(path, count=3, codec="ffv1", size=(1, 1))
    with pytest.raises(VideoError, match=r"pixel\.mkv: 1x1 pixels"):
        VideoReader(path)


def test_empty_bytes_are_refused() -> None:
    with pytest.raises(VideoError, match="video of 0 bytes: the file is empty"):
        VideoReader(b"")


def test_indices_outside_the_video(tmp_path: Path) -> None:
    with VideoReader(write(tmp_path / "a.mp4", 10)) as reader:
        for index in (10, -1):
            with pytest.raises(IndexError, match=f"no frame {index}, there are 10"):
                reader.frames_at([0, index])
        assert reader.frames_at([]).shape == (0, 3, HEIGHT, WIDTH)


def test_names_that_look_like_an_address_or_a_pattern(tmp_path: Path) -> None:
    content = write(tmp_path / "a.mp4", 5).read_bytes()
    for name in ("http:%03d.mp4", "-a b.mp4", "ünïcode.mp4"):
        (tmp_path / name).write_bytes(content)
        with VideoReader(tmp_path / name) as reader:
            assert len(reader) == 5


def test_no_noise_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: Any) -> None:
    path = write(tmp_path / "a.mp4", 60, x264_params=GROUPS_OF_10)
    content = overwritten(path, group=2)
    capfd.readouterr()
    with caplog.at_level(logging.DEBUG), VideoReader(content) as reader, pytest.warns(VideoWarning):
        reader.frames_at(range(50))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def frame_folder(folder: Path, suffix: str, codec: str, pixels: str) -> list[np.ndarray]:
    """Twelve images, numbered without leading zeros, with what a plain decode makes of them."""
    folder.mkdir()
    for i, image in enumerate(pictures(12)):
        options = {"codec": codec, "rate": 1, "pixels": pixels, "container": "image2", "muxer": {"update": "1"}}
        write_video(folder / f"frame{i}.{suffix}", [image], **options)
    (folder / "labels.txt").write_text("not an image")
    (folder / "._frame0.png").write_bytes(b"left by another system")
    return [sequential(folder / f"frame{i}.{suffix}")[0] for i in range(12)]


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels"),
    [
        *(("jpg", "mjpeg", "yuvj420p"), ("JPEG", "mjpeg", "yuvj444p"), ("png", "png", "rgb24")),
        *(("bmp", "bmp", "bgr24"), ("webp", "libwebp", "yuv420p")),
    ],
)
def test_folder_of_images(suffix: str, codec: str, pixels: str, tmp_path: Path) -> None:
    expected = frame_folder(tmp_path / "frames", suffix, codec, pixels)
    assert_exact(tmp_path / "frames", expected)
    with VideoReader(str(tmp_path / "frames")) as reader:
        assert (reader.height, reader.width) == (HEIGHT, WIDTH)
        assert (reader.rate, reader.duration) == (UNTIMED_RATE, 12 / UNTIMED_RATE)
        assert [reader.index_at(t) for t in (-1, 0, 0.08, 99)] == [0, 0, 2, 11]


def test_folder_with_images_of_two_sizes(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    frame_folder(folder, "png", "png", "rgb24")
    write(folder / "frame7.png", 1, codec="png", pixels="rgb24", size=(32, 32), container="image2")
    with VideoReader(folder) as reader:
        assert reader.frames_at([0, 6, 8]).shape == (3, 3, HEIGHT, WIDTH)
        with pytest.raises(VideoError, match=r"frame7\.png: 32x32 pixels, but frame0\.png has 64x48"):
            reader.frames_at([6, 7])


def test_folder_with_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    frame_folder(folder, "jpg", "mjpeg", "yuvj420p")
    (folder / "frame3.jpg").write_text("no image")
    with VideoReader(folder) as reader:
        assert len(reader) == 12
        with pytest.raises(VideoError, match=r"frame3\.jpg: cannot be read as an image"):
            reader.frames_at([2, 3])


def test_frames_come_one_after_the_other_as_they_come_together(shared: Path) -> None:
    for name in ("torchcodec/h264_10bits.mp4", "tmbo-ucf101/video3.webm"):
        with VideoReader(shared / "data" / "videos" / name) as reader:
            wanted = sorted({0, 3, 4, len(reader) // 2, len(reader) - 1})
            together = reader.frames_at(wanted)
            frames = dict(reader.iter_frames(wanted))
            assert list(frames) == wanted
            assert torch.equal(torch.stack(list(frames.values())), together)
            assert reader.damage == ""


def test_an_iteration_ends_where_other_frames_are_read(tmp_path: Path) -> None:
    write(tmp_path / "video.mp4")
    with VideoReader(tmp_path / "video.mp4") as reader:
        frames = reader.iter_frames([0, 1, 2])
        next(frames)
        assert len(reader.frames_at([30])) == 1
        with pytest.raises(RuntimeError, match=r"video\.mp4: other frames were read"):
            next(frames)
