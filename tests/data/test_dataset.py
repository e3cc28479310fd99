"""Videos as batches. In the videos here frame i is grey of value 5 · i, so that a clip tells which frames it holds."""

from __future__ import annotations

import random
import warnings
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import decoded_frames, write_video
from uniformerv2.data.annotations import Annotation, Damaged, Unreadable
from uniformerv2.data.dataset import VideoDataset, make_loader
from uniformerv2.data.loader import Batch, Sample, collate
from uniformerv2.errors import AnnotationError
from uniformerv2.model.config import Preprocessing
from uniformerv2.video.augment import augment
from uniformerv2.video.augmentation import Augmentation
from uniformerv2.video.reader import VideoReader, VideoWarning
from uniformerv2.video.views import Views, random_segment_indices, segment_indices

NUM_FRAMES, RATE = 40, 10  # 4 seconds
BYTES = Preprocessing(num_frames=4, size=(32, 32), mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
GREY_ONLY = Augmentation(num_ops=0)  # moves and mirrors, but leaves the grey of a frame


def write_greys(path: Path, *, width: int = 48, num_frames: int = NUM_FRAMES, **options: Any) -> Path:
    """A video whose frame i has the grey 5 i."""
    greys = (np.full((32, width, 3), 5 * index % 256, dtype=np.uint8) for index in range(num_frames))
    return write_video(path, greys, rate=RATE, prepare=lambda stream: setattr(stream, "bit_rate", 1_000_000), **options)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Annotation]:
    folder = tmp_path_factory.mktemp("videos")
    return [
        Annotation(write_greys(folder / label / f"{number}.mp4"), label)
        for label in ("run", "walk")
        for number in "123"
    ]


@pytest.fixture
def broken(tmp_path: Path) -> Annotation:
    path = tmp_path / "broken.mp4"
    path.write_text("not a video")
    return Annotation(path, "run")


def frame_numbers(clip: torch.Tensor) -> list[int]:
    """Which frames a clip (3, frames, H, W) of bytes holds."""
    return (clip.mean((0, 2, 3)) / 5).round().int().tolist()


# evaluation


def test_views_of_a_video(videos: list[Annotation]) -> None:
    dataset = VideoDataset(videos, ["run", "walk"], BYTES, views=Views(3, 3))
    assert len(dataset) == 6
    sample = dataset[4]
    assert sample.clips.shape == (9, 3, 4, 32, 32)
    assert (sample.index, sample.path, sample.label) == (4, str(videos[4].path), 1)
    assert (sample.error, sample.damage) == (None, [])
    expected = [segment_indices(NUM_FRAMES, 4, clip=clip, clips=3) for clip in range(3)]
    assert [frame_numbers(view) for view in sample.clips] == [clip for clip in expected for _ in range(3)]


def test_crops_of_a_clip_run_from_left_to_right(tmp_path: Path) -> None:
    image = np.zeros((32, 96, 3), dtype=np.uint8)
    image[:, 32:64], image[:, 64:] = 120, 240
    file = tmp_path / "frames" / "0.png"
    write_video(file, [image], codec="png", rate=1, pixels="rgb24", container="image2", muxer={"update": "1"})
    annotation = Annotation(tmp_path / "frames", "thirds")
    for crops, values in ((1, [120]), (3, [0, 120, 240])):
        clips = VideoDataset([annotation], ["thirds"], BYTES, views=Views(crops=crops))[0].clips
        assert clips.mean((1, 2, 3, 4)).round().int().tolist() == values


@pytest.mark.parametrize("group", [5, 12, 300])
def test_views_cost_the_decoding_of_one_view_of_all_their_frames(tmp_path: Path, group: int) -> None:
    path = write_greys(tmp_path / "a.mp4", num_frames=150, codec="libx264", g=group, bf=2)
    views = VideoDataset([Annotation(path, "run")], ["run"], BYTES, views=Views(4, 3))
    union = sorted({index for clip in range(4) for index in segment_indices(150, 4, clip=clip, clips=4)})
    assert len(union) == 16

    with decoded_frames() as decoded:
        with VideoReader(path, threads=1) as reader:
            assert len(reader) == 150
            reader.frames_at(union)
        views[0]
    once, as_views = decoded
    assert once >= 16
    assert as_views <= 1.15 * once


