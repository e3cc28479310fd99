from __future__ import annotations

import faulthandler
import math
import os
import shutil
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import pytest
import torch
from torch import Tensor

from readback import ReadBack
from uniformerv2 import arm, save_model
from uniformerv2.data.annotations import Annotation, Unreadable
from uniformerv2.errors import CheckpointError, RecipeError, VideoError
from uniformerv2.inference.optimize import rewritten
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.predict import Prediction, Predictor
from uniformerv2.video.clips import SharedClips, distinct_views, evaluation_views
from uniformerv2.video.reader import VideoReader
from uniformerv2.video.views import Views, segment_indices
from uniformerv2.weights.labels import class_list


@pytest.fixture(scope="module")
def model(image_model: Path) -> UniFormerV2:
    torch.manual_seed(0)
    return arm(image_model, num_classes=3, labels=("blue", "green", "red"), num_frames=4, size=(32, 32))


def test_all_classes_ranked_with_probabilities(model: UniFormerV2, video: Path) -> None:
    prediction = Predictor(model).predict(video, top_k=None)
    assert prediction.video == str(video)
    assert sorted(prediction.labels) == ["blue", "green", "red"]
    assert list(prediction.scores) == sorted(prediction.scores, reverse=True)
    assert sum(prediction.scores) == pytest.approx(1.0)


def test_top_k_is_the_head_of_the_ranking_and_may_exceed_the_classes(model: UniFormerV2, video: Path) -> None:
    everything = Predictor(model).predict(video, top_k=None)
    assert Predictor(model).predict(video, top_k=2).labels == everything.labels[:2]
    assert Predictor(model).predict(video, top_k=9) == everything


def test_a_checkpoint_predicts_as_the_model_that_was_saved(model: UniFormerV2, video: Path, tmp_path: Path) -> None:
    save_model(model, tmp_path / "model.safetensors")
    assert Predictor(tmp_path / "model.safetensors").predict(video) == Predictor(model).predict(video)


def test_a_file_its_bytes_and_its_frames_are_one_video(model: UniFormerV2, video: Path, tmp_path: Path) -> None:
    predictor = Predictor(model)
    expected = predictor.predict(video)
    from_bytes = predictor.predict(video.read_bytes())
    assert (from_bytes.labels, from_bytes.scores) == (expected.labels, expected.scores)
    with VideoReader(video) as reader:
        frames = reader.frames_at(range(len(reader)))
    for number, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
        picture.save(tmp_path / f"{number:02}.png")
    from_folder = predictor.predict(tmp_path)
    assert from_folder.labels == expected.labels
    assert from_folder.scores == pytest.approx(expected.scores, abs=1e-6)


def test_several_views_are_averaged_over_the_right_frames(model: UniFormerV2, video: Path) -> None:
    predictor = Predictor(model, views=Views(2, 3))
    clips = predictor.clips(video)
    assert clips.shape == (6, 3, 4, 32, 32)
    with VideoReader(video) as reader:  # the second clip, looked up by itself
        frames = reader.frames_at(segment_indices(len(reader), 4, clip=1, clips=2))
    single = torch.nn.functional.interpolate(frames.float(), size=(32, 32), mode="bilinear", align_corners=False)
    assert torch.allclose(clips[4], (single.transpose(0, 1) / 255 - 0.5) / 0.5, atol=1e-5)
    with torch.inference_mode():
        logits = model.eval()(clips)
    means = {"probabilities": logits.softmax(-1).mean(0), "logits": logits.mean(0).softmax(-1)}
    for average, mean in means.items():
        found = Predictor(model, views=Views(2, 3, average)).predict(video)  # type: ignore[arg-type]
        assert found.scores == pytest.approx(sorted(mean.tolist(), reverse=True), abs=1e-6)


def test_a_model_without_labels_numbers_its_classes(image_model: Path, video: Path) -> None:
    prediction = Predictor(arm(image_model, num_classes=2, size=(32, 32))).predict(video)
    assert sorted(prediction.labels) == ["class 0", "class 1"]


