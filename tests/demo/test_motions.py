"""The drawn actions: what they show, and that only the order of frames tells a pair apart."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import av
import numpy as np
import pytest

from uniformerv2.data.sources import read_annotations
from uniformerv2.data.split import split_annotations
from uniformerv2.demo.motions import (
    MOTIONS,
    NUM_FRAMES,
    PAIRS,
    REVERSED,
    SIZE,
    draw,
    draw_stills,
    write_dataset,
    write_video,
)
from uniformerv2.video.reader import VideoReader
from uniformerv2.video.views import random_segment_indices, segment_indices


def clip(motion: str, seed: int) -> np.ndarray:
    return draw(motion, np.random.default_rng(seed))


def sprite(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels as saturated as only the sprite is, (frames, h, w), and their brightness."""
    frames = frames.astype(float) / 255
    brightest, darkest = frames.max(1), frames.min(1)
    return (brightest - darkest > 0.6 * brightest) & (brightest > 0.15), brightest


def centre(weights: np.ndarray) -> np.ndarray:
    """(frames, h, w) -> (frames, 2), x and y in pixels."""
    y, x = np.mgrid[: weights.shape[1], : weights.shape[2]]
    total = np.maximum(weights.sum((1, 2)), 1e-9)
    return np.stack([(weights * x).sum((1, 2)) / total, (weights * y).sum((1, 2)) / total], axis=1)


def measure(motion: str, seed: int) -> float:
    """What the motion is named for, read off the pixels: positive if it goes as the name says."""
    frames = clip(motion, seed)
    mask, brightness = sprite(frames)
    place, area = centre(mask.astype(float)), mask.sum((1, 2)).astype(float)
    if motion.startswith("turn"):
        nose = centre(mask * brightness**4) - place  # the lighter end
        x, y = nose.T
        turned = np.sum(x[:-1] * y[1:] - y[:-1] * x[1:])  # positive: clockwise, as y points down
        return float(turned if motion == "turn_clockwise" else -turned)
    change = {
        "move_left": place[0, 0] - place[-1, 0],
        "move_up": place[0, 1] - place[-1, 1],
        "approach": area[-1] - area[0],
        "appear": area[-1] - area[0],
        "cover": area[0] - area[-1],
    }
    return float(change[motion] if motion in change else -change[REVERSED[motion]])


@pytest.mark.parametrize("motion", MOTIONS)
def test_motion_shows_what_its_name_says(motion: str) -> None:
    signs = [measure(motion, seed) > 0 for seed in range(30)]
    assert np.mean(signs) >= 0.9  # the rest: colours that this crude measure takes for background


def test_there_are_at_least_ten_motions_in_pairs() -> None:
    assert len(MOTIONS) == len(set(MOTIONS)) == 2 * len(PAIRS) >= 10
    assert all(REVERSED[REVERSED[motion]] == motion != REVERSED[motion] for motion in MOTIONS)


def test_clip_is_uint8_rgb_of_the_asked_size() -> None:
    frames = draw("cover", np.random.default_rng(0), num_frames=9, size=(48, 80))
    assert frames.shape == (9, 3, 48, 80)
    assert frames.dtype == np.uint8


@pytest.mark.parametrize("motion", MOTIONS)
def test_equal_seeds_draw_equal_clips(motion: str) -> None:
    assert np.array_equal(clip(motion, 3), clip(motion, 3))
    assert not np.array_equal(clip(motion, 3), clip(motion, 4))


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_partner_is_the_exact_time_reversal(first: str, second: str) -> None:
    assert np.array_equal(clip(first, 5), clip(second, 5)[::-1])
    assert not np.array_equal(clip(first, 5), clip(second, 5))


@pytest.mark.parametrize("clips", [1, 3])
def test_sampled_frames_are_symmetric_in_time(clips: int) -> None:
    """Else an order-blind model could tell a pair by which end of the video it sees more of."""
    frames = sorted(index for clip in range(clips) for index in segment_indices(NUM_FRAMES, 8, clip=clip, clips=clips))
    assert frames == sorted(NUM_FRAMES - 1 - index for index in frames)


def test_training_samples_are_symmetric_in_time() -> None:
    rng = random.Random(0)
    draws = np.array([random_segment_indices(NUM_FRAMES, 8, rng) for _ in range(400)])
    mirrored = NUM_FRAMES - 1 - draws[:, ::-1]
    assert np.array_equal(draws.min(0), mirrored.min(0))
    assert np.array_equal(draws.max(0), mirrored.max(0))


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_frames_without_their_order_do_not_tell_partners_apart(first: str, second: str) -> None:
    """Of other seeds too: rests and speeds have the same distribution at both ends."""

    def unordered(motion: str, seeds: range) -> np.ndarray:
        # the saturated area of the frames that a model reads, sorted: a statistic that all six pairs change
        areas = [sprite(clip(motion, seed)[segment_indices(NUM_FRAMES, 8)])[0].sum((1, 2)) for seed in seeds]
        return np.sort(np.array(areas, float), axis=1)

    one, other = unordered(first, range(100, 160)), unordered(second, range(200, 260))
    error = np.sqrt(one.var(0) / len(one) + other.var(0) / len(other)) + 1e-9
    assert np.all(np.abs(one.mean(0) - other.mean(0)) / error < 4.5)  # standard errors, of 48 comparisons in all