def test_an_interval_limits_the_frames(videos: list[Annotation]) -> None:
    path = videos[0].path
    halves = [Annotation(path, "run", end=1.95), Annotation(path, "run", start=2.0), Annotation(path, "run", 1.0, 1.05)]
    dataset = VideoDataset(halves, ["run"], BYTES)
    clips = [dataset[index].clips for index in range(3)]
    first, second, moment = (frame_numbers(views[0]) for views in clips if views is not None)
    assert first == segment_indices(20, 4)
    assert second == [20 + index for index in segment_indices(20, 4)]
    assert moment == [10, 10, 10, 10]
    trained = VideoDataset(halves, ["run"], BYTES, augmentation=GREY_ONLY)
    for draw in range(30):
        views = trained[1, draw].clips
        assert min(frame_numbers(views[0])) >= 20


def test_an_interval_beyond_the_end_is_an_error_of_that_video(videos: list[Annotation]) -> None:
    sample = VideoDataset([Annotation(videos[0].path, "run", 9.0, 12.0)], ["run"], BYTES)[0]
    assert sample.clips is None
    assert "starts at 9 s, but the video lasts 4 s" in sample.error


def test_an_unreadable_video_is_named_and_left_out(videos: list[Annotation], broken: Annotation) -> None:
    dataset = VideoDataset([videos[0], broken, videos[5]], ["run", "walk"], BYTES)
    (batch,) = make_loader(dataset, batch_size=4, workers=0)
    assert batch.clips.shape == (2, 1, 3, 4, 32, 32)
    assert batch.labels.tolist() == [0, 1]
    assert batch.labels.dtype == torch.int64
    assert batch.indices == [0, 2]
    assert batch.paths == [str(videos[0].path), str(videos[5].path)]
    (video,) = batch.unreadable
    assert (video.path, video.row) == (str(broken.path), 1)
    assert "broken.mp4" in video.reason


def test_a_batch_of_unreadable_videos(broken: Annotation) -> None:
    (batch,) = make_loader(VideoDataset([broken], ["run"], BYTES), batch_size=2, workers=0)
    assert len(batch) == len(batch.clips) == len(batch.labels) == 0
    assert len(batch.unreadable) == 1


