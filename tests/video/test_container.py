"""What is opened, what is refused, and what the decoder's library raises."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from helpers import noise, write_video
from image_bytes import encoded, matroska
from uniformerv2.errors import VideoError
from uniformerv2.video.container import guarded
from uniformerv2.video.decoding import main_stream
from uniformerv2.video.live import Address, LiveFrames, Pace, read
from uniformerv2.video.reader import VideoReader


@pytest.mark.parametrize("container", ["mp4", "mkv", "avi", "mov", "nut", "asf", "ts"])
def test_metadata_of_any_bytes(container: str, tmp_path: Path) -> None:
    key = {"ts": "service_name"}.get(container, "title")
    path = tmp_path / f"a.{container}"
    codec = "mpeg2video" if container == "ts" else "mpeg4"
    mark = "ÄÖÜÄÖÜ"
    write_video(path, noise(5), codec=codec, rate=25, prepare=lambda stream: metadata(stream, {key: mark}))
    wide = "utf-16-le" if container == "asf" else "utf-8"
    content = path.read_bytes()
    assert mark.encode(wide) in content
    path.write_bytes(
        content.replace(mark.encode(wide), mark.encode("latin-1") + b"\xe9" * (len(mark.encode(wide)) - 6))
    )
    with VideoReader(path) as reader:
        assert len(reader.frames_at([0, 4])) == 2


def metadata(stream: Any, values: dict[str, str]) -> None:
    stream.container.metadata.update(values)


PLAYLISTS = {
    "a.m3u8": ("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{film}\n#EXT-X-ENDLIST\n", "HLS playlist"),
    "self.m3u8": ("#EXTM3U\n#EXTINF:1,\nself.m3u8\n#EXT-X-ENDLIST\n", "HLS playlist"),
    "concat.mp4": ("ffconcat version 1.0\nfile film.mp4\n", "ffconcat"),
    "sdp.mp4": ("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 26\n", "SDP"),
    "later.mp4": ("s=a\nv=0\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 26\n", "no video|cannot be read"),
    "meta.mp4": (";FFMETADATA1\ntitle=a\n", "no video|cannot be read"),
    "dash.mpd": ('<?xml version="1.0"?><MPD><BaseURL>{film}</BaseURL></MPD>', "no video|cannot be read"),
    "ram.mp4": ("file://{film}\n", "no video|cannot be read"),
    "ref.asx": ("[Reference]\nRef1=http://127.0.0.1:{port}/\n", "no video|cannot be read"),
    "art.txt": ("hello\n" * 50, "no video|cannot be read"),
}


def read_live(path: Path) -> None:
    frames = LiveFrames()
    read(Address.of(path), frames, None, 5.0, pace=Pace(frames.clock, print), stopped=lambda: True)


FORMS: dict[str, Callable[[Path], object]] = {
    "file": VideoReader,
    "bytes": lambda path: VideoReader(path.read_bytes(), name=path.name),
    "live": read_live,
}


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("form", FORMS)
def test_what_names_other_media_is_refused(name: str, form: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    film = write_video(tmp_path / "film.mp4", noise(5))
    text, reason = PLAYLISTS[name]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        (tmp_path / name).write_text(text.format(film=film, port=other.getsockname()[1] + 1))
        with pytest.raises(VideoError, match=reason) as caught:
            FORMS[form](tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_name_with_a_percent_sign_is_no_pattern(tmp_path: Path) -> None:
    red, blue = (
        write_video(
            tmp_path / f"{i}.png",
            noise(1, brightest=i * 100),
            codec="png",
            pixels="rgb24",
            container="image2",
            muxer={"update": "1"},
        )
        for i in (1, 2)
    )
    (tmp_path / "a%d.png").write_bytes(blue.read_bytes())
    red.rename(tmp_path / "a1.png")
    with VideoReader(tmp_path / "a%d.png") as reader, VideoReader(blue) as expected:
        assert len(reader) == 1
        assert reader.frames_at([0]).equal(expected.frames_at([0]))


def test_a_name_decides_nothing(tmp_path: Path) -> None:
    content = write_video(tmp_path / "a.mp4", noise(5), codec="mpeg2video").read_bytes()
    for name in ("a.img", "a1.jpg", "a.txt", "a.m3u8", "a"):
        (tmp_path / name).write_bytes(content)
        with VideoReader(tmp_path / name) as reader:
            assert len(reader) == 5
    raw = write_video(tmp_path / "a.m2v", noise(5), codec="mpeg2video", container="mpeg2video").rename(
        tmp_path / "b.img"
    )
    with VideoReader(raw) as reader:
        assert len(reader) == 5


KEY = "00112233445566778899aabbccddeeff"
CENC = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": KEY, "encryption_kid": KEY}


@pytest.mark.parametrize("flags", [{}, {"movflags": "frag_keyframe+empty_moov"}])
def test_an_encrypted_mp4_is_called_so(flags: dict[str, str], tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(5), muxer=CENC | flags)
    for source in (path, path.read_bytes()):
        with pytest.raises(VideoError, match="the video is encrypted"):
            VideoReader(source)


def test_an_encrypted_matroska_is_called_so() -> None:
    images = [encoded(image, "mjpeg", "yuvj420p") for image in noise(3, 32, 48)]
    with VideoReader(matroska(images)) as reader:
        assert len(reader) == 3
    with pytest.raises(VideoError, match="the video is encrypted"):
        VideoReader(matroska(images, key=b"a key"))


def test_the_colours_of_an_avif_are_read_not_its_alpha(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        streams = [output.add_stream("mpeg4", rate=10) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
        for loud in noise(5):
            for stream, image in zip(streams, (np.full_like(loud, 128), loud), strict=True):
                output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for stream in streams:
            output.mux(stream.encode(None))
    content = bytearray((tmp_path / "a.mp4").read_bytes().replace(b"isom", b"avis", 1))
    second = content.rindex(b"tkhd")
    content[second + 4 : second + 8] = bytes([0, 0, 0, 3])  # enabled, as the first is
    with av.open(io.BytesIO(content)) as container:
        assert container.streams.best("video") is container.streams[1]
    with VideoReader(bytes(content)) as reader:
        assert (reader.frames_at([4]).float() - 128).abs().max() < 10


def test_the_animation_of_an_avif_is_read_not_the_picture_before_it(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        streams = [output.add_stream("mpeg4", rate=10) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
        for stream, count in zip(streams, (1, 5), strict=True):
            for image in noise(count):
                output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            output.mux(stream.encode(None))
    with VideoReader((tmp_path / "a.mp4").read_bytes().replace(b"isom", b"avis", 1)) as reader:
        assert len(reader) == 5


def test_pictures_in_tiles_are_refused(tmp_path: Path) -> None:
    with av.open(str(write_video(tmp_path / "a.mp4", noise(5)))) as container:
        container.streams.video[0].disposition = Disposition.dependent.value  # type: ignore[assignment]
        with pytest.raises(VideoError, match="a picture in tiles"):
            main_stream(container, "a.heic")


@pytest.mark.parametrize(
    "error",
    [
        *(av.error.InvalidDataError(1, "invalid", "a"), ValueError("29 is not\na valid Type")),
        *(UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "no"), OverflowError("far"), FileNotFoundError(2, "gone")),
        *(KeyError("a"), IndexError("b"), MemoryError(), TypeError("c"), RuntimeError("d")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_library_raises_is_one_line(error: Exception) -> None:
    with pytest.raises(VideoError, match=r"^film: cannot be read as a video \(") as caught, guarded("film"):
        raise error
    assert "\n" not in str(caught.value)
