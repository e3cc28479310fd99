"""StreamPredictor: live frames in, ranked classes out."""

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
from torch import Tensor, nn

from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.inference.optimize import Backend, rewritten
from uniformerv2.inference.precision import InferencePrecision
from uniformerv2.inference.reduction import Reduction
from uniformerv2.inference.sharing import SharedFrames, sharing_report
from uniformerv2.predict import Predictor, ranked
from uniformerv2.timeline import check_top_k
from uniformerv2.video.live import LiveFrame, LiveFrames, live_frames
from uniformerv2.video.reader import VideoWarning
from uniformerv2.video.transforms import test_frame

Source = str | Path | int | LiveFrames | Iterable[Tensor]


@dataclass(frozen=True)
class StreamPrediction:
    """The most likely classes of a window of a stream, best first."""

    frame: int  # number of the window's newest frame, from 0; frames that were dropped count
    start: float  # of the window's oldest frame, in seconds since the first frame of the stream
    end: float  # of its newest
    labels: tuple[str, ...]
    scores: tuple[float, ...]  # probabilities; those of all classes sum to 1
    latency: float  # seconds from the arrival of the newest frame to this prediction
    dropped: int  # frames so far that were left out because the model was busy
    damaged: int  # packets so far that could not be decoded, or only in part


@dataclass(frozen=True)
class StreamEvent:
    """A change in a stream that is reported beside its predictions."""

    kind: Literal["size", "damage", "end"]  # frames of another size, the first damaged packet, no more frames
    message: str  # one line
    frame: int  # number of frames before it


def warn(event: StreamEvent) -> None:
    """Issue a VideoWarning for an event other than the end."""
    if event.kind != "end":
        warnings.warn(event.message, VideoWarning, stacklevel=2)


