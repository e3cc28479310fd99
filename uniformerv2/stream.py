"""Live frames in, predictions out; every frame is encoded once where the architecture allows it."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.inference.reduction import Reduction
from uniformerv2.inference.sharing import SharedFrames, sharing_report
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.predict import Predictor, ranked
from uniformerv2.video.live import LiveFrame, LiveFrames, live_frames
from uniformerv2.video.reader import VideoWarning
from uniformerv2.video.transforms import test_frame

Source = str | Path | int | LiveFrames | Iterable[Tensor]


@dataclass(frozen=True)
class StreamPrediction:
    """What a model sees in the last frames of a stream, the most likely class first."""

    frame: int  # number of the window's newest frame, from 0; frames that were dropped count
    start: float  # of the window's oldest frame, in seconds since the first frame of the stream
    end: float  # of its newest
    labels: tuple[str, ...]
    scores: tuple[float, ...]  # probabilities; all classes together have 1
    latency: float  # seconds from the arrival of the newest frame to this prediction
    dropped: int  # frames so far that had to go because the model was busy
    damaged: int  # packets so far that could not be decoded, or only in part


@dataclass(frozen=True)
class StreamEvent:
    """What happened to a stream beside its predictions."""

    kind: Literal["size", "damage", "end"]  # frames of another size, the first damaged packet, no more frames
    message: str  # one line
    frame: int  # frames that were seen before


def warn(event: StreamEvent) -> None:
    """Makes a VideoWarning of an event; that a stream ends is none."""
    if event.kind != "end":
        warnings.warn(event.message, VideoWarning, stacklevel=2)


class StreamPredictor:
    """Classifies windows that slide over a stream of frames.

    Without local UniBlocks and temporal downsampling each frame is encoded once, and only the global stages run for
    every window; with them every window is computed whole, as `report` says. Scores are those of the whole window
    given to the model as a clip, either way.

    Args:
        model: a checkpoint of ours, or a model.
        window: frames that the model sees together; None: as many as it was trained with.
        stride: frames from the start of a window to that of the next.
        rate: frames per second that are taken from a camera, file or address; None: all. A window spans window / rate
            seconds, which should be about what the model was trained on.
        timeout: seconds after which a source that gives no frame has failed; None: never.
        room: frames that may wait for the model; the oldest go when more come.
        device, head, precision: as of `Predictor`.
        reduction: as of `Predictor`; "merge", since each frame is computed by itself.

    Attributes:
        report: the precision that "auto" chose and why, and how windows are computed, one line each.

    Raises:
        RecipeError: counts, seconds or a device that make no sense.
        CheckpointError: as of `Predictor`.
    """

    def __init__(
        self,
        model: str | Path | UniFormerV2,
        *,
        window: int | None = None,
        stride: int = 1,
        rate: float | None = None,
        timeout: float | None = 10.0,
        room: int = 2,
        device: str = "auto",
        head: str | None = None,
        precision: Literal["auto", "fp32", "bf16"] = "fp32",
        reduction: Reduction | None = None,
    ) -> None:
        numbers = {"window": window, "stride": stride, "rate": rate, "timeout": timeout, "room": room}
        for name, value in numbers.items():
            if value is not None and not 0 < value < math.inf:
                raise RecipeError(f"the {name} of a stream must be positive, got {value:g}")
        if reduction is not None and reduction.method != "merge":
            raise RecipeError(f"each frame of a stream is computed by itself, so {reduction} saves nothing; take merge")
        predictor = Predictor(model, device=device, head=head, precision=precision, reduction=reduction)
        self.model, self.device = predictor.model, predictor.device
        self.window = window or self.model.preprocessing.num_frames
        self.stride, self.rate, self.timeout, self.room = stride, rate, timeout, room
        self.report = tuple(filter(None, (predictor.optimized.note, sharing_report(self.model.config))))

    def run(
        self, source: Source, *, top_k: int | None = 5, on_event: Callable[[StreamEvent], object] = warn
    ) -> Iterator[StreamPrediction]:
        """Predict until the stream ends, or until the caller stops iterating.

        Args:
            source: a camera ("camera", "camera:1", or its number), an address (rtsp://, http://, ...), a file, which
                plays at its own pace, `LiveFrames` that the caller pushes frames to, or uint8 RGB frames (3, height,
                width) one after the other, all of which are seen, however long that takes.
            top_k: how many classes to return, at least 1; None: all.
            on_event: is told of changes of size, damage and the end.

        Yields:
            A prediction for each window, as soon as its last frame is there.

        Raises:
            RecipeError: a `rate` for frames that the caller gives.
            VideoError: the source cannot be opened or read, gives no frame for `timeout`, or ends before one window
                is full.
        """
        shared, times = SharedFrames(self.model), deque[float](maxlen=self.window)
        count = 0
        with self._open(source) as (frames, arriving):
            for frame in _watched(arriving, frames, on_event):
                if count % self.stride < self.window:  # longer strides leave frames out
                    self._see(shared, count, frame)
                    times.append(frame.time)
                count += 1
                first = count - self.window
                if first >= 0 and first % self.stride == 0:
                    labels, scores = ranked(self.model, self._scores(shared, first), top_k)
                    latency = frames.clock() - frame.arrival
                    yield StreamPrediction(
                        frame.number, times[0], frame.time, labels, scores, latency, frames.dropped, frames.damaged
                    )
            if count < self.window:
                raise VideoError(f"{_summary(frames, count)}, but a window has {self.window}; make it shorter")
            on_event(StreamEvent("end", _summary(frames, count), count))

    @contextmanager
    def _open(self, source: Source) -> Iterator[tuple[LiveFrames, Iterator[LiveFrame]]]:
        """The queue that frames go through, and what comes out of it."""
        if isinstance(source, str | Path | int):
            # between two frames that are taken, the others pass by unseen
            pause = 1 / self.rate if self.rate else 0.0
            patience = None if self.timeout is None else self.timeout + pause
            with live_frames(source, rate=self.rate, timeout=self.timeout, room=self.room) as frames:
                yield frames, iter(partial(frames.take, patience), None)
        elif self.rate is not None:
            raise RecipeError(f"a rate of {self.rate:g} frames/s is for sources that are read; push fewer frames")
        elif isinstance(source, LiveFrames):
            yield source, iter(partial(source.take, self.timeout), None)
        else:
            frames = LiveFrames(room=1)
            yield frames, _one_by_one(source, frames)

    @torch.inference_mode()
    def _see(self, shared: SharedFrames, number: int, frame: LiveFrame) -> None:
        shared.add({number: test_frame(frame.image, self.model.preprocessing).to(self.device)})

    @torch.inference_mode()
    def _scores(self, shared: SharedFrames, first: int) -> Tensor:
        """Probabilities (classes) of the window that begins with a frame."""
        pooled = shared.clip(range(first, first + self.window)).pooled
        shared.drop_before(first + self.stride)
        return self.model.head(pooled)[0].float().softmax(-1)


def _one_by_one(images: Iterable[Tensor], frames: LiveFrames) -> Iterator[LiveFrame]:
    """What the caller gives, at the pace of whoever asks."""
    for image in images:
        frames.push(image)
        frame = frames.take()
        assert frame is not None
        yield frame


def _watched(
    arriving: Iterable[LiveFrame], frames: LiveFrames, on_event: Callable[[StreamEvent], object]
) -> Iterator[LiveFrame]:
    """The same frames, while events are told."""
    size, damaged = None, 0
    for count, frame in enumerate(arriving):
        height, width = frame.image.shape[1:]
        if size not in (None, (height, width)):
            on_event(StreamEvent("size", f"{frames.name}: frames have {width}x{height} pixels from here on", count))
        if frames.damaged and not damaged:
            on_event(StreamEvent("damage", f"{frames.name}: packets that cannot be decoded are left out", count))
        size, damaged = (height, width), frames.damaged
        yield frame


def _summary(frames: LiveFrames, count: int) -> str:
    parts = [f"{frames.name}: ended after {count} frames", f"{frames.dropped} dropped"]
    if frames.damaged:
        parts.append(f"{frames.damaged} packets damaged")
    return ", ".join(parts) + (f" ({frames.ending})" if frames.ending else "")