def test_only_the_classes_of_a_part_of_kinetics_710(image_model: Path, video: Path) -> None:
    labels = class_list("kinetics710", order="mmaction2")
    model = arm(image_model, num_classes=710, labels=labels, size=(32, 32))
    torch.nn.init.normal_(model.head.linear.weight)
    everything = Predictor(model).predict(video, top_k=None)
    part = Predictor(model, head="k400").predict(video, top_k=None)
    assert set(part.labels) == set(class_list("kinetics400", order="mmaction2"))
    # the same logits, so that the classes of equal name stay in the same order
    common = set(part.labels) & set(everything.labels)
    assert len(common) == 387
    assert [name for name in part.labels if name in common] == [name for name in everything.labels if name in common]
    with pytest.raises(CheckpointError, match="none"):
        Predictor(arm(image_model, num_classes=710, size=(32, 32)), head="k400")


def test_bad_input_is_refused(model: UniFormerV2, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="absent"):
        Predictor(model).predict(tmp_path / "absent.mp4")
    with pytest.raises(VideoError):
        Predictor(model).predict(b"no video")
    with pytest.raises(CheckpointError, match="absent"):
        Predictor(tmp_path / "absent.safetensors")
    with pytest.raises(RecipeError, match="nonsense"):
        Predictor(model, device="nonsense")


# --- many videos


def assert_equal(found: Prediction | Unreadable, expected: Prediction) -> None:
    assert isinstance(found, Prediction)
    assert found.video == expected.video
    assert dict(zip(found.labels, found.scores, strict=True)) == pytest.approx(
        dict(zip(expected.labels, expected.scores, strict=True)), abs=1e-5
    )


@pytest.mark.parametrize("views", [Views(), Views(4, 3)], ids=str)
@pytest.mark.parametrize("batch_size", [None, 4, 30])
def test_many_videos_are_predicted_as_each_alone(
    lively: UniFormerV2, colours: Path, views: Views, batch_size: int | None
) -> None:
    predictor = Predictor(lively, views=views, batch_size=batch_size)
    videos: list[Path | bytes] = sorted(colours.rglob("*.mp4"))[::3]
    videos[1] = videos[0].read_bytes()
    found = list(predictor.predict_all(iter(videos), top_k=None))
    assert len(found) == len(videos) == 5
    for one, video in zip(found, videos, strict=True):
        assert_equal(one, predictor.predict(video, top_k=None))


def test_below_the_threshold_there_is_no_answer(model: UniFormerV2, video: Path) -> None:
    predictor = Predictor(model)
    found = predictor.predict(video)
    best = found.scores[0]
    assert found.label == found.labels[0]
    assert predictor.predict(video, threshold=best) == found
    [below] = predictor.predict_all([video], threshold=best + 1e-6, workers=1)
    assert below == replace(found, label=None)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(RecipeError, match="threshold"):
            predictor.predict(video, threshold=wrong)


def test_an_annotation_is_predicted_by_its_interval(model: UniFormerV2, video: Path) -> None:
    predictor = Predictor(model)
    annotation = Annotation(video, "any", start=0.3, end=0.9)
    with VideoReader(video) as reader:
        first, count = reader.frames_between(0.3, 0.9)
        expected = evaluation_views(reader, model.preprocessing, first=first, count=count)
    assert torch.equal(predictor.clips(annotation), expected)
    assert predictor.predict(annotation).video == str(video)
    [late] = predictor.predict_all([Annotation(video, "any", start=60)])
    assert isinstance(late, Unreadable)
    assert "starts at 60 s" in late.reason
    assert list(predictor.timeline(Annotation(video, "any", 0.3, 0.9), window_seconds=None).start) == [0.3]


