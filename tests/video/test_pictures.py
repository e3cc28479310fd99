"""Pictures as they are shown: turned, mirrored, transparent."""

from __future__ import annotations

import gc
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from helpers import noise, start_process, write_video
from image_bytes import encoded, png_chunk, with_exif, with_png_chunks
from uniformerv2.video.reader import VideoReader

# what the eight orientations of Exif ask for (EXIF 2.32, tag 0x0112): where the first row and column are shown
EXIF: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda image: image,
    2: np.fliplr,
    3: partial(np.rot90, k=2),
    4: np.flipud,
    5: lambda image: image.swapaxes(0, 1),
    6: partial(np.rot90, k=-1),
    7: lambda image: np.rot90(image, 2).swapaxes(0, 1),
    8: np.rot90,
}


def corner() -> np.ndarray:
    """Of 48x32 pixels, red in the upper left."""
    image = np.zeros((32, 48, 3), np.uint8)
    image[:16, :16, 0] = 255
    return image


def first_frame(source: Path | bytes) -> np.ndarray:
    """uint8 RGB (height, width, 3)."""
    with VideoReader(source) as reader:
        return reader.frames_at([0])[0].permute(1, 2, 0).numpy()


def test_a_colour_profile_in_a_png_does_no_harm(tmp_path: Path) -> None:
    profile = png_chunk(b"iCCP", b"a profile\0\0" + zlib.compress(bytes(3000)))
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(with_png_chunks(encoded(corner(), "png", "rgb24"), profile))

    def read() -> None:
        for _ in range(30):
            with VideoReader(tmp_path) as reader:
                assert np.array_equal(reader.frames_at([3])[0].permute(1, 2, 0).numpy(), corner())
            gc.collect()

    process = start_process(read)
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("codec", ["mjpeg", "png", "libwebp"])
@pytest.mark.parametrize("orientation", EXIF)
def test_images_are_turned_as_exif_says(codec: str, orientation: int, tmp_path: Path) -> None:
    image = encoded(corner(), codec, {"mjpeg": "yuvj444p", "png": "rgb24", "libwebp": "yuv420p"}[codec])
    suffix = {"mjpeg": "jpg", "png": "png", "libwebp": "webp"}[codec]
    for number in range(2):
        (tmp_path / f"{number}.{suffix}").write_bytes(with_exif(image, orientation))
    expected = EXIF[orientation](first_frame(image))
    with VideoReader(tmp_path) as reader:
        assert (reader.height, reader.width) == expected.shape[:2]
        assert np.array_equal(reader.frames_at([1])[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("orientation", [2, 4, 5, 8])
def test_a_video_of_jpegs_is_turned_as_exif_says(orientation: int, tmp_path: Path) -> None:
    image = encoded(corner(), "mjpeg", "yuvj420p")
    with av.open(str(tmp_path / "a.avi"), "w") as output:
        stream = output.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj420p"
        for number in range(4):
            packet = av.Packet(with_exif(image, orientation))
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, number, number, True
            output.mux(packet)
    with VideoReader(tmp_path / "a.avi") as reader:
        frames = reader.frames_at(range(4)).permute(0, 2, 3, 1).numpy()
    assert all(np.array_equal(frame, EXIF[orientation](first_frame(image))) for frame in frames)


@pytest.mark.parametrize(("value", "turns"), [(0, 0), (2**31 - 1, 0), (-(2**31), 2)])
def test_a_display_matrix_of_garbage_does_no_harm(value: int, turns: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(3, 32, 48))
    expected = first_frame(path)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44  # ISO/IEC 14496-12, 8.3.2
    content[start : start + 36] = np.full(9, value, ">i4").tobytes()
    assert np.array_equal(first_frame(bytes(content)), np.rot90(expected, turns))
