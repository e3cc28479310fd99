from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers import noise, write_video
from models import random_pixels, small_model
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.inference.optimize import rewritten
from uniformerv2.inference.precision import has_bf16
from uniformerv2.inference.sharing import SharedFrames
from uniformerv2.model.config import Preprocessing
from uniformerv2.model.positions import TokenLayout
from uniformerv2.model.uniformerv2 import ClipFeatures, EncodedFrames, UniFormerV2
from uniformerv2.stream import StreamEvent, StreamPredictor
from uniformerv2.video.live import LiveFrames, Pace
from uniformerv2.video.reader import VideoReader, VideoWarning
from uniformerv2.video.transforms import test_crops as crops

LABELS = ("appear", "recede", "uncover")


def tiny(**options: object) -> UniFormerV2:
    model = small_model("scene", Preprocessing(4, size=(32, 32)), image_size=(32, 32), num_classes=3, **options)
    model.labels = LABELS
    return model


@pytest.fixture(scope="module")
def model() -> UniFormerV2:
    return tiny()


def images(count: int, *, height: int = 40, width: int = 50) -> Tensor:
    return random_pixels(count, 3, height, width)


def pushed(frames: Tensor) -> LiveFrames:
    """A source in which all frames wait already."""
    live = LiveFrames(queue_size=len(frames))
    for number, frame in enumerate(frames):
        live.push(frame, time=number / 10)
    live.end()
    return live


@pytest.mark.parametrize(
    ("options", "report"),
    [
        ({}, "each frame is encoded once"),
        ({"local_blocks": "attention+mlp"}, "computed whole: local UniBlocks"),
        ({"temporal_downsample": True}, "computed whole: the stem"),
    ],
    ids=["scene", "local", "downsampling"],
)
@pytest.mark.parametrize(("window", "stride"), [(4, 1), (4, 3), (3, 5), (1, 1)])
@torch.inference_mode()
def test_scores_are_those_of_the_whole_window(
    options: dict[str, object], report: str, window: int, stride: int
) -> None:
    model, frames = tiny(**options), images(14)
    predictor = StreamPredictor(model, window_frames=window, stride_frames=stride)
    assert report in predictor.report[0]
    predictions = list(predictor.run(pushed(frames), top_k=None))
    starts = range(0, len(frames) - window + 1, stride)
    assert [prediction.frame for prediction in predictions] == [start + window - 1 for start in starts]
    for start, prediction in zip(starts, predictions, strict=True):
        clip = crops(frames[start : start + window], model.preprocessing)
        expected = model(clip)[0].softmax(-1)
        scores = dict(zip(prediction.labels, prediction.scores, strict=True))
        assert [scores[label] for label in LABELS] == pytest.approx(expected.tolist(), abs=1e-5)
        assert (prediction.start, prediction.end) == pytest.approx((start / 10, (start + window - 1) / 10))
        assert list(prediction.scores) == sorted(prediction.scores, reverse=True)


def test_the_window_is_as_long_as_the_model_s_clips(model: UniFormerV2) -> None:
    assert StreamPredictor(model).window_frames == 4
    assert [prediction.frame for prediction in StreamPredictor(model).run(images(5))] == [3, 4]


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="the processor does not multiply bf16")
def test_in_bf16(model: UniFormerV2) -> None:
    narrow, full = (next(StreamPredictor(model, precision=one).run(images(4))) for one in ("bf16", "fp32"))
    assert narrow.labels == full.labels
    assert narrow.scores == pytest.approx(full.scores, abs=0.05)


def test_the_precision_that_was_chosen_is_told(model: UniFormerV2) -> None:
    assert "precision auto is" in StreamPredictor(model, precision="auto").report[0]
    assert StreamPredictor(model).report == ("each frame is encoded once",)


def test_top_k(model: UniFormerV2) -> None:
    predictor = StreamPredictor(model)
    everything = next(predictor.run(images(4), top_k=9))
    assert next(predictor.run(images(4), top_k=2)).labels == everything.labels[:2]


def test_a_file(model: UniFormerV2, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "hold", lambda pace, time: None)  # all at once
    events: list[StreamEvent] = []
    predictions = list(
        StreamPredictor(model, frames_per_second=5, queue_size=20).run(str(video), on_event=events.append)
    )
    assert [prediction.end for prediction in predictions] == pytest.approx([0.6, 0.8, 1.0])
    with VideoReader(video) as reader:
        frames = reader.frames_at(range(0, 12, 2))
    for prediction, expected in zip(predictions, StreamPredictor(model).run(frames), strict=True):
        assert prediction.labels == expected.labels
        assert prediction.scores == pytest.approx(expected.scores, abs=1e-6)
    assert [(event.kind, event.message, event.frame) for event in events] == [
        ("end", f"{video}: ended after 6 frames, 0 dropped", 6)
    ]


def test_old_frames_go_where_the_model_is_too_slow(model: UniFormerV2) -> None:
    live = LiveFrames(queue_size=2)
    frames = images(12)
    for frame in frames[:4]:
        live.push(frame)
    predictions = StreamPredictor(model, window_frames=2).run(live)
    assert next(predictions).frame == 3
    for frame in frames[4:]:  # while the model is at work
        live.push(frame)
    live.end()
    rest = list(predictions)
    assert [prediction.frame for prediction in rest] == [10, 11]
    assert [prediction.dropped for prediction in rest] == [8, 8]