def test_a_video_that_cannot_be_read_has_its_place(model: UniFormerV2, video: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent.mp4"
    for batch_size in (1, 2, 8):
        predictor = Predictor(model, batch_size=batch_size)
        found = list(predictor.predict_all([absent, video, absent, b"no video", video]))
        assert [one.row for one in found if isinstance(one, Unreadable)] == [0, 2, 3]
        assert found[0] == Unreadable(str(absent), f"{absent}: No such file or directory")
        assert_equal(found[4], predictor.predict(video))
    assert list(predictor.predict_all([])) == []


def test_a_video_that_ends_its_process_has_its_place(model: UniFormerV2, video: Path, tmp_path: Path) -> None:
    deadly = tmp_path / "deadly.mp4"
    shutil.copy(video, deadly)

    def read(reader: VideoReader, *arguments: Any, **options: Any) -> SharedClips:
        if reader.name == str(deadly):
            faulthandler.disable()
            os.kill(os.getpid(), signal.SIGSEGV)
        return distinct_views(reader, *arguments, **options)

    with patch("uniformerv2.predict.distinct_views", read):
        found = list(Predictor(model, batch_size=2).predict_all([video, deadly, video, deadly, video]))
    assert [one.row for one in found if isinstance(one, Unreadable)] == [1, 3]
    assert found[1] == Unreadable(str(deadly), f"{deadly}: reading it ended a process (SIGSEGV)", 1)
    assert found[0] == found[2] == found[4]


def test_a_programming_error_comes_out_at_its_place(model: UniFormerV2, video: Path) -> None:
    results = Predictor(model, batch_size=8).predict_all([video, 3.5, video], workers=0)  # type: ignore[list-item]
    assert isinstance(next(results), Prediction)
    with pytest.raises(TypeError):
        next(results)


def test_no_more_than_two_batches_are_held_and_the_thread_ends_early(model: UniFormerV2, video: Path) -> None:
    predictor, taken, before = Predictor(model, batch_size=2), 0, set(threading.enumerate())
    held, most = weakref.WeakSet[SharedClips](), 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield video

    def watched(*arguments: Any, **options: Any) -> SharedClips:
        nonlocal most
        clips = distinct_views(*arguments, **options)
        held.add(clips)
        most = max(most, len(held))
        return clips

    with patch("uniformerv2.predict.distinct_views", watched):
        results = predictor.predict_all(endless(), workers=0)
        for number in range(1, 9):
            next(results)
            # a batch is computed, and one read, before the results of the one before come
            assert taken == 2 * ((number + 1) // 2) + 4
        [thread] = set(threading.enumerate()) - before
        results.close()
    assert not thread.is_alive()
    assert 1 < most <= 4
    assert not held


@torch.inference_mode()
def test_frames_that_clips_have_in_common_are_encoded_once(lively: UniFormerV2, video: Path) -> None:
    predictor, seen = Predictor(lively, views=Views(4), batch_size=4), list[Tensor]()
    clips = [tuple(segment_indices(12, 4, clip=clip, clips=4)) for clip in range(4)]
    distinct = len({index for clip in clips for index in clip})
    assert (len(set(clips)), distinct) == (3, 11)  # so two of the clips are equal, and others have a frame in common
    fast = rewritten(predictor.optimized)
    embed = fast._encode

    def watched(clip: Tensor, *arguments: object) -> object:
        seen.append(clip)
        return embed(clip, *arguments)  # type: ignore[arg-type]

    with patch.object(fast, "_encode", watched):
        [found] = predictor.predict_all([video], top_k=None)
    shares = lively.config.local_blocks == "none"
    assert [tuple(clip.shape[:3]) for clip in seen] == [(1, 3, distinct) if shares else (3, 3, 4)]
    with VideoReader(video) as reader:
        mean = lively(evaluation_views(reader, lively.preprocessing, Views(4))).softmax(-1).mean(0)
    assert isinstance(found, Prediction)
    assert found.scores == pytest.approx(sorted(mean.tolist(), reverse=True), abs=1e-5)


def test_numbers_that_make_no_sense(model: UniFormerV2, video: Path) -> None:
    with pytest.raises(RecipeError, match="batch size"):
        Predictor(model, batch_size=0)
    with pytest.raises(RecipeError, match="top_k must be at least 1, got 0"):
        next(Predictor(model).predict_all([video], top_k=0))


def test_of_twenty_predictions_the_scores_are_read_once_each_and_late(
    lively: UniFormerV2, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []

    def watched(scores: Tensor) -> Callable[[], Tensor]:
        assert scores.shape == (1, 3)
        happened.append("asked")

        def fetch() -> Tensor:
            happened.append("read")
            return torch.from_numpy(scores.numpy().copy())  # it is on the host now

        return fetch

    monkeypatch.setattr("uniformerv2.inference.optimize.can_pack", lambda dtype: False)  # as on a GPU
    predictor = Predictor(lively, batch_size=1)
    expected = predictor.predict(video)
    monkeypatch.setattr("uniformerv2.predict.fetch_later", watched)
    mode = ReadBack(rewritten(predictor.optimized).parameters())
    with mode:
        for found in predictor.predict_all([video] * 20, workers=0):
            happened.append("handed out")
            assert found == expected
    assert happened == ["asked", *["asked", "read", "handed out"] * 19, "read", "handed out"]
    assert not mode.waits
