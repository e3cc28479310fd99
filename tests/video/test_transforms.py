"""Resize, crops and normalisation in testing."""

from __future__ import annotations

import pytest
import torch

from models import random_pixels
from uniformerv2.model.config import Preprocessing
from uniformerv2.video import transforms


def bytes_kept(height: int, width: int) -> Preprocessing:
    """A normalisation that leaves the bytes as they are."""
    return Preprocessing(size=(height, width), mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))


def test_places_of_the_crops() -> None:
    frames = random_pixels(2, 3, 4, 9)  # 5 pixels too wide: crops at 0, ceil(5 / 2) and 5
    crops = transforms.test_crops(frames, bytes_kept(4, 4), crops=3)
    for crop, left in zip(crops, (0, 3, 5), strict=True):
        torch.testing.assert_close(crop, frames[..., left : left + 4].transpose(0, 1).float())
    upright = transforms.test_crops(frames.mT, bytes_kept(4, 4), crops=3)
    torch.testing.assert_close(upright, crops.mT)


def test_values() -> None:
    white = torch.full((1, 3, 10, 10), 255, dtype=torch.uint8)
    crops = transforms.test_crops(white, Preprocessing(size=(6, 6)))
    assert crops.shape == (1, 3, 1, 6, 6)
    assert crops.dtype == torch.float32
    torch.testing.assert_close(crops, torch.full_like(crops, (1 - 0.45) / 0.225))


def test_channel_order_comes_before_mean_and_std() -> None:
    frames = torch.tensor([0, 51, 102], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    preprocessing = Preprocessing(size=(4, 4), mean=(0.1, 0.2, 0.3), std=(0.1, 0.2, 0.5), channel_order="bgr")
    blue, green, red = transforms.test_crops(frames, preprocessing)[0, :, 0, 0, 0].tolist()
    assert (blue, green, red) == pytest.approx(((0.4 - 0.1) / 0.1, 0.0, -0.3 / 0.5), abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((256, 340), (224, 297)),
        ((144, 180), (224, 280)),
        ((1080, 1920), (112, 199)),
        ((7, 5), (7, 9)),
        ((2, 2), (1, 3)),
    ],
)
def test_resizing_is_that_of_torch(shape: tuple[int, int], size: tuple[int, int]) -> None:
    frames = random_pixels(2, 3, *shape)
    expected = torch.nn.functional.interpolate(frames.float(), size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(transforms.resize(frames, size), expected, rtol=0, atol=1e-4)
    inner = frames.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # channels last, as decoders give them
    assert torch.equal(transforms.resize(inner, size), transforms.resize(frames, size))
    assert torch.equal(transforms.resize(frames, shape), frames.float())


def test_a_window_is_cut_out_of_the_resized_frames() -> None:
    frames = random_pixels(2, 3, 40, 60)
    whole = transforms.resized_clip(frames, (24, 36), Preprocessing())
    window = slice(3, 20), slice(10, 31)
    cut = transforms.resized_clip(frames, (24, 36), Preprocessing(), window=window)
    assert cut.is_contiguous()
    assert torch.equal(cut, whole[..., 3:20, 10:31])
    mirrored = transforms.resized_clip(frames, (24, 36), Preprocessing(), window=window, mirrored=True)
    assert torch.equal(mirrored, cut.flip(-1))
    out = torch.full_like(cut, torch.nan)
    assert transforms.resized_clip(frames, (24, 36), Preprocessing(), window=window, out=out) is out
    assert torch.equal(out, cut)


@pytest.mark.parametrize("crops", [1, 3])
def test_crops_are_written_where_they_are_wanted(crops: int) -> None:
    frames = random_pixels(2, 3, 40, 60)
    expected = transforms.test_crops(frames, Preprocessing(size=(16, 16)), crops=crops)
    memory = torch.full((2, *expected.shape), torch.nan)
    transforms.test_crops(frames, Preprocessing(size=(16, 16)), crops=crops, out=memory[1])
    assert torch.equal(memory[1], expected)
    assert memory[0].isnan().all()


def test_no_antialiasing() -> None:
    row = torch.tensor([0, 10, 30, 90, 200, 100, 50, 250], dtype=torch.uint8)
    frames = row.expand(1, 3, 8, 8)
    small = transforms.resize(frames, (8, 2))  # the centres fall between pixels 1 and 2, and between 5 and 6
    torch.testing.assert_close(small[0, 0, 0], torch.tensor([20.0, 75.0]))


@pytest.mark.parametrize(
    ("shape", "target", "expected"),
    [
        ((60, 91), (32, 32), (32, 48)),  # 48.53 rounds down
        ((77, 45), (32, 32), (54, 32)),  # 54.76 rounds down
        ((50, 50), (48, 48), (48, 48)),
        ((100, 200), (60, 80), (60, 120)),
        ((200, 100), (60, 80), (160, 80)),
        ((100, 110), (60, 80), (72, 80)),  # wide, and yet too narrow for the target
    ],
)
def test_covering_size(shape: tuple[int, int], target: tuple[int, int], expected: tuple[int, int]) -> None:
    assert transforms.covering_size(shape, target) == expected


@pytest.mark.parametrize("shape", [(100, 110), (33, 301), (1, 1), (301, 33)])
def test_any_frame_covers_a_non_square_clip(shape: tuple[int, int]) -> None:
    crops = transforms.test_crops(random_pixels(2, 3, *shape), Preprocessing(size=(24, 40)), crops=3)
    assert crops.shape == (3, 3, 2, 24, 40)
    assert crops.isfinite().all()


def test_other_tensors_are_refused() -> None:
    frames = random_pixels(2, 3, 8, 8)
    for wrong in (frames.float(), frames[0], frames.permute(0, 2, 3, 1)):
        with pytest.raises(ValueError, match="frames must be uint8"):
            transforms.test_crops(wrong, Preprocessing(size=(4, 4)))
