"""Small files that would unpack to much, and pictures over the limit of pixels."""

from __future__ import annotations

import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from helpers import noise, start_process, write_video
from image_bytes import encoded, png_chunk, with_png_chunks
from uniformerv2.errors import VideoError
from uniformerv2.video.limits import Limits
from uniformerv2.video.reader import VideoReader, VideoWarning

UNPACKED = 160 << 20  # bytes
MOST = 70 << 10  # KiB that reading may add to a process


def packed() -> bytes:
    packer = zlib.compressobj(1)
    return b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(UNPACKED >> 20)), packer.flush()])


CHUNKS: dict[bytes, bytes] = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}


def bomb(kind: bytes) -> bytes:
    image = encoded(next(noise(1)), "png", "rgb24")
    return with_png_chunks(image, png_chunk(kind, CHUNKS[kind] + packed()))


def in_container(container: str, codec: str = "png", pixels: str = "rgb24") -> Callable[..., Path]:
    def write(folder: Path, *images: bytes) -> Path:
        path = folder / f"a.{container}"
        with av.open(str(path), "w") as output:
            stream = output.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = 48, 48, pixels
            for number, content in enumerate(images):
                packet = av.Packet(content)
                packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, number, number, True
                output.mux(packet)
        return path

    return write


def in_folder(folder: Path, *images: bytes) -> Path:
    for number, image in enumerate(images):
        (folder / f"{number}.png").write_bytes(image)
    return folder


def alone(folder: Path, *images: bytes) -> Path:
    (folder / "a.mp4").write_bytes(images[0])
    return folder / "a.mp4"


def film_in_folder(folder: Path, *images: bytes) -> Path:
    (folder / "0.png").write_bytes(in_container("avi")(folder, *images).read_bytes())
    return folder


FORMS = {
    **{"alone": alone, "folder": in_folder, "film in a folder": film_in_folder},
    **{container: in_container(container) for container in ("mov", "avi", "nut")},
}


@pytest.mark.parametrize(
    ("form", "kind"), [*((form, b"zTXt") for form in FORMS), *(("alone", kind) for kind in CHUNKS)]
)
def test_texts_and_profiles_of_a_png_are_not_unpacked(form: str, kind: bytes, tmp_path: Path) -> None:
    path = FORMS[form](tmp_path, *[bomb(kind)] * 3)
    expected = next(noise(1))

    def read() -> None:
        with VideoReader(write_video(tmp_path / "warm.mp4", noise(2))) as reader:
            reader.frames_at([0])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with VideoReader(path) as reader:
            assert np.array_equal(reader.frames_at([len(reader) - 1])[0].permute(1, 2, 0).numpy(), expected)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST

    process = start_process(read)
    process.join()
    assert process.exitcode == 0


def box(kind: bytes, *content: bytes) -> bytes:
    joined = b"".join(content)
    return struct.pack(">I", 8 + len(joined)) + kind + joined


def compressed_header(film: bytes, *more: bytes, within: bytes = b"moov") -> bytes:
    """The film with its header packed (QuickTime File Format, compressed movie resources)."""
    start = film.index(b"moov") - 4
    size = int.from_bytes(film[start : start + 4], "big")
    header = box(b"moov", film[start + 8 : start + size], *more)
    packer = zlib.compress(header, 9)
    resources = box(b"cmov", box(b"dcom", b"zlib"), box(b"cmvd", struct.pack(">I", len(header)), packer))
    return film[:start] + box(within, resources) + film[start + size :]


def test_a_packed_header_is_read(tmp_path: Path) -> None:
    film = write_video(tmp_path / "a.mov", noise(5))
    with VideoReader(compressed_header(film.read_bytes())) as reader, VideoReader(film) as expected:
        assert reader.frames_at(range(5)).equal(expected.frames_at(range(5)))


@pytest.mark.parametrize("within", [b"moov", b"free", b"udta"])
@pytest.mark.parametrize("form", ["file", "bytes"])
def test_a_header_that_unpacks_to_much_is_refused(form: str, within: bytes, tmp_path: Path) -> None:
    film = write_video(tmp_path / "a.mov", noise(5)).read_bytes()
    content = compressed_header(film, box(b"free", bytes(17 << 20)), within=within)
    (tmp_path / "b.mov").write_bytes(content)
    with pytest.raises(VideoError, match="header would unpack to more than 16 MiB"):
        VideoReader(tmp_path / "b.mov" if form == "file" else content)


@pytest.mark.parametrize("table", ["stsz", "trun", "a cut trun"])
def test_a_table_of_countless_samples_of_one_size_is_refused(table: str, tmp_path: Path) -> None:
    """FFmpeg would keep some 70 bytes of each of them."""
    count, muxer = struct.pack(">I", 1 << 26), {} if table == "stsz" else {"movflags": "frag_keyframe+empty_moov"}
    film = bytearray(write_video(tmp_path / "a.mp4", noise(5), muxer=muxer).read_bytes())
    place = film.index(table[-4:].encode()) + 4
    if table == "a cut trun":
        film[place + 4 :] = count
    elif table == "trun":
        film[place : place + 8] = b"\0\0\0\1" + count  # no sample has a size of its own
    else:
        film[place + 4 : place + 12] = b"\0\0\0\1" + count
        for name, at in (("stsc", 16), ("stts", 12)):
            at += film.index(name.encode())
            film[at : at + 4] = count
    with pytest.raises(VideoError, match="frames is 67108864, and the limit 5000000; if you trust the file"):
        VideoReader(bytes(film))


