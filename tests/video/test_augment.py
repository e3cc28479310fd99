"""Training augmentation: every operation against values worked out by hand, and one draw for all frames."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from models import random_pixels
from uniformerv2.model.config import Preprocessing
from uniformerv2.video import augment as operations
from uniformerv2.video import transforms
from uniformerv2.video.augment import OPERATIONS, augment, draw_crop, draw_erased, draw_operations
from uniformerv2.video.augmentation import Augmentation

UNCHANGED = Augmentation(num_ops=0, crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=0.0)
BYTES = Preprocessing(size=(16, 16), mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))


def drawn(frames: torch.Tensor, model: Preprocessing, option: Augmentation, rng: random.Random) -> torch.Tensor:
    return augment(frames, model, option, rng).clip


def row(*values: int) -> torch.Tensor:
    """One grey frame of one row."""
    return torch.tensor(values, dtype=torch.uint8).expand(1, 3, 1, len(values))


def test_autocontrast() -> None:
    assert operations.autocontrast(row(50, 100, 150), 0).tolist() == row(0, 127, 255).tolist()
    assert operations.autocontrast(row(7, 7, 7), 0).tolist() == row(7, 7, 7).tolist()  # nothing to stretch
    red_only = torch.stack((torch.tensor([10, 20]), torch.tensor([0, 255]), torch.tensor([3, 3])))
    stretched = operations.autocontrast(red_only.byte().view(1, 3, 1, 2), 0)  # each channel on its own
    assert stretched.flatten().tolist() == [0, 255, 0, 255, 3, 3]


def test_equalize() -> None:
    # 1024 pixels in four values of 256 each: step (1024 - 256) // 255 = 3, so (0, 256, 512, 768) become (+ 1) // 3
    quarters = torch.tensor([3, 4, 5, 200], dtype=torch.uint8).repeat_interleave(256).view(1, 1, 32, 32)
    spread = operations.equalize(quarters.expand(2, 3, 32, 32), 0)
    assert sorted(set(spread.flatten().tolist())) == [0, 85, 171, 255]
    assert (spread[..., 0, 0] == 0).all()
    assert (spread[..., -1, -1] == 255).all()
    flat = torch.full((1, 3, 32, 32), 9, dtype=torch.uint8)
    assert torch.equal(operations.equalize(flat, 0), flat)


def test_operations_on_single_values() -> None:
    assert operations.invert(row(0, 100, 255), 0)[0, 0, 0].tolist() == [255, 155, 0]
    assert operations.posterize(row(200, 63, 64), 2.8)[0, 0, 0].tolist() == [192, 0, 64]  # two bits
    assert operations.posterize(row(200, 63, 64), 4)[0, 0, 0].tolist() == [128, 0, 0]  # one is kept
    assert operations.solarize(row(76, 77, 255), 0.7 * 256)[0, 0, 0].tolist() == [76, 178, 0]
    assert operations.solarize(row(0, 128, 255), 0)[0, 0, 0].tolist() == [0, 128, 255]
    assert operations.solarize(row(0, 128, 255), 256)[0, 0, 0].tolist() == [255, 127, 0]
    assert operations.solarize_add(row(0, 127, 128, 255), 77)[0, 0, 0].tolist() == [77, 204, 128, 255]
    assert operations.brightness(row(3, 100, 200), 0.5)[0, 0, 0].tolist() == [4, 150, 255]
    assert operations.brightness(row(3, 100, 200), -0.5)[0, 0, 0].tolist() == [1, 50, 100]


def test_color() -> None:
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    assert operations.color(red, -1).flatten().tolist() == [76, 76, 76]  # 0.299 · 255
    assert operations.color(red, -0.5).flatten().tolist() == [165, 38, 38]
    assert operations.color(red, 0).flatten().tolist() == [255, 0, 0]


def test_contrast() -> None:
    assert operations.contrast(row(100, 200), -1)[0, 0, 0].tolist() == [150, 150]
    assert operations.contrast(row(100, 200), 0.5)[0, 0, 0].tolist() == [75, 225]
    frames = torch.cat((row(0, 100), row(200, 240)))  # each frame about its own mean
    assert operations.contrast(frames, -1)[:, 0, 0, 0].tolist() == [50, 220]


def test_sharpness() -> None:
    dot = torch.zeros(1, 3, 5, 5, dtype=torch.uint8)
    dot[..., 2, 2] = 130
    smooth = operations.sharpness(dot, -1)[0, 0]
    assert smooth[1:4, 1:4].tolist() == [[10, 10, 10], [10, 50, 10], [10, 10, 10]]  # 130 / 13 and 5 · 130 / 13
    assert smooth.sum() == 130
    edge = torch.zeros(1, 3, 5, 5, dtype=torch.uint8)
    edge[..., 0, 0] = 130
    assert operations.sharpness(edge, -1)[0, 0, 0, 0] == 130  # the outermost pixels stay
    assert operations.sharpness(dot, 0.5)[0, 0, 2, 2] == 170  # 130 + 0.5 · (130 - 50)


def test_translations_show_grey() -> None:
    frames = random_pixels(2, 3, 10, 20)
    left = operations.translate_x(frames, 0.25)
    assert torch.equal(left[..., :15], frames[..., 5:])
    assert (left[..., 15:] == 128).all()
    down = operations.translate_y(frames, -0.3)
    assert torch.equal(down[..., 3:, :], frames[..., :7, :])
    assert (down[..., :3, :] == 128).all()


def test_rotation_is_counter_clockwise() -> None:
    frames = random_pixels(1, 3, 12, 12)
    assert torch.equal(operations.rotate(frames, 90), frames.rot90(1, (2, 3)))
    assert torch.equal(operations.rotate(frames, -90), frames.rot90(-1, (2, 3)))


def test_shears() -> None:
    ramp = torch.arange(0, 200, 10).byte().expand(1, 3, 5, 20)  # 10 · x
    sheared = operations.shear_x(ramp, 0.2)[0, 0]
    for y in range(5):  # fetched from x + 0.2 · (y + 0.5): pixel centres
        assert sheared[y, :15].tolist() == [round(10 * x + 2 * y + 1) for x in range(15)]
    assert torch.equal(operations.shear_y(ramp.mT, 0.2), operations.shear_x(ramp, 0.2).mT)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_keep_shape_and_input(name: str) -> None:
    operation = OPERATIONS[name]
    frames = random_pixels(1, 20, 30, 3).permute(0, 3, 1, 2).expand(4, 3, 20, 30)
    before = frames.clone()
    for level in (-1.0, 0.0, 0.7, 1.0) if operation.signed else (0.0, 0.7, 1.0):
        changed = operation.apply(frames, level * operation.strongest)
        assert changed.dtype == torch.uint8
        assert changed.shape == frames.shape
        assert torch.equal(frames, before)
        assert all(torch.equal(changed[0], frame) for frame in changed)  # equal frames stay equal


@pytest.mark.parametrize("name", [name for name in OPERATIONS if OPERATIONS[name].strongest and name != "posterize"])
def test_nothing_happens_at_magnitude_zero(name: str) -> None:  # posterize keeps four bits even then
    frames = random_pixels(2, 3, 20, 30)
    assert torch.equal(OPERATIONS[name].apply(frames, 0.0), frames)


def test_magnitudes_of_the_recipe() -> None:
    certain = Augmentation(num_ops=2000, magnitude_std=0.0, op_probability=1.0)
    amounts: dict[str, set[float]] = {}
    for name, amount in draw_operations(certain, random.Random(0)):
        amounts.setdefault(name, set()).add(round(amount, 6))
    both = {"rotate": {-21.0, 21.0}}
    both |= {name: {-0.63, 0.63} for name in ("color", "contrast", "brightness", "sharpness")}
    both |= {name: {-0.21, 0.21} for name in ("shear_x", "shear_y")}
    both |= {name: {-0.315, 0.315} for name in ("translate_x", "translate_y")}
    single = {name: {0.0} for name in ("autocontrast", "equalize", "invert")}
    single |= {"posterize": {2.8}, "solarize": {179.2}, "solarize_add": {77.0}}
    assert amounts == both | single


def test_how_often_operations_are_drawn() -> None:
    rng = random.Random(0)
    draws = [draw_operations(Augmentation(), rng) for _ in range(3000)]
    assert max(map(len, draws)) == 4
    counts = Counter(name for draw in draws for name, _ in draw)
    # 12,000 trials: half of them applied (standard deviation 55), 400 for each of the fifteen (20)
    assert counts.total() == pytest.approx(6000, abs=275)
    assert all(counts[name] == pytest.approx(400, abs=100) for name in OPERATIONS)
    degrees = [abs(amount) for draw in draws for name, amount in draw if name == "rotate"]
    assert sum(degrees) / len(degrees) == pytest.approx(21, abs=0.4)  # 1.5 degrees of deviation over 400 draws
    assert max(degrees) > 22 > 20 > min(degrees)


def test_switches() -> None:
    assert draw_operations(Augmentation(num_ops=0), random.Random(0)) == []
    assert draw_operations(Augmentation(op_probability=0.0), random.Random(0)) == []
    strongest = draw_operations(Augmentation(num_ops=500, magnitude=10.0, magnitude_std=5.0), random.Random(0))
    assert max(abs(amount) for name, amount in strongest if name == "rotate") == 30.0  # never beyond 10


def test_one_draw_for_all_frames() -> None:
    frames = random_pixels(1, 3, 24, 32).expand(5, 3, 24, 32)
    for seed in range(40):
        clip = drawn(frames, BYTES, Augmentation(op_probability=1.0), random.Random(seed))
        assert clip.shape == (3, 5, 16, 16)
        assert clip.dtype == torch.float32
        assert clip.is_contiguous()
        assert all(torch.equal(clip[:, 0], clip[:, frame]) for frame in range(5))


def test_the_generator_decides_everything() -> None:
    frames = random_pixels(3, 3, 24, 32)
    torch.manual_seed(1)
    random.seed(1)
    views = [drawn(frames, BYTES, Augmentation(), random.Random(seed)) for seed in (5, 5, 6)]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_training_and_test_resize_alike() -> None:
    frames = random_pixels(2, 3, 40, 40)
    preprocessing = Preprocessing(size=(16, 16), channel_order="bgr")
    view = drawn(frames, preprocessing, UNCHANGED, random.Random(0))
    assert torch.equal(view, transforms.test_crops(frames, preprocessing)[0])


def test_flip() -> None:
    frames = random_pixels(2, 3, 16, 16)
    mirrored = drawn(frames, BYTES, replace(UNCHANGED, flip=1.0), random.Random(0))
    torch.testing.assert_close(mirrored, frames.flip(-1).transpose(0, 1).float())
    half = [drawn(frames, BYTES, replace(UNCHANGED, flip=0.5), random.Random(seed)) for seed in range(200)]
    assert sum(torch.equal(view, mirrored) for view in half) == pytest.approx(100, abs=35)  # deviation 7


def test_what_is_mirrored_is_told_and_a_forbidden_flip_changes_no_other_draw() -> None:
    frames = torch.arange(16).byte().expand(2, 3, 16, 16)
    option = Augmentation(num_ops=0, erasing=1.0)
    told = set()
    for seed in range(20):
        clip, mirrored = augment(frames, BYTES, replace(option, erasing=0.0), random.Random(seed))
        assert mirrored == bool((clip[..., 0] > clip[..., -1]).all())
        told.add(mirrored)
        never, after = random.Random(seed), random.Random(seed)
        assert not augment(frames, BYTES, replace(option, flip=0.0), never).mirrored
        augment(frames, BYTES, option, after)
        assert never.getstate() == after.getstate()
    assert told == {True, False}


def test_a_forbidden_flip_never_happens() -> None:
    ramp = torch.arange(0, 256, 8).byte().expand(2, 3, 32, 32)  # brighter to the right
    for seed in range(50):
        view = drawn(ramp, BYTES, Augmentation(num_ops=0, flip=0.0), random.Random(seed))
        assert (view[..., -1] > view[..., 0]).all()


def test_crops_keep_to_their_ranges() -> None:
    rng = random.Random(0)
    augmentation = Augmentation(crop_area=(0.2, 0.5), crop_aspect=(0.5, 2.0))
    for _ in range(500):
        top, left, height, width = draw_crop((300, 400), (10, 20), augmentation, rng)
        assert 0 <= top <= 300 - height
        assert 0 <= left <= 400 - width
        assert 0.19 < height * width / (300 * 400) < 0.51
        assert 0.98 < width / height < 4.05  # half to double of the clip's own 2 : 1


def test_crops_reach_every_corner() -> None:
    rng = random.Random(0)
    crops = [draw_crop((20, 20), (8, 8), Augmentation(crop_area=(0.5, 0.6)), rng) for _ in range(500)]
    assert min(top for top, _, _, _ in crops) == min(left for _, left, _, _ in crops) == 0
    assert max(top + height for top, _, height, _ in crops) == 20
    assert max(left + width for _, left, _, width in crops) == 20


def test_a_frame_that_no_crop_fits_into_is_cut_in_the_middle() -> None:
    whole = Augmentation(crop_area=(1.0, 1.0), crop_aspect=(3 / 4, 4 / 3))
    assert draw_crop((90, 300), (8, 8), whole, random.Random(0)) == (0, 90, 90, 120)
    assert draw_crop((400, 90), (8, 8), whole, random.Random(0)) == (140, 0, 120, 90)
    assert draw_crop((1, 1), (8, 8), Augmentation(), random.Random(0)) == (0, 0, 1, 1)


def test_large_frames_are_first_made_smaller() -> None:
    large = random_pixels(2, 3, 40, 60)
    smaller = transforms.resize(large, (20, 30)).round().byte()
    option = Augmentation(short_side=20)
    assert torch.equal(drawn(large, BYTES, option, random.Random(3)), drawn(smaller, BYTES, option, random.Random(3)))


def test_impossible_options_are_refused() -> None:
    numbers = {"num_ops": -1, "magnitude": 11.0, "magnitude_std": -0.1, "op_probability": 1.5, "flip": -0.5}
    ranges = [("crop_area", (0.0, 1.0)), ("crop_area", (0.5, 0.4)), ("crop_aspect", (0.0, 1.0)), ("short_side", 0)]
    for name, value in [*numbers.items(), *ranges]:
        with pytest.raises(ValueError, match=f"{name} must"):
            Augmentation(**{name: value})


@pytest.mark.parametrize("text", ["", "left", "left,right,up", "left,Left", "left,right;right,west", "left,", "left,-"])
def test_flip_labels_are_pairs_of_words(text: str) -> None:
    with pytest.raises(ValueError, match="flip_labels must be auto, none or pairs") as error:
        Augmentation(flip_labels=text)
    assert repr(text) in str(error.value)


def test_pairs_need_flips() -> None:
    with pytest.raises(ValueError, match="flip_labels left,right needs mirrored clips: turn flip on, or leave it out"):
        Augmentation(flip=0.0, flip_labels="left,right")
    assert Augmentation(flip=0.0, flip_labels="auto").flip_labels == "auto"


# --- erasing


def test_a_rectangle_is_erased_in_all_frames_with_colours_of_their_own() -> None:
    frames = torch.full((3, 3, 64, 64), 100, dtype=torch.uint8)
    model = Preprocessing(size=(64, 64), mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    plain = drawn(frames, model, UNCHANGED, random.Random(5))
    erased = drawn(frames, model, replace(UNCHANGED, erasing=1.0), random.Random(5))
    changed = erased != plain
    assert changed.any()
    rectangle = changed[0, 0]
    assert torch.equal(changed, rectangle.expand_as(changed))
    assert int(rectangle.any(1).sum() * rectangle.any(0).sum()) == int(rectangle.sum())
    # colours are uniform in [0, 1] before they are normalised
    mean, std = (torch.tensor(values).view(3, 1) for values in (model.mean, model.std))
    colours = erased[:, 1, rectangle] * std + mean
    assert colours.min().item() >= -1e-6
    assert colours.max().item() <= 1 + 1e-6
    assert colours.mean().item() == pytest.approx(0.5, abs=0.05)
    assert not torch.equal(erased[:, 0], erased[:, 1])


def test_erasing_has_the_probability_and_the_sizes_of_the_paper() -> None:
    rng = random.Random(0)
    erased = [draw_erased((200, 300), rng) for _ in range(2000)]
    sizes = [(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in filter(None, erased)]
    assert len(sizes) == 2000
    shares = [height * width / 60_000 for height, width in sizes]
    assert 0.0195 < min(shares) < 0.03
    assert 0.37 < max(shares) < 0.405
    assert all(0.28 < height / width < 3.5 for height, width in sizes)
    frames, half = torch.full((1, 3, 16, 16), 9, dtype=torch.uint8), replace(UNCHANGED, erasing=0.3)
    hits = sum(bool((drawn(frames, BYTES, half, rng) != 9).any()) for _ in range(500))
    assert 110 < hits < 190


def test_erasing_changes_nothing_else_of_a_clip() -> None:
    frames, full = random_pixels(2, 3, 40, 60), Augmentation()
    for seed in range(10):
        plain, erased = (
            drawn(frames, BYTES, replace(full, erasing=erasing), random.Random(seed)) for erasing in (0.0, 1.0)
        )
        assert (plain == erased).float().mean().item() > 0.5  # the same operations, crop and flip