def test_latency_is_from_the_arrival_of_the_newest_frame(model: UniFormerV2) -> None:
    now = iter(range(100))
    live = LiveFrames(queue_size=4, clock=lambda: next(now))
    for frame in images(4):
        live.push(frame)  # at 0, 1, 2, 3
    assert next(StreamPredictor(model).run(live)).latency == 1  # 4 - 3


def test_a_change_of_size_is_told_and_resized(model: UniFormerV2) -> None:
    small, large = images(4), images(4, height=64, width=48)
    events: list[StreamEvent] = []
    predictor = StreamPredictor(model)
    predictions = list(predictor.run([*small, *large], on_event=events.append))
    assert len(predictions) == 5
    assert predictions[-1].scores == pytest.approx(next(predictor.run(large)).scores, abs=1e-5)
    assert [(event.kind, event.frame) for event in events] == [("size", 4), ("end", 8)]
    assert "48x64 pixels" in events[0].message
    with pytest.warns(VideoWarning, match="48x64"):  # where nobody listens
        list(predictor.run([*small, *large]))


def test_damage_is_told_once_and_counted(model: UniFormerV2) -> None:
    live = pushed(images(6))
    live.damaged = 3
    events: list[StreamEvent] = []
    predictions = list(StreamPredictor(model).run(live, on_event=events.append))
    assert [prediction.damaged for prediction in predictions] == [3, 3, 3]
    assert [event.kind for event in events] == ["damage", "end"]
    assert "3 packets damaged" in events[-1].message


def test_a_stream_that_is_shorter_than_a_window(model: UniFormerV2) -> None:
    with pytest.raises(VideoError, match="ended after 3 frames, 0 dropped, but a window has 4"):
        list(StreamPredictor(model).run(images(3)))


def test_a_stream_that_stalls(model: UniFormerV2) -> None:
    live = LiveFrames(name="porch", queue_size=9)
    for frame in images(4):
        live.push(frame)
    predictions = StreamPredictor(model, timeout_seconds=0.02).run(live)
    next(predictions)
    with pytest.raises(VideoError, match=r"porch: no frame for 0.02 s"):
        next(predictions)


def test_frames_that_are_wanted_seldom_are_waited_for(model: UniFormerV2, monkeypatch: pytest.MonkeyPatch) -> None:
    live = pushed(images(1))
    waits = []

    def take(timeout_seconds: float | None = None) -> None:
        waits.append(timeout_seconds)

    monkeypatch.setattr(live, "take", take)
    monkeypatch.setattr("uniformerv2.stream.live_frames", lambda source, **_: nullcontext(live))
    for rate, timeout in ((0.02, 10.0), (None, 10.0), (5, None)):
        with pytest.raises(VideoError, match="ended after 0 frames"):
            list(StreamPredictor(model, frames_per_second=rate, timeout_seconds=timeout).run("camera"))
    assert waits == [60.0, 10.0, None]


def test_the_reader_ends_with_the_iteration(model: UniFormerV2, tmp_path: Path) -> None:
    video = str(write_video(tmp_path / "slow.mp4", noise(2), times=[0, 9000]))  # the second frame is far away
    predictions = StreamPredictor(model, window_frames=1).run(video)
    next(predictions)
    assert video in {thread.name for thread in threading.enumerate()}
    predictions.close()  # type: ignore[attr-defined]
    assert video not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    "name", ["window_frames", "stride_frames", "frames_per_second", "timeout_seconds", "queue_size"]
)
@pytest.mark.parametrize("value", [-1, 0, float("nan"), float("inf")])
def test_numbers_that_make_no_sense(model: UniFormerV2, name: str, value: float) -> None:
    with pytest.raises(RecipeError, match=f"^{name} must be positive, got {value:g}"):
        StreamPredictor(model, **{name: value})


def test_a_rate_is_for_sources_that_are_read(model: UniFormerV2) -> None:
    with pytest.raises(RecipeError, match="push fewer"):
        next(StreamPredictor(model, frames_per_second=2).run(images(4)))


def test_memory_over_8000_frames_is_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    # what computes is the cheapest that makes new tensors for each frame: it is what is kept that is tested
    layout = TokenLayout(1, (2, 2))
    predictor = StreamPredictor(tiny(width=8, heads=1), window_frames=2, stride_frames=2)
    cheap = {
        "encode": lambda clip: EncodedFrames((clip[:, 0],), clip[:, 0, :, :8, 0], layout),
        "aggregate": lambda clip: ClipFeatures(clip.frame_embeddings.sum(1), clip.stages[0]),
    }
    for name, function in cheap.items():
        monkeypatch.setattr(rewritten(predictor._optimized), name, function)
    monkeypatch.setattr("uniformerv2.stream.test_frame", lambda image, preprocessing: image.float())
    held = set()
    forget = SharedFrames.drop_before

    def watched(shared: SharedFrames, number: int) -> None:
        held.add(len(shared))
        forget(shared, number)

    monkeypatch.setattr(SharedFrames, "drop_before", watched)
    tensors, blocks = set(), []

    def stream() -> Iterator[Tensor]:
        image = images(1, height=16, width=16)[0]
        for number in range(8000):
            if number % 2000 == 1000:
                gc.collect()
                tensors.add(sum(type(one) is Tensor for one in gc.get_objects()))
                blocks.append(sys.getallocatedblocks())
            yield image

    assert sum(1 for _ in predictor.run(stream())) == 4000
    assert held == {2}
    assert len(tensors) == 1
    assert blocks[-1] - blocks[0] < 1000  # one number kept for each frame would be 6000
