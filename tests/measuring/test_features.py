from __future__ import annotations

import copy
import json
import multiprocessing
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import before_call, decoded_frames, interrupt, noise, write_video
from models import small_model
from uniformerv2 import arm, save_model
from uniformerv2.data.annotations import Annotation, Damaged
from uniformerv2.errors import CheckpointError, RecipeError, VideoError
from uniformerv2.inference.sharing import SharedFrames
from uniformerv2.measuring.evaluation import evaluate
from uniformerv2.measuring.features import extract_features
from uniformerv2.measuring.window_reading import _Slots, read_windows
from uniformerv2.model.config import Preprocessing
from uniformerv2.model.uniformerv2 import EncodedFrames, UniFormerV2
from uniformerv2.video.clips import Windows
from uniformerv2.video.reader import VideoReader
from uniformerv2.video.transforms import test_crops as crops_of

RATE, SECONDS = 10, 6  # of the long video

PLAIN = Preprocessing(num_frames=4, size=(32, 32))

embed = partial(extract_features, workers=0)


@pytest.fixture(scope="module")
def model(image_model: Path) -> UniFormerV2:
    torch.manual_seed(0)
    armed = arm(image_model, num_classes=3, labels=["blue", "green", "red"], num_frames=4, size=32)
    torch.nn.init.normal_(armed.head.linear.weight)
    return armed.eval()


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty frames that differ, in groups of pictures of twelve."""
    brighter = (
        frame + np.uint8(3 * number) for number, frame in enumerate(noise(RATE * SECONDS, 48, 64, brightest=60))
    )
    return write_video(tmp_path_factory.mktemp("long") / "long.mp4", brighter, rate=RATE)


def encoded_frames(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many frames are encoded from here on, call by call."""
    calls: list[int] = []
    encode = UniFormerV2.encode

    def counting(self: UniFormerV2, clip: torch.Tensor) -> EncodedFrames:
        calls.append(clip.shape[0] * clip.shape[2])
        return encode(self, clip)

    monkeypatch.setattr(UniFormerV2, "encode", counting)
    return calls


# --- what is in them


def test_a_window_has_the_middle_frames_of_its_parts(long: Path) -> None:
    windows = list(read_windows(Annotation(long, ""), Windows(2, 1), PLAIN, []))
    assert [(window.start, window.end) for window in windows] == [(0, 2), (1, 3), (2, 4), (3, 5), (4, 6)]
    with VideoReader(long) as reader:
        for window in windows:
            indices = [round(window.start * RATE) + index for index in (2, 7, 12, 17)]  # of four parts of half a second
            assert window.frames == tuple(indices)
            assert torch.equal(window.clip, crops_of(reader.frames_at(indices), PLAIN)[0])