def test_plain_sound_of_hours_is_no_bomb(tmp_path: Path) -> None:
    film = write_video(tmp_path / "a.mov", noise(5))
    with av.open(str(film)) as source, av.open(str(tmp_path / "b.mov"), "w") as target:
        pictures = target.add_stream_from_template(source.streams.video[0])
        sound = target.add_stream("pcm_s16le", rate=48000, layout="mono")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = pictures
                target.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 6_000_000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 48000
        target.mux(sound.encode(frame))
        target.mux(sound.encode(None))
    with VideoReader(tmp_path / "b.mov") as reader:
        assert len(reader) == 5


def test_a_codec_whose_tag_is_no_text(tmp_path: Path) -> None:
    film = write_video(tmp_path / "a.mp4", noise(5), codec="mpeg4").read_bytes()
    with VideoReader(film) as reader:
        expected = reader.frames_at(range(5))
    with (
        pytest.warns(VideoWarning, match="the tag of its codec is no text"),
        VideoReader(film.replace(b"mp4v", b"\xb0p4v")) as reader,
    ):
        assert reader.frames_at(range(5)).equal(expected)


@pytest.mark.parametrize("number", [b"\x9f\0\0\1", None])
def test_fragments_beside_a_track_without_a_number_are_refused(number: bytes | None, tmp_path: Path) -> None:
    """FFmpeg would count to a billion at each of them."""
    film = write_video(tmp_path / "a.mp4", noise(5), muxer={"movflags": "frag_keyframe+empty_moov"}).read_bytes()
    with VideoReader(film) as reader:
        assert len(reader) == 5
    place = film.index(b"tkhd")
    changed = film.replace(b"tkhd", b"tkhe") if number is None else film[: place + 16] + number + film[place + 20 :]
    assert len(changed) == len(film)
    with pytest.raises(VideoError, match="fragments, and a track without a number"):
        VideoReader(changed)


def test_a_packed_flash_film_is_read_to_its_end_within_the_limit(tmp_path: Path) -> None:
    film = write_video(tmp_path / "a.swf", noise(5), codec="flv").read_bytes()
    with VideoReader(b"CWS" + film[3:8] + zlib.compress(film[8:])) as reader, VideoReader(film) as expected:
        assert reader.frames_at(range(5)).equal(expected.frames_at(range(5)))
    picture = struct.pack("<HI", 61 << 6 | 63, 64 << 20) + bytes(64 << 20)
    packed_tag = b"CWS" + film[3:8] + zlib.compress(film[8:-2] + picture)
    with pytest.raises(VideoError, match="chunk_bytes is"):
        VideoReader(packed_tag, limits=Limits(chunk_bytes=32 << 20))


PIXELS = Limits(pixels=48 * 47)
LARGE = {
    "mp4": "mpeg4",
    "mkv": "mpeg4",
    "avi": "mjpeg",
    "ts": "mpeg2video",
    "flv": "flv",
    "mpg": "mpeg1video",
    "gif": "gif",
    "h264": "libx264",
}


@pytest.mark.parametrize("container", LARGE)
def test_pictures_over_the_limit_of_pixels_are_refused(container: str, tmp_path: Path) -> None:
    pixels = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(LARGE[container], "yuv420p")
    path = write_video(tmp_path / f"a.{container}", noise(5), codec=LARGE[container], pixels=pixels, rate=25)
    with VideoReader(path, limits=Limits(pixels=48 * 48)) as reader:
        assert reader.frames_at([0]).shape[-2:] == (48, 48)
    with pytest.raises(VideoError, match=r"pixels is 2304, and the limit 2256; .*--limit pixels=VALUE"):
        VideoReader(path, limits=PIXELS)


def test_an_image_over_the_limit_of_pixels_is_refused(tmp_path: Path) -> None:
    for form, suffix in (("mjpeg", "jpg"), ("png", "png")):
        folder = tmp_path / form
        folder.mkdir()
        pixels = {"mjpeg": "yuvj444p", "png": "rgb24"}[form]
        (folder / f"0.{suffix}").write_bytes(encoded(next(noise(1)), form, pixels))
        for source in (folder, folder / f"0.{suffix}"):
            with pytest.raises(VideoError, match=rf"0\.{suffix}: pixels is 2304, and the limit 2256"):
                VideoReader(source, limits=PIXELS)


@pytest.mark.parametrize(("container", "codec"), [("avi", "png"), ("mkv", "mjpeg"), ("mp4", "mjpeg")])
def test_a_picture_larger_than_the_file_states_is_not_decoded(container: str, codec: str, tmp_path: Path) -> None:
    pixels = {"mjpeg": "yuvj420p", "png": "rgb24"}[codec]
    small, large = (encoded(next(noise(1, side, side)), codec, pixels) for side in (48, 1200))
    path = in_container(container, codec, pixels)(tmp_path, small, large, small)
    with VideoReader(path, limits=Limits(pixels=1200 * 1200)) as reader:
        assert reader.frames_at(range(3)).shape[-2:] == (48, 48)
        assert not reader.damage
    with (
        VideoReader(path, limits=Limits(pixels=48 * 48)) as reader,
        pytest.warns(VideoWarning, match="packet 1 cannot"),
    ):
        assert reader.frames_at(range(len(reader))).shape[-2:] == (48, 48)
