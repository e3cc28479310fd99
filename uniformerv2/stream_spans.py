"""StreamLocaliser: live frames in, spans out as they start and end."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from uniformerv2.device import model_device
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.inference.optimize import Backend
from uniformerv2.inference.precision import InferencePrecision
from uniformerv2.inference.sharing import SharedFrames, sharing_report
from uniformerv2.localise import Localiser
from uniformerv2.measuring.models import computing
from uniformerv2.stream import Source, StreamEvent, check_positive, open_source, summary, warn, watched
from uniformerv2.tasks.localisation.decoding import FilmTimes
from uniformerv2.tasks.localisation.pyramid import receptive_field
from uniformerv2.tasks.localisation.streaming import MOST_AT_ONCE, SpanStream, Told
from uniformerv2.video.clips import Windows, window_moments
from uniformerv2.video.decoding import UNTIMED_RATE
from uniformerv2.video.live import LiveFrame
from uniformerv2.video.transforms import test_frame

DELAY_WINDOWS = 8  # beside half a window
_ROUNDING = 1e-9  # seconds: an inexact moment must not point at the frame before


@dataclass(frozen=True)
class SpanEvent:
    """News of a span of a stream."""

    kind: Literal["started", "ended", "withdrawn"]  # withdrawn: what follows shows that it is none
    number: int  # of the span, from 0: the same when it starts and ends
    label: str
    start: float  # seconds since the first frame of the stream, as far as it is known by now
    end: float | None  # None: it has not ended
    score: float
    time: float  # of the newest frame: how late this news is
    dropped: int  # frames so far that were left out because the model was busy
    damaged: int  # packets so far that could not be decoded, or only in part


class StreamLocaliser:
    """Finds spans in a stream of frames, of any length in bounded memory.

    Windows are those of `Localiser`: by time, at any frame rate. What is held are the frames of a window, resized, and
    embeddings: twice as many as the head sees before and behind a place.

    Args:
        model: as of `Localiser`.
        delay_seconds: from the end of a span to its news, at most, beside the time that computing takes; None: 8
            strides and half a window. The longer, the more the head knows when it decides.
        frames_per_second: frames that are taken from a camera, file or address; None: all.
        timeout_seconds, queue_size: as of `StreamPredictor`.
        precision, backend: as of `extract_features`.
        device: as of `Localiser`.

    Attributes:
        labels: of the spans that it finds.
        exact_delay_seconds: delay from which on what it decides is what `Localiser` says of the whole film.
        report: how windows are computed, and the delay, one line each.

    Raises:
        RecipeError: numbers or a device that are not possible, a delay too short for one window.
        CheckpointError: as of `Localiser`.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        delay_seconds: float | None = None,
        frames_per_second: float | None = None,
        timeout_seconds: float | None = 10.0,
        queue_size: int = 2,
        precision: InferencePrecision | Literal["auto"] = "fp32",
        backend: Backend | Literal["auto"] = "torch",
        device: str = "auto",
    ) -> None:
        check_positive(
            delay_seconds=delay_seconds,
            frames_per_second=frames_per_second,
            timeout_seconds=timeout_seconds,
            queue_size=queue_size,
        )
        localiser = Localiser(model, device=device)
        self.labels, self._head, self._recipe = localiser.labels, localiser.head.eval(), localiser.recipe
        self._model = computing(localiser.model, precision=precision, backend=backend).model
        self._preprocessing, self._device = localiser.model.preprocessing, model_device(localiser.model)
        self.frames_per_second, self.timeout_seconds, self.queue_size = frames_per_second, timeout_seconds, queue_size
        window, stride = self._recipe.window_seconds, self._recipe.stride_seconds
        delay = DELAY_WINDOWS * stride + window / 2 if delay_seconds is None else delay_seconds
        self._delay_windows = math.floor((delay - window / 2) / stride + _ROUNDING)
        if self._delay_windows < 1:
            raise RecipeError(f"delay_seconds must be at least {stride + window / 2:g}: a stride and half a window")
        self.delay_seconds = delay
        self.exact_delay_seconds = (receptive_field(self._head.config) + MOST_AT_ONCE) * stride + window / 2
        self.report = (
            sharing_report(localiser.model.config),
            f"an end is told {delay:g} s after it at most; "
            f"with a delay of {self.exact_delay_seconds:g} s the spans are those of the whole film",
        )

    def run(
        self, source: Source, *, threshold: float = 0.3, on_event: Callable[[StreamEvent], object] = warn
    ) -> Iterator[SpanEvent]:
        """Find spans until the stream ends, or until the caller stops iterating.

        Args:
            source: as of `StreamPredictor.run`.
            threshold: score that a span needs, above 0.
            on_event: called with changes of size, damage and the end.

        Yields:
            What is new of a span, as soon as it is known. Each span that has started ends, or is withdrawn.

        Raises:
            RecipeError: `frames_per_second` for frames that the caller gives, or a threshold outside (0, 1].
            VideoError: the source cannot be opened or read, gives no frame for `timeout_seconds`, or has none.
        """
        if not 0 < threshold <= 1:
            raise RecipeError(f"the threshold must be in (0, 1], got {threshold:g}")
        recipe, times = self._recipe, [0.0]
        windows = _LiveWindows(Windows(recipe.window_seconds, recipe.stride_seconds), self._preprocessing.num_frames)
        shared, spans = SharedFrames(self._model), self._spans(threshold)
        live = open_source(
            source,
            frames_per_second=self.frames_per_second,
            timeout_seconds=self.timeout_seconds,
            queue_size=self.queue_size,
        )
        with live as (frames, arriving):

            def told(news: Sequence[Told]) -> Iterator[SpanEvent]:
                for kind, number, span in news:
                    end = span.end if kind == "ended" else None
                    counts = frames.dropped, frames.damaged
                    yield SpanEvent(kind, number, span.label, span.start, end, span.score, times[0], *counts)

            for frame in watched(arriving, frames, on_event):
                times[0] = frame.time
                for window in windows.add(frame, test_frame(frame.image, self._preprocessing)):
                    yield from told(spans.add(self._embedding(shared, window)))
            for window in windows.rest():
                yield from told(spans.add(self._embedding(shared, window)))
            if not windows.frames:
                raise VideoError(summary(frames, 0))
            yield from told(spans.end(windows.duration))
            on_event(StreamEvent("end", summary(frames, windows.frames), windows.frames))

    def _spans(self, threshold: float) -> SpanStream:
        times = FilmTimes(self._recipe.window_seconds / 2, self._recipe.stride_seconds, math.inf)
        return SpanStream(
            self._head,
            self.labels,
            times,
            delay_windows=self._delay_windows,
            context_windows=self._recipe.crop_windows,  # as many as in training
            threshold=threshold,
        )

    @torch.inference_mode()
    def _embedding(self, shared: SharedFrames, window: _Window) -> Tensor:
        """(width) of a window."""
        shared.drop_before(window.numbers[0])
        shared.add({number: window.frames[number].to(self._device) for number in window.numbers})
        return shared.clip(window.numbers).pooled[0]