def test_damage_is_told_with_the_sample_and_not_on_the_terminal(
    videos: list[Annotation], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = VideoReader.frames_at

    def read_with_warnings(reader: VideoReader, indices: list[int]) -> torch.Tensor:
        warnings.warn("packet 7 is missing", VideoWarning, stacklevel=2)
        warnings.warn("something else", UserWarning, stacklevel=2)
        return read(reader, indices)

    monkeypatch.setattr(VideoReader, "frames_at", read_with_warnings)
    with pytest.warns(UserWarning, match="something else") as caught:
        sample = VideoDataset(videos, ["run", "walk"], BYTES)[0]
    assert len(caught) == 1
    assert sample.damage == ["packet 7 is missing"]
    assert sample.clips is not None
    assert collate([sample]).damaged == [Damaged(str(videos[0].path), "packet 7 is missing")]


def test_programming_errors_are_not_taken_for_bad_videos(
    videos: list[Annotation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(reader: VideoReader, indices: list[int]) -> torch.Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr(VideoReader, "frames_at", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        VideoDataset(videos, ["run", "walk"], BYTES)[0]


# training


def test_a_key_decides_its_clip(videos: list[Annotation]) -> None:
    def clip(key: int | tuple[int, int]) -> torch.Tensor:
        # a new dataset each time: nothing but the key may matter
        sample = VideoDataset(videos, ["run", "walk"], BYTES, augmentation=Augmentation())[key]
        assert sample.clips.shape == (1, 3, 4, 32, 32)
        return sample.clips

    assert torch.equal(clip((1, 7)), clip((1, 7)))
    assert not torch.equal(clip((1, 7)), clip((1, 8)))
    assert not torch.equal(clip((1, 7)), clip((2, 7)))  # an equal file: another row draws otherwise
    assert torch.equal(clip(1), clip((1, 0)))


def test_repeated_augmentation_draws_frames_and_views_anew(videos: list[Annotation]) -> None:
    once, thrice = (
        VideoDataset(videos, ["run", "walk"], BYTES, augmentation=GREY_ONLY, repeats=repeats) for repeats in (1, 3)
    )
    single, views = once[1, 7].clips, thrice[1, 7].clips
    assert views.shape == (3, *single.shape[1:]) == thrice.clips_shape
    assert torch.equal(views[:1], single)
    assert len({tuple(frame_numbers(view)) for view in views}) == 3
    (batch,) = make_loader(thrice, batch_size=6, workers=0, seed=0)
    assert batch.clips.shape == (6, 3, 3, 4, 32, 32)
    assert batch.labels.shape == (6,)


def test_a_mirrored_clip_has_the_label_of_what_it_shows(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 240, 48, dtype=np.uint8)[None, :, None], (32, 1, 3))  # brighter to the right
    classes, others = ["go left", "push left", "push right", "wave"], (None, 2, 1, 3)
    rows = [Annotation(write_video(tmp_path / f"{label}.mp4", [ramp] * 8), label) for label in classes]

    def dataset(augmentation: Augmentation | None, **options: Any) -> VideoDataset:
        return VideoDataset(rows, classes, BYTES, augmentation=augmentation, **options)

    swapped, plain = (dataset(GREY_ONLY, repeats=3, mirrored_classes=classes) for classes in (others, ()))
    still = dataset(replace(GREY_ONLY, flip=0.0), repeats=3)
    seen: dict[int, set[bool]] = {row: set() for row in range(4)}
    for row, draw in product(range(4), range(8)):
        sample, same, unmirrored = swapped[row, draw], plain[row, draw], still[row, draw]
        assert (same.label, unmirrored.label) == (row, row)
        mirrored = [bool((view[..., 0] > view[..., -1]).all()) for view in sample.clips]
        for view, changed, before in zip(sample.clips, mirrored, unmirrored.clips, strict=True):
            torch.testing.assert_close(view, before.flip(-1) if changed else before)
        assert sample.label == [others[row] if changed else row for changed in mirrored]
        assert torch.equal(sample.clips, same.clips if row else unmirrored.clips)
        seen[row].update(mirrored)
    assert seen == {0: {False}, 1: {False, True}, 2: {False, True}, 3: {False, True}}
    (batch,) = make_loader(swapped, batch_size=4, workers=0, seed=0)
    assert batch.labels.shape == (4, 3)
    (held_out,) = make_loader(dataset(None), batch_size=4, workers=0)
    assert held_out.labels.tolist() == [0, 1, 2, 3]
    assert (held_out.clips[..., 0] < held_out.clips[..., -1]).all()


LEFT_AND_OPEN = ["close left", "close right", "open left", "open right", "walk"]
BACKWARDS, MIRRORED = (2, 3, 0, 1, None), (1, 0, 3, 2, 4)


@pytest.fixture
def opening(tmp_path: Path) -> list[Annotation]:
    """Brighter to the right, and from frame to frame."""
    ramp = np.tile(np.linspace(0, 150, 48, dtype=np.uint8)[None, :, None], (32, 1, 3))
    frames = [ramp + np.uint8(10 * number) for number in range(10)]
    return [Annotation(write_video(tmp_path / f"{label}.mp4", frames), label) for label in LEFT_AND_OPEN]


def plays_backwards(view: torch.Tensor) -> bool:
    brightness = view.mean((0, 2, 3))
    assert brightness[0] != brightness[-1]
    return bool(brightness[0] > brightness[-1])


@pytest.mark.parametrize("mirrored", [MIRRORED, ()])
def test_a_clip_that_is_played_backwards_is_the_same_clip_with_the_label_of_what_it_shows(
    opening: list[Annotation], mirrored: tuple[int, ...]
) -> None:
    plain = VideoDataset(opening, LEFT_AND_OPEN, BYTES, augmentation=GREY_ONLY, repeats=2)
    changed = VideoDataset(
        opening,
        LEFT_AND_OPEN,
        BYTES,
        augmentation=GREY_ONLY,
        repeats=2,
        mirrored_classes=mirrored,
        reversed_classes=BACKWARDS,
    )
    seen: set[tuple[int, bool, bool]] = set()
    for row, draw in product(range(5), range(12)):
        sample, before = changed[row, draw], plain[row, draw]
        assert sample.clips is not None
        assert before.clips is not None
        shown = []
        for view, forwards in zip(sample.clips, before.clips, strict=True):
            backwards, flipped = plays_backwards(view), bool((view[..., 0] > view[..., -1]).all())
            assert not plays_backwards(forwards)
            assert torch.equal(view, forwards.flip(1) if backwards else forwards)
            counterpart = BACKWARDS[row] if backwards else row
            assert counterpart is not None
            shown.append(mirrored[counterpart] if mirrored and flipped else counterpart)
            seen.add((row, backwards, flipped))
        assert sample.label == shown
        assert before.label == row
    assert seen == set(product(range(4), (False, True), (False, True))) | {(4, False, False), (4, False, True)}


def test_a_clip_that_is_played_backwards_is_mirrored_as_one_of_the_class_that_it_shows(
    opening: list[Annotation],
) -> None:
    """Clips of "close left" are not mirrored here, and those of "open left" are; each is the other backwards."""
    alone = VideoDataset(
        opening,
        LEFT_AND_OPEN,
        BYTES,
        augmentation=GREY_ONLY,
        mirrored_classes=(None, None, 3, 2, 4),
        reversed_classes=BACKWARDS,
    )
    seen = set()
    for row, draw in product((0, 2), range(30)):
        sample = alone[row, draw]
        assert sample.clips is not None
        (view,) = sample.clips
        seen.add((row, *sample.label, plays_backwards(view), bool((view[..., 0] > view[..., -1]).all())))
    assert {found for found in seen if found[0] == 0} == {(0, 0, False, False), (0, 2, True, False), (0, 3, True, True)}
    assert {found for found in seen if found[0] == 2} == {
        (2, 2, False, False),
        (2, 3, False, True),
        (2, 0, True, False),
    }


@pytest.mark.parametrize("others", [(), (None,) * 5])
def test_clips_that_stay_are_drawn_from_one_stream_alone(opening: list[Annotation], others: tuple[None, ...]) -> None:
    """So that runs stay the same where no class is named: frames first, then what `augment` draws."""
    option = Augmentation(erasing=0.5)
    dataset = VideoDataset(opening, LEFT_AND_OPEN, BYTES, augmentation=option, repeats=2, reversed_classes=others)
    clips = dataset[3, 7].clips
    assert clips is not None
    for stream, clip in zip(("3 7", "3 7 1"), clips, strict=True):
        draw = random.Random(stream)
        with VideoReader(opening[3].path) as reader:
            frames = reader.frames_at(random_segment_indices(10, 4, draw))
        assert torch.equal(clip, augment(frames, BYTES, option, draw).clip)


def test_half_of_the_clips_are_played_backwards_in_any_process(opening: list[Annotation]) -> None:
    rows = opening[:2] + opening[4:]
    small = replace(BYTES, size=(8, 8))
    dataset = VideoDataset(rows, LEFT_AND_OPEN, small, augmentation=GREY_ONLY, reversed_classes=BACKWARDS)
    loader = make_loader(dataset, batch_size=3, workers=0, seed=0)
    own, seen = {0: 0, 1: 1, 2: 4}, dict.fromkeys(range(3), 0)
    for epoch in range(150):
        loader.sampler.set_epoch(epoch)
        (batch,) = loader
        for row, shown, clip in zip(batch.indices, batch.labels[:, 0].tolist(), batch.clips[:, 0], strict=True):
            assert plays_backwards(clip) == (shown != own[row])
            seen[row] += shown != own[row]
    assert seen[2] == 0
    assert seen[0] + seen[1] == pytest.approx(150, abs=43)  # of 300; 5 standard deviations
    (here,) = make_loader(dataset, batch_size=3, workers=0, seed=1)
    (there,) = make_loader(dataset, batch_size=3, workers=2, seed=1)
    assert torch.equal(here.labels, there.labels)
    assert torch.equal(here.clips, there.clips)


def test_repeated_views_are_one_decode(videos: list[Annotation]) -> None:
    def dataset(repeats: int) -> VideoDataset:
        return VideoDataset(videos, ["run", "walk"], BYTES, augmentation=GREY_ONLY, repeats=repeats)

    with decoded_frames() as decoded:
        dataset(20)[0, 1]
        for draw in range(20):
            dataset(1)[0, draw]
    together, *apart = decoded
    assert together <= NUM_FRAMES + 1  # the first frame is decoded to open the file, too
    assert sum(apart) > 2 * together


def test_training_clips_cover_the_video(videos: list[Annotation]) -> None:
    dataset = VideoDataset(videos, ["run", "walk"], BYTES, augmentation=GREY_ONLY)
    seen: set[int] = set()
    for draw in range(80):
        views = dataset[0, draw].clips
        numbers = frame_numbers(views[0])
        assert numbers == sorted(numbers)
        seen.update(numbers)
    assert len(seen) >= 38  # of 40


def epoch_of_batches(videos: list[Annotation], *, workers: int, epoch: int) -> list[Batch]:
    dataset = VideoDataset(videos, ["run", "walk"], BYTES, augmentation=Augmentation())
    loader = make_loader(dataset, batch_size=2, workers=workers, seed=3)
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_batches_do_not_depend_on_workers(videos: list[Annotation]) -> None:
    alone, shared_out = (epoch_of_batches(videos, workers=workers, epoch=1) for workers in (0, 2))
    assert len(alone) == 3
    assert sorted(index for batch in alone for index in batch.indices) == list(range(6))
    for left, right in zip(alone, shared_out, strict=True):
        assert left.indices == right.indices
        assert left.labels.tolist() == [0 if index < 3 else 1 for index in left.indices]
        assert torch.equal(left.clips, right.clips)


def test_epochs_differ_with_the_same_workers(videos: list[Annotation]) -> None:
    dataset = VideoDataset(videos, ["run", "walk"], BYTES, augmentation=Augmentation())
    loader = make_loader(dataset, batch_size=6, workers=1, seed=3)
    clips = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        (batch,) = loader
        clips.append(batch.clips)
    assert torch.equal(clips[0], clips[2])
    assert not torch.equal(clips[0], clips[1])


def test_loading_leaves_the_global_generator_alone(videos: list[Annotation]) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    epoch_of_batches(videos, workers=0, epoch=0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("batch_size", "training", "sizes"), [(4, True, [4]), (4, False, [4, 2]), (8, True, [6])])
def test_incomplete_batches(videos: list[Annotation], batch_size: int, training: bool, sizes: list[int]) -> None:
    augmentation = Augmentation() if training else None
    dataset = VideoDataset(videos, ["run", "walk"], BYTES, augmentation=augmentation)
    loader = make_loader(dataset, batch_size=batch_size, workers=0)
    batches = list(loader)
    assert [len(batch) for batch in batches] == sizes
    assert len(loader) == len(sizes)
    if not training:
        assert [index for batch in batches for index in batch.indices] == list(range(6))


# what a user or a caller can get wrong


def test_labels_that_the_model_does_not_know(videos: list[Annotation]) -> None:
    with pytest.raises(AnnotationError, match="label 'walk' is not among the 2 classes of the model"):
        VideoDataset(videos, ["run", "jump"], BYTES)
    with pytest.raises(AnnotationError, match="no videos"):
        VideoDataset([], ["run"], BYTES)


@pytest.mark.parametrize(
    "views", [{"views": Views(crops=3), "augmentation": Augmentation()}, {"repeats": 0}, {"repeats": 2}]
)
def test_impossible_views(videos: list[Annotation], views: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="got"):
        VideoDataset(videos, ["run", "walk"], BYTES, **views)  # type: ignore[arg-type]


def test_collate_keeps_the_order() -> None:
    clips = torch.zeros(1, 3, 2, 4, 4)
    samples = [
        Sample(index=2, path="2.mp4", label=2, clips=clips + 2),
        Sample(index=1, path="1.mp4", label=1, error="gone"),
        Sample(index=0, path="0.mp4", label=0, clips=clips),
    ]
    batch = collate(samples)
    assert batch.clips[:, 0, 0, 0, 0, 0].tolist() == [2.0, 0.0]
    assert batch.clips.is_contiguous()
    assert batch.labels.tolist() == batch.indices == [2, 0]
    assert batch.unreadable == [Unreadable("1.mp4", "gone", 1)]