def test_unknown_motion_and_too_few_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="'jump'"):
        clip("jump", 0)
    with pytest.raises(ValueError, match="num_frames must be at least 2, got 1"):
        draw("cover", np.random.default_rng(0), num_frames=1)


def test_stills_know_what_is_drawn_in_them() -> None:
    stills = draw_stills(256, np.random.default_rng(0))
    assert stills.images.shape == (256, 3, *SIZE)
    clear = (stills.opacity > 0.8) & (stills.covered == 0)
    middle = centre(stills.masks[clear, 0]) + 0.5
    radius = stills.size[clear] * SIZE[0]
    offset = middle - (stills.place[clear] * SIZE[0] + SIZE[0] / 2)
    along = (offset * stills.angle[clear]).sum(1) / radius  # shapes are lopsided along their axis only
    across = (offset * stills.angle[clear][:, ::-1] * (-1, 1)).sum(1) / radius
    assert np.abs(np.median(along)) < 0.3
    assert np.abs(np.median(across)) < 0.02
    # the nose is at the end that the angle names
    nose = centre(stills.masks[clear, 1]) + 0.5 - middle
    assert np.mean((nose * stills.angle[clear]).sum(1) > 0) > 0.95
    assert np.all(stills.masks[stills.opacity == 0, 0] == 0)


def test_stills_are_frames_of_clips() -> None:
    """The same scenes: red, green and blue are as bright in both."""
    stills = draw_stills(100, np.random.default_rng(1)).images.astype(float)
    frames = np.stack([clip(MOTIONS[seed % 12], seed)[seed % NUM_FRAMES] for seed in range(100)]).astype(float)
    difference = stills.mean((0, 2, 3)) - frames.mean((0, 2, 3))
    error = np.sqrt(stills.mean((2, 3)).var(0) / 100 + frames.mean((2, 3)).var(0) / 100)
    assert np.all(np.abs(difference) < 4 * error)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("motions")
    write_dataset(folder, train_clips=2, held_out_clips=1, seed=7)
    return folder


def test_files_are_h264_and_read_back(data: Path) -> None:
    for number, motion in enumerate(MOTIONS):
        for clip_number in range(3):
            path = data / motion / f"{clip_number:05d}.mp4"
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            drawn = draw(motion, np.random.default_rng((7, number // 2, clip_number)))
            with VideoReader(path) as reader:
                assert (len(reader), reader.height, reader.width, reader.rate) == (NUM_FRAMES, *SIZE, 16.0)
                read = reader.frames_at(range(NUM_FRAMES)).numpy()
            # 4:2:0 halves the resolution of colour, so only brightness comes back closely
            assert np.abs(read.mean(1) - drawn.mean(1)).mean() < 3.0


def test_manifest_keeps_a_clip_and_its_reversal_on_one_side(data: Path) -> None:
    with (data / "manifest.csv").open() as file:
        split = {row["path"]: row["split"] for row in csv.DictReader(file)}
    assert len(split) == 36
    for first, second in PAIRS:
        for number in range(3):
            sides = {split[f"{motion}/{number:05d}.mp4"] for motion in (first, second)}
            assert sides == {"train" if number < 2 else "test"}
    training, held_out = split_annotations(read_annotations(data / "manifest.csv"))
    assert (len(training), len(held_out)) == (24, 12)


def test_folder_itself_is_a_data_set_with_a_class_per_folder(data: Path) -> None:
    assert {row.label for row in read_annotations(data)} == set(MOTIONS)


def test_data_set_does_not_depend_on_the_number_of_processes(data: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, train_clips=2, held_out_clips=1, seed=7, processes=1)
    for path in tmp_path.rglob("*.mp4"):
        assert path.read_bytes() == (data / path.relative_to(tmp_path)).read_bytes(), path


def test_another_seed_draws_other_videos(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_dataset(tmp_path / str(seed), train_clips=1, held_out_clips=0, seed=seed, num_frames=3)
    for path in (tmp_path / "1").rglob("*.mp4"):
        assert path.read_bytes() != (tmp_path / "2" / path.relative_to(tmp_path / "1")).read_bytes()


def test_video_has_the_asked_rate(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", clip("cover", 0)[:5], rate=10)
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert (len(reader), reader.rate) == (5, 10.0)