class _Window(NamedTuple):
    numbers: tuple[int, ...]  # of its frames, in order; some may be the same
    frames: dict[int, Tensor]  # by number


class _LiveWindows:
    """The windows of `Windows.plan`, each as soon as it is certain that the stream does not end in it.

    Args:
        windows: how they lie.
        num_frames: of a window.
    """

    def __init__(self, windows: Windows, num_frames: int) -> None:
        assert windows.seconds is not None
        self._windows, self._num_frames = windows, num_frames
        self._seconds, self._stride = windows.seconds, windows.stride_seconds or windows.seconds
        self._held: list[tuple[float, int, Tensor]] = []  # time, number and picture of frames
        self._count = 0  # windows so far
        self.frames = 0  # so far

    def add(self, frame: LiveFrame, picture: Tensor) -> Iterator[_Window]:
        """The next frame, and its picture as in a clip; gives the windows that it completes."""
        self._held.append((frame.time, frame.number, picture))
        self.frames += 1
        while frame.time > (start := self._count * self._stride) + self._seconds + _ROUNDING:
            yield self._window(start, start + self._seconds)
            self._forget_before(self._count * self._stride)

    def rest(self) -> Iterator[_Window]:
        """No more frames come: the windows that are left."""
        if self._held:
            gap = self.duration / self.frames
            starts, ends = self._windows.times(0.0, self.duration, tolerance=min(0.5 * gap, 0.5 * self._seconds))
            for start, end in zip(starts[self._count :], ends[self._count :], strict=True):
                yield self._window(start, end)

    @property
    def duration(self) -> float:
        """Seconds, as a reader of the same file has it: the last frame is shown as long as others on the average."""
        last = self._held[-1][0]
        return last * self.frames / (self.frames - 1) if last > 0 else self.frames / UNTIMED_RATE

    def _window(self, start: float, end: float) -> _Window:
        self._count += 1
        times = [time for time, _, _ in self._held]
        [moments] = window_moments(np.array([start]), np.array([end]), self._num_frames)
        shown = [self._held[max(0, bisect_right(times, moment + _ROUNDING) - 1)] for moment in moments.tolist()]
        return _Window(tuple(number for _, number, _ in shown), {number: picture for _, number, picture in shown})

    def _forget_before(self, moment: float) -> None:
        """Hold the frame that is shown then, and those after it."""
        times = [time for time, _, _ in self._held]
        del self._held[: max(0, bisect_right(times, moment + _ROUNDING) - 1)]