class StreamPredictor:
    """Classifies windows that slide over a stream of frames.

    Without local UniBlocks and temporal downsampling each frame is encoded once, and a window costs only its global
    stages; with them every window is computed whole, as `report` says. Either way the scores are those of the window
    given to the model as a clip.

    Args:
        model: as of `Predictor`.
        window_frames: length of a window; None: as many frames as the model was trained with.
        stride_frames: from the start of a window to that of the next.
        frames_per_second: frames that are taken from a camera, file or address; None: all. A window spans
            `window_frames` / `frames_per_second` seconds, which should be about what the model was trained on.
        timeout_seconds: after so long without a frame a source has failed; None: never.
        queue_size: frames that may wait for the model; the oldest are dropped when more come.
        head, precision, device: as of `Predictor`.
        backend: "torch", "compile" or "auto", as of `optimize`.
        reduction: as of `Predictor`; "merge", since each frame is computed by itself.

    Attributes:
        report: the backend and the precision that "auto" chose and why, and how windows are computed, one line each.

    Raises:
        RecipeError: numbers or a device that are not possible, or a backend that gives logits of whole clips alone.
        CheckpointError: as of `Predictor`.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        window_frames: int | None = None,
        stride_frames: int = 1,
        frames_per_second: float | None = None,
        timeout_seconds: float | None = 10.0,
        queue_size: int = 2,
        head: str | None = None,
        precision: InferencePrecision | Literal["auto"] = "fp32",
        backend: Backend | Literal["auto"] = "torch",
        reduction: Reduction | None = None,
        device: str = "auto",
    ) -> None:
        check_positive(
            window_frames=window_frames,
            stride_frames=stride_frames,
            frames_per_second=frames_per_second,
            timeout_seconds=timeout_seconds,
            queue_size=queue_size,
        )
        if reduction is not None and reduction.method != "merge":
            raise RecipeError(f"each frame of a stream is computed by itself, so {reduction} saves nothing; take merge")
        predictor = Predictor(
            model, head=head, precision=precision, backend=backend, reduction=reduction, device=device
        )
        rewritten(predictor.optimized)
        self.model, self.device, self._optimized = predictor.model, predictor.device, predictor.optimized
        self.window_frames = window_frames or self.model.preprocessing.num_frames
        self.stride_frames, self.frames_per_second = stride_frames, frames_per_second
        self.timeout_seconds, self.queue_size = timeout_seconds, queue_size
        self.report = tuple(filter(None, (predictor.optimized.note, sharing_report(self.model.config))))

    def run(
        self, source: Source, *, top_k: int | None = 5, on_event: Callable[[StreamEvent], object] = warn
    ) -> Iterator[StreamPrediction]:
        """Predict until the stream ends, or until the caller stops iterating.

        Args:
            source: a camera ("camera", "camera:1", or its number), an address (rtsp://, http://, ...), a file, which
                plays at its own pace, `LiveFrames` that the caller pushes frames to, or uint8 RGB frames (3, height,
                width) one after the other, none of which is dropped, however long that takes.
            top_k: how many classes to return, at least 1; None: all.
            on_event: called with changes of size, damage and the end.

        Yields:
            A prediction for each window, as soon as its last frame is there.

        Raises:
            RecipeError: `frames_per_second` for frames that the caller gives, or `top_k` below 1.
            VideoError: the source cannot be opened or read, gives no frame for `timeout_seconds`, or ends before one
                window is full.
        """
        check_top_k(top_k)
        shared, times = SharedFrames(rewritten(self._optimized)), deque[float](maxlen=self.window_frames)
        count = 0
        live = open_source(
            source,
            frames_per_second=self.frames_per_second,
            timeout_seconds=self.timeout_seconds,
            queue_size=self.queue_size,
        )
        with live as (frames, arriving):
            for frame in watched(arriving, frames, on_event):
                if count % self.stride_frames < self.window_frames:  # longer strides leave frames out
                    self._add(shared, count, frame)
                    times.append(frame.time)
                count += 1
                first = count - self.window_frames
                if first >= 0 and first % self.stride_frames == 0:
                    labels, scores = ranked(self.model, self._scores(shared, first).cpu(), top_k)
                    latency = frames.clock() - frame.arrival
                    yield StreamPrediction(
                        frame.number, times[0], frame.time, labels, scores, latency, frames.dropped, frames.damaged
                    )
            if count < self.window_frames:
                raise VideoError(f"{summary(frames, count)}, but a window has {self.window_frames}; make it shorter")
            on_event(StreamEvent("end", summary(frames, count), count))

    @torch.inference_mode()
    def _add(self, shared: SharedFrames, number: int, frame: LiveFrame) -> None:
        shared.add({number: test_frame(frame.image, self.model.preprocessing).to(self.device)})

    @torch.inference_mode()
    def _scores(self, shared: SharedFrames, first: int) -> Tensor:
        """Probabilities (classes) of the window that begins with a frame."""
        scores = shared.scores(range(first, first + self.window_frames))
        shared.drop_before(first + self.stride_frames)
        return scores


def check_positive(**numbers: float | None) -> None:
    """Raise RecipeError for a number that is not positive and finite; None stands for none."""
    for name, value in numbers.items():
        if value is not None and not 0 < value < math.inf:
            raise RecipeError(f"{name} must be positive, got {value:g}")


@contextmanager
def open_source(
    source: Source, *, frames_per_second: float | None, timeout_seconds: float | None, queue_size: int
) -> Iterator[tuple[LiveFrames, Iterator[LiveFrame]]]:
    """The queue of frames, and the frames that are taken from it.

    Args:
        source: as of `StreamPredictor.run`.
        frames_per_second, timeout_seconds, queue_size: as of `StreamPredictor`.

    Raises:
        RecipeError: `frames_per_second` for frames that the caller gives.
    """
    if isinstance(source, str | Path | int):
        pause = 1 / frames_per_second if frames_per_second else 0.0  # between two frames that are taken
        wait = None if timeout_seconds is None else timeout_seconds + pause
        with live_frames(
            source, frames_per_second=frames_per_second, timeout_seconds=timeout_seconds, queue_size=queue_size
        ) as frames:
            yield frames, iter(partial(frames.take, timeout_seconds=wait), None)
    elif frames_per_second is not None:
        raise RecipeError(f"frames_per_second {frames_per_second:g} is for sources that are read; push fewer")
    elif isinstance(source, LiveFrames):
        yield source, iter(partial(source.take, timeout_seconds=timeout_seconds), None)
    else:
        frames = LiveFrames(queue_size=1)
        yield frames, _one_by_one(source, frames)


def _one_by_one(images: Iterable[Tensor], frames: LiveFrames) -> Iterator[LiveFrame]:
    """The images as live frames, each made when it is asked for."""
    for image in images:
        frames.push(image)
        frame = frames.take()
        assert frame is not None
        yield frame


def watched(
    arriving: Iterable[LiveFrame], frames: LiveFrames, on_event: Callable[[StreamEvent], object]
) -> Iterator[LiveFrame]:
    """The same frames; calls `on_event` for changes of size and for the first damage."""
    size, damaged = None, 0
    for count, frame in enumerate(arriving):
        height, width = frame.image.shape[1:]
        if size not in (None, (height, width)):
            on_event(StreamEvent("size", f"{frames.name}: frames have {width}x{height} pixels from here on", count))
        if frames.damaged and not damaged:
            on_event(StreamEvent("damage", f"{frames.name}: packets that cannot be decoded are left out", count))
        size, damaged = (height, width), frames.damaged
        yield frame


def summary(frames: LiveFrames, count: int) -> str:
    """How a stream ended, in a line."""
    parts = [f"{frames.name}: ended after {count} frames", f"{frames.dropped} dropped"]
    if frames.damaged:
        parts.append(f"{frames.damaged} packets damaged")
    return ", ".join(parts) + (f" ({frames.ending})" if frames.ending else "")