def test_windows_in_a_gap_are_computed_once(
    model: UniFormerV2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = write_video(tmp_path / "gap.mkv", noise(11), times=[*range(0, 2000, 200), 3_600_000])
    clips = []

    def counted(self: UniFormerV2, batch: torch.Tensor) -> Any:
        clips.extend(batch)
        return forward_features(self, batch)

    forward_features = UniFormerV2.forward_features
    monkeypatch.setattr(UniFormerV2, "forward_features", counted)
    found = embed(model, [Annotation(film, "red")], window_seconds=2, batch_size=4)
    assert len(found.embeddings) > 1800
    assert len(clips) < 10
    assert (found.embeddings[1:1800] == found.embeddings[1]).all()
    assert not (found.embeddings[0] == found.embeddings[1]).all()


def test_a_video_is_decoded_once_however_windows_overlap(long: Path) -> None:
    windows = Windows(2, 0.25)
    with decoded_frames() as decoded:
        clips = list(read_windows(Annotation(long, ""), windows, Preprocessing(num_frames=8, size=(32, 32)), []))
    assert len(clips) == 17
    assert decoded[0] <= RATE * SECONDS + 1  # and the first, which opening a video looks at


# --- features


def test_of_whole_videos_they_are_what_the_classifier_sees(model: UniFormerV2, colours: Path) -> None:
    features = embed(model, colours, frame_embeddings=True, batch_size=4)
    assert features.embeddings.shape == (15, 32)
    assert features.embeddings.dtype == np.float32
    assert features.frame_embeddings.shape == (15, 4, 32)
    assert features.video.tolist() == list(range(15))
    assert (features.start.tolist(), features.end.tolist()) == ([0.0] * 15, pytest.approx([1.2] * 15))
    result = evaluate(model, colours, batch_size=4, workers=0)
    with torch.inference_mode():
        scores = model.head(torch.from_numpy(features.embeddings)).softmax(-1)
    assert [model.labels[best] for best in scores.argmax(1).tolist()] == [one.labels[0] for one in result.videos]
    assert scores.max(1).values.tolist() == pytest.approx([one.scores[0] for one in result.videos], rel=1e-5)


def test_annotated_intervals_are_all_that_is_looked_at(model: UniFormerV2, long: Path) -> None:
    rows = [Annotation(long, "a", 1.0, 4.0), Annotation(long, "b", 4.0), Annotation(long, "c", 9.0)]
    features = embed(model, rows, window_seconds=2.0)
    assert list(zip(features.video.tolist(), features.start.tolist(), features.end.tolist(), strict=True)) == [
        (0, 1.0, 3.0),
        (0, 3.0, 4.0),
        (1, 4.0, 6.0),
    ]
    assert [one.row for one in features.skipped] == [2]
    assert "starts at 9 s, but the video lasts 6 s" in features.skipped[0].reason
    assert features.labels == ("a", "b", "c")


def test_windows_have_the_same_embedding_alone_and_among_others(model: UniFormerV2, long: Path) -> None:
    many = embed(model, [long], window_seconds=2.0, stride_seconds=1.0, batch_size=2)
    for place, (start, end) in enumerate([(0, 2), (1, 3), (2, 4), (3, 5), (4, 6)]):
        assert (many.start[place], many.end[place]) == (start, end)
        alone = embed(model, [Annotation(long, "", start, end)], window_seconds=2.0)
        np.testing.assert_allclose(many.embeddings[place], alone.embeddings[0], rtol=1e-4, atol=1e-5)
    assert len({tuple(row) for row in many.embeddings.tolist()}) == 5


# --- windows that share frames


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stages", [0, 2])
def test_a_frame_that_windows_have_in_common_is_encoded_once(
    stages: int, workers: int, long: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without global stages; in several batches, of films that processes read at the same time."""
    changed = {} if stages else {"global_after": ()}
    video_model = small_model("scene", Preprocessing(num_frames=4, size=(16, 24)), **changed)
    films, options = [long, Annotation(long, "", 1.0, 5.0)], {"window_seconds": 2.0, "stride_seconds": 0.5}
    with monkeypatch.context() as patch:
        patch.setattr("uniformerv2.measuring.features.windows_share", lambda *_: False)
        whole = embed(video_model, films, **options, frame_embeddings=True, batch_size=2, workers=workers)
    encoded = encoded_frames(monkeypatch)
    shared = embed(video_model, films, **options, frame_embeddings=True, batch_size=2, workers=workers)
    # every half second, at a quarter of a second of it
    assert sum(encoded) == 12 + 8
    assert len(shared.embeddings) == 9 + 5
    np.testing.assert_allclose(shared.embeddings, whole.embeddings, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shared.frame_embeddings, whole.frame_embeddings, rtol=1e-4, atol=1e-5)
    for column in ("video", "start", "end"):
        assert getattr(shared, column).tolist() == getattr(whole, column).tolist()


@pytest.mark.parametrize("stride", [0.3, 0.7, 1.9])
def test_windows_whose_frames_are_not_on_a_grid_share_what_they_can(
    stride: float, model: UniFormerV2, long: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"window_seconds": 2.0, "stride_seconds": stride, "batch_size": 3}
    with monkeypatch.context() as patch:
        patch.setattr("uniformerv2.measuring.features.windows_share", lambda *_: False)
        whole = embed(model, [long], **options)
    distinct = {
        frame
        for window in read_windows(Annotation(long, ""), Windows(2.0, stride), PLAIN, [])
        for frame in window.frames
    }
    encoded = encoded_frames(monkeypatch)
    shared = embed(model, [long], **options)
    assert sum(encoded) == len(distinct)
    np.testing.assert_allclose(shared.embeddings, whole.embeddings, rtol=1e-4, atol=1e-5)


def test_windows_are_computed_whole_where_frames_depend_on_their_clip(
    long: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video_model = small_model("temporal", Preprocessing(num_frames=4, size=(16, 24)))
    encoded = encoded_frames(monkeypatch)
    found = embed(video_model, [long], window_seconds=2.0, stride_seconds=0.5)
    assert len(found.embeddings) == 9
    assert not encoded


def test_what_is_held_does_not_grow_with_the_film(
    model: UniFormerV2, long: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    drop_before = SharedFrames.drop_before

    def dropping(self: SharedFrames, number: int) -> None:
        held.append(len(self))
        drop_before(self, number)
        held.append(len(self))

    monkeypatch.setattr(SharedFrames, "drop_before", dropping)
    embed(model, [long], window_seconds=2.0, stride_seconds=0.5, batch_size=2)
    assert held == [5, 4, 6, 4, 6, 4, 6, 4, 5, 4]  # four frames of a window, and the new ones of a batch of two


def test_what_is_encoded_again_when_a_run_goes_on(
    model: UniFormerV2, long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the frames that the next window has too, and those beside them; the numbers are the same."""
    options = {"window_seconds": 2.0, "stride_seconds": 0.5, "batch_size": 2}
    whole = embed(model, [long], **options)
    with monkeypatch.context() as patch:
        before_call(patch, UniFormerV2, "aggregate", 4, interrupt)
        with pytest.raises(KeyboardInterrupt):
            embed(model, [long], **options, journal=tmp_path / "journal")
    encoded = encoded_frames(monkeypatch)
    found = embed(model, [long], **options, journal=tmp_path / "journal", resume=True)
    # three batches are done: the frames 0 to 4, 5 and 6, 7 and 8; the next window has 6 to 9
    assert encoded == [2, 2, 2, 1]
    assert (found.embeddings == whole.embeddings).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_videos_are_named_and_have_no_windows(
    model: UniFormerV2, colours: Path, long: Path, tmp_path: Path, workers: int
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    absent = Annotation(tmp_path / "absent.mp4", "")
    good = colours / "red" / "red0.mp4"
    for options in ({}, {"window_seconds": 1.0}):
        features = embed(model, [broken, long, absent, good], workers=workers, **options)
        assert [(Path(one.path).name, one.row) for one in features.skipped] == [("broken.mp4", 0), ("absent.mp4", 2)]
        assert sorted(set(features.video.tolist())) == [1, 3]
        assert features.video.tolist() == sorted(features.video.tolist())
    with pytest.raises(VideoError, match=r"not one of 1 videos.*broken\.mp4"):
        embed(model, [broken])


def test_a_video_that_ends_in_the_middle_leaves_no_windows(
    model: UniFormerV2, long: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iter_frames = VideoReader.iter_frames

    def until_damage(self: VideoReader, wanted: list[int]):  # type: ignore[no-untyped-def]
        for index, image in iter_frames(self, wanted):
            if index > 40:
                raise VideoError(f"{long}: frame {index} cannot be decoded")
            yield index, image

    monkeypatch.setattr(VideoReader, "iter_frames", until_damage)
    features = embed(model, [long, colours / "red" / "red0.mp4"], window_seconds=1.0, batch_size=2)
    assert [one.row for one in features.skipped] == [0]
    assert set(features.video.tolist()) == {1}


@pytest.mark.parametrize("window", [None, 1.0])
def test_damaged_videos_are_embedded_and_named(
    model: UniFormerV2, long: Path, colours: Path, monkeypatch: pytest.MonkeyPatch, window: float | None
) -> None:
    monkeypatch.setattr(VideoReader, "damage", property(lambda self: "a packet" if self.name == str(long) else ""))
    features = embed(model, [colours / "red" / "red0.mp4", long], window_seconds=window)
    assert features.damaged == (Damaged(str(long), "a packet"),)
    assert set(features.video.tolist()) == {0, 1}


@pytest.mark.parametrize("window", [None, 1.0])
def test_a_video_that_ends_the_process_is_found_out_and_left_out(
    model: UniFormerV2, long: Path, colours: Path, monkeypatch: pytest.MonkeyPatch, window: float | None
) -> None:
    deadly = colours / "red" / "red0.mp4"
    good = [long, colours / "red" / "red1.mp4", colours / "red" / "red2.mp4"]
    read = "frames_at" if window is None else "iter_frames"
    frames = getattr(VideoReader, read)

    def crash(self: VideoReader, wanted: list[int]) -> Any:
        if self.name == str(deadly):
            os.kill(os.getpid(), signal.SIGKILL)
        return frames(self, wanted)

    monkeypatch.setattr(VideoReader, read, crash)
    features = embed(model, [*good[:2], deadly, good[2]], window_seconds=window, workers=2)
    assert [(one.row, one.reason) for one in features.skipped] == [
        (2, f"{deadly}: reading it ended a process (SIGKILL)")
    ]
    without = embed(model, good, window_seconds=window)
    assert np.allclose(features.embeddings, without.embeddings, atol=1e-5)


def test_a_process_that_is_ended_by_chance_costs_nothing(
    model: UniFormerV2, long: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    iter_frames = VideoReader.iter_frames

    def crash_once(self: VideoReader, wanted: list[int]):  # type: ignore[no-untyped-def]
        for number, found in enumerate(iter_frames(self, wanted)):
            if number == 30 and not (tmp_path / "crashed").exists():
                (tmp_path / "crashed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield found

    monkeypatch.setattr(VideoReader, "iter_frames", crash_once)
    computed: list[int] = []
    forward = UniFormerV2.forward_features

    def counted(self: UniFormerV2, clip: torch.Tensor) -> object:
        computed.append(len(clip))
        return forward(self, clip)

    monkeypatch.setattr(UniFormerV2, "forward_features", counted)
    features = embed(model, [long], window_seconds=0.5, batch_size=2, workers=1)
    assert (tmp_path / "crashed").exists()
    assert features.skipped == ()
    assert computed == [2] * 6  # each window once
    assert np.array_equal(features.embeddings, embed(model, [long], window_seconds=0.5, batch_size=2).embeddings)


@pytest.mark.parametrize(("window", "read"), [(None, "frames_at"), (1.0, "iter_frames")])
def test_programming_errors_of_other_processes_are_raised(
    model: UniFormerV2, long: Path, monkeypatch: pytest.MonkeyPatch, window: float | None, read: str
) -> None:
    def fail(self: VideoReader, wanted: list[int]) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(VideoReader, read, fail)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug"):
        embed(model, [long], window_seconds=window, workers=1)


def test_nan_is_an_error(model: UniFormerV2, long: Path, image_model: Path) -> None:
    broken = arm(image_model, num_classes=3, num_frames=4, size=32)
    torch.nn.init.constant_(broken.backbone.class_token, float("nan"))
    before = set(multiprocessing.active_children())
    for options in ({"workers": 0}, {"workers": 1}, {"workers": 1, "window_seconds": 1.0}):
        with pytest.raises(CheckpointError, match="NaN") as caught:  # its traceback holds what was open
            embed(broken, [long], **options)
        assert caught
        assert set(multiprocessing.active_children()) <= before


def test_one_video_and_a_checkpoint_will_do_and_bf16_too(
    model: UniFormerV2, long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uniformerv2.inference.precision.has_bf16", lambda device: True)
    save_model(model, tmp_path / "model.safetensors")
    exact, narrow = (embed(tmp_path / "model.safetensors", str(long), precision=name) for name in ("fp32", "bf16"))
    assert np.array_equal(exact.embeddings, embed(model, [long]).embeddings)
    assert not np.array_equal(narrow.embeddings, exact.embeddings)
    assert narrow.embeddings.dtype == np.float32
    np.testing.assert_allclose(narrow.embeddings, exact.embeddings, atol=0.05)


# --- files


def test_npz(model: UniFormerV2, long: Path, colours: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    videos = [tmp_path / "broken.mp4", long, colours / "red" / "red0.mp4"]
    features = embed(model, videos, window_seconds=2.0, frame_embeddings=True)
    features.save(tmp_path / "one.npz")
    with np.load(tmp_path / "one.npz", allow_pickle=False) as saved:
        assert set(saved) == {*("paths", "labels", "errors", "video", "start", "end", "embeddings", "frame_embeddings")}
        assert saved["paths"].tolist() == [str(path) for path in videos]
        assert [bool(reason) for reason in saved["errors"].tolist()] == [True, False, False]
        assert saved["paths"][saved["video"]].tolist() == [str(long)] * 3 + [str(videos[2])]
        assert saved["start"].tolist() == [0, 2, 4, 0]
        assert np.array_equal(saved["embeddings"], features.embeddings)
        assert saved["frame_embeddings"].shape == (4, 4, 32)
    features.save(tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_parquet_has_a_row_for_each_window(model: UniFormerV2, long: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "broken.mp4").write_text("no video")
    rows = [Annotation(tmp_path / "broken.mp4", "a"), Annotation(long, "b")]
    features = embed(model, rows, window_seconds=2.0, frame_embeddings=True)
    features.save(tmp_path / "one.parquet")
    table = parquet.read_table(tmp_path / "one.parquet")
    assert table.column_names == ["path", "label", "start", "end", "embedding", "frame_embeddings"]
    assert table["path"].to_pylist() == [str(long)] * 3
    assert table["label"].to_pylist() == ["b"] * 3
    assert table["end"].to_pylist() == [2.0, 4.0, 6.0]
    assert table["embedding"].to_pylist() == features.embeddings.tolist()
    assert table["frame_embeddings"].to_pylist() == features.frame_embeddings.tolist()
    (skipped,) = json.loads(table.schema.metadata[b"skipped"])
    assert skipped["path"] == str(rows[0].path)
    with pytest.raises(RecipeError, match="npz"):
        features.save(tmp_path / "one.csv")


# --- interrupted runs


def test_an_interrupted_run_is_resumed_where_it_was(
    model: UniFormerV2, long: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = [long, colours / "red" / "red0.mp4", colours / "blue" / "blue0.mp4"]
    options = {"window_seconds": 1.0, "stride_seconds": 0.5, "batch_size": 2}
    embed(model, videos, **options).save(tmp_path / "whole.npz")
    journal = tmp_path / "some.npz.journal"
    computed: list[int] = []
    aggregate = UniFormerV2.aggregate

    def stopping(self: UniFormerV2, encoded: EncodedFrames, **kind: bool) -> object:
        computed.append(len(encoded.frame_embeddings))
        if len(computed) == 4:
            raise KeyboardInterrupt
        return aggregate(self, encoded, **kind)

    monkeypatch.setattr(UniFormerV2, "aggregate", stopping)
    with pytest.raises(KeyboardInterrupt):
        embed(model, videos, **options, journal=journal)
    assert computed == [2, 2, 2, 2]
    embed(model, videos, **options, journal=journal, resume=True).save(tmp_path / "some.npz")
    # eleven windows of the long video, two of each other: six, one and one batches, of which three were there
    assert computed[4:] == [2, 2, 1, 2, 2]
    assert (tmp_path / "some.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_a_journal_of_other_work_is_refused(model: UniFormerV2, long: Path, tmp_path: Path) -> None:
    journal, video = tmp_path / "journal", tmp_path / "video.mp4"
    shutil.copyfile(long, video)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.linear.bias[0] += 1
    options: dict[str, Any] = {"model": model, "data": video, "window_seconds": 1.0, "batch_size": 8}
    embed(**options, journal=journal)
    before = journal.read_bytes()
    for changed, part in (
        ({"window_seconds": 2.0}, "windows (then 1 s every 1 s, now 2 s every 2 s)"),
        ({"batch_size": 4}, "batch size (then 8, now 4)"),
        ({"frame_embeddings": True}, "frame embeddings (then no, now yes)"),
        ({"model": other}, "weights (then "),
        ({"data": [Annotation(video, "", 1.0)]}, "videos (then 1 rows "),
        ({}, "videos (then 1 rows "),  # with another date of the file
    ):
        if not changed:
            os.utime(video, (1, 1))
        with pytest.raises(RecipeError, match="cannot be resumed") as caught:
            embed(**options | changed, journal=journal, resume=True)
        assert part in str(caught.value)
    assert journal.read_bytes() == before


def test_a_slot_is_written_once_it_is_empty_and_can_be_taken_from_the_dead() -> None:
    slots = _Slots((2, 3), workers=0)
    clips = [torch.zeros(3), torch.ones(3)]
    assert slots.fill(slots.free.popleft(), clips) == 2
    assert torch.equal(slots.memory[0], torch.stack(clips))
    assert not slots.empty[0].acquire(block=False)  # the next batch waits
    assert slots.fill(0, []) == 0  # nothing to wait for
    for _ in range(2):  # full and empty
        slots.take_back(0)
        slots.free.popleft()
        assert slots.empty[0].acquire(block=False)
        slots.empty[0].release()
    assert slots.fill(0, clips[:1]) == 1
