"""Pictures as they are shown: turned, mirrored, transparent."""

from __future__ import annotations

import gc
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from helpers import noise, start_process, write_video
from image_bytes import GifFrame, encoded, gif, png_chunk, with_exif, with_png_chunks
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


def over_white(image: np.ndarray) -> np.ndarray:
    """RGB of RGBA, to the nearest value."""
    alpha = image[..., 3:] / 255
    return np.rint(image[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def transparent(count: int = 1, *, seed: int = 0) -> Iterator[np.ndarray]:
    """RGBA images, of any alpha."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield generator.integers(0, 256, (32, 48, 4), dtype=np.uint8)


def write_transparent(path: Path, images: Iterable[np.ndarray], codec: str, pixels: str) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, pixels
        for image in images:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgba")))
        output.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("name", "codec", "pixels"), [("a.mov", "qtrle", "argb"), ("a.apng", "apng", "rgba")])
def test_transparent_frames_are_shown_over_white(name: str, codec: str, pixels: str, tmp_path: Path) -> None:
    images = list(transparent(4))
    images[2][:20] = images[1][:20]  # what stays makes an APNG of regions
    images[3][4:9, 3:7] = 0
    with VideoReader(write_transparent(tmp_path / name, images, codec, pixels)) as reader:
        frames = reader.frames_at(range(4)).permute(0, 2, 3, 1).numpy()
    assert all(np.array_equal(frame, over_white(image)) for frame, image in zip(frames, images, strict=True))


def test_transparent_images_of_a_folder_are_shown_over_white(tmp_path: Path) -> None:
    image = next(transparent())
    (tmp_path / "0.png").write_bytes(encoded(image, "png", "rgba", format="rgba"))
    assert np.array_equal(first_frame(tmp_path), over_white(image))


def test_colours_of_a_transparent_prores_film_are_shown_over_white(tmp_path: Path) -> None:
    image = np.full((32, 48, 4), [0, 128, 0, 64], np.uint8)
    frame = first_frame(write_transparent(tmp_path / "a.mov", [image], "prores_ks", "yuva444p10le"))
    assert np.abs(frame.astype(int) - over_white(image)).max() <= 3  # lossy


def test_alpha_that_is_nothing_throughout_means_nothing(tmp_path: Path) -> None:
    image = next(transparent())
    image[..., 3] = 0
    path = write_transparent(tmp_path / "a.avi", [image] * 2, "rawvideo", "bgra")
    assert np.array_equal(first_frame(path), image[..., :3])


PALETTE = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 0, 0), (0, 255, 255)]


def shown_by_browsers(frames: Sequence[GifFrame], side: int) -> list[np.ndarray]:
    """GIF89a, 23, on a canvas that nothing has been drawn on, over white; the background colour is ignored."""
    canvas, shown = np.zeros((side, side, 4), np.uint8), []
    for frame in frames:
        height, width = frame.pixels.shape
        place = np.s_[frame.top : frame.top + height, frame.left : frame.left + width]
        before = canvas.copy()
        drawn = frame.pixels != (-1 if frame.transparent is None else frame.transparent)
        canvas[place][drawn] = np.array([(*colour, 255) for colour in PALETTE], np.uint8)[frame.pixels][drawn]
        shown.append(over_white(canvas))
        if frame.disposal == 2:
            canvas[place] = 0
        elif frame.disposal == 3:
            canvas = before
    return shown


@pytest.mark.parametrize("seed", range(40))
def test_an_animation_is_composed_as_browsers_do(seed: int) -> None:
    dice, frames = np.random.default_rng(seed), []
    for number in range(dice.integers(1, 7)):
        height, width = dice.integers(2, 17, 2) if number or seed % 2 else (16, 16)
        left, top = int(dice.integers(0, 17 - width)), int(dice.integers(0, 17 - height))
        index = int(dice.integers(0, 6)) if dice.random() < 0.6 else None
        frames.append(GifFrame(dice.integers(0, 6, (height, width)), left, top, int(dice.integers(0, 4)), index))
    with VideoReader(gif(frames, PALETTE, side=16, background=int(dice.integers(0, 6)))) as reader:
        found = reader.frames_at(range(len(reader))).permute(0, 2, 3, 1).numpy()
    expected = shown_by_browsers(frames, 16)
    assert len(found) == len(expected)
    assert all(map(np.array_equal, found, expected))
