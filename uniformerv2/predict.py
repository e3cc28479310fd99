"""Predictor: a video in, ranked labels out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from uniformerv2.ahead import ahead
from uniformerv2.device import pick_device
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.inference.optimize import Backend, optimize
from uniformerv2.inference.precision import InferencePrecision
from uniformerv2.inference.reduction import Reduction
from uniformerv2.inference.sharing import SharedFrames, classify_shared, sharing_obstacle
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.timeline import Timeline
from uniformerv2.video.clips import SharedClips, distinct_views, joined
from uniformerv2.video.reader import VideoReader, VideoWarning
from uniformerv2.video.views import Views
from uniformerv2.video.windows import Windows, middle_frames, window_frames
from uniformerv2.weights.labels import map_head
from uniformerv2.weights.loading import load_model

if TYPE_CHECKING:
    from rich.console import Console

TIMELINE_WINDOW = 2.0  # seconds

Video = str | Path | bytes


@dataclass(frozen=True)
class Prediction:
    """What a model sees in a video, the most likely class first."""

    video: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]  # probabilities, averaged over the views; all classes together have 1


class Predictor:
    """Classifies videos with a model.

    Args:
        model: a checkpoint of ours, or a model.
        device: "auto" (a GPU where there is one), or a name that torch knows.
        views: clips x crops of each video, and what is averaged over them.
        head: "kinetics400", "kinetics600" or "kinetics700": only these classes of a Kinetics-710 head.
        precision, backend, reduction: as of `optimize`.
        calibration_videos: videos like those to come: for "int8", and to see in any precision what it changes.

    Attributes:
        batch_size: clips that the model sees at once where nothing else is asked for: 8 on a GPU. On a CPU 1, as
            more gain little there, and a result would wait for others.
        model: what labels, preprocessing and timelines come from.
        optimized: what classifies, and what that changes on the calibration videos.

    Raises:
        RecipeError: a device that is not here, impossible counts, or as `optimize`.
        CheckpointError: the checkpoint cannot be read, or has no such head.
        VideoError: a video to calibrate on cannot be read.
    """

    def __init__(
        self,
        model: str | Path | UniFormerV2,
        *,
        device: str = "auto",
        views: Views = Views(),
        head: str | None = None,
        precision: InferencePrecision | Literal["auto"] = "fp32",
        backend: Backend = "torch",
        reduction: Reduction | None = None,
        calibration_videos: Sequence[str | Path] = (),
    ) -> None:
        self.device = pick_device(device)
        model = model if isinstance(model, UniFormerV2) else load_model(model)
        self.model = (map_head(model, head) if head else model).to(self.device).eval()
        self.views = views
        self.batch_size = 1 if self.device.type == "cpu" else 8
        clips = [self.clips(video) for video in calibration_videos]
        self.optimized = optimize(
            self.model,
            backend=backend,
            precision=precision,
            reduction=reduction,
            calibration_clips=clips,
            validation_clips=clips,
        )
        if isinstance(self.optimized.classify, UniFormerV2):
            self.model = self.optimized.classify  # the plain weights may go
        # other backends see whole clips only, and where tokens are reduced, a frame may depend on the one before it
        whole = self.optimized.classify is not self.model or reduction is not None
        self._shares = not whole and not sharing_obstacle(self.model.config)

    def predict(self, video: Video, *, top_k: int | None = 5) -> Prediction:
        """Rank the classes for one video.

        Args:
            video: a file, the bytes of one, or a folder of frame images.
            top_k: how many classes to return, at least 1; None: all.

        Raises:
            VideoError: it cannot be read.
        """
        [scores] = self._scores([self._read(video)], self.batch_size)
        return self._prediction(video, scores, top_k)

    def predict_all(
        self, videos: Iterable[Video], *, batch_size: int | None = None, top_k: int | None = 5
    ) -> Iterator[Prediction | VideoError]:
        """Rank the classes for many videos, while the next ones are read.

        The model sees clips of several videos together, while a thread reads as many more; no more than these two
        batches are held. The thread ends with the iteration, also where that is broken off.

        Args:
            videos: each as of `predict`; taken as they are needed.
            batch_size: clips that the model sees at once, at least 1; None: the predictor's. A video that has more
                views is a batch by itself, computed in parts.
            top_k: as of `predict`.

        Yields:
            For each video in order what `predict` would return, or the error that it would raise.

        Raises:
            RecipeError: a batch size below 1.
        """
        batch_size = self.batch_size if batch_size is None else batch_size
        if batch_size < 1:
            raise RecipeError(f"the batch size must be at least 1, got {batch_size}")
        count = max(1, batch_size // len(self.views))
        with closing(ahead(self._read, videos, count=count)) as reads:
            while outcomes := self._outcomes(list(islice(reads, count)), batch_size, top_k):
                for outcome in outcomes:
                    if not isinstance(outcome, Prediction | VideoError):
                        raise outcome
                    yield outcome

    def _outcomes(
        self, reads: Sequence[tuple[Video, Future[SharedClips]]], batch_size: int, top_k: int | None
    ) -> list[Prediction | BaseException]:
        """What comes out of each video of a batch."""
        errors = [read.exception() for _, read in reads]  # waits for them
        views = [read.result() for (_, read), error in zip(reads, errors, strict=True) if error is None]
        scores = iter(self._scores(views, batch_size) if views else ())
        return [
            error or self._prediction(video, next(scores), top_k)
            for (video, _), error in zip(reads, errors, strict=True)
        ]

    def _prediction(self, video: Video, scores: Tensor, top_k: int | None) -> Prediction:
        return Prediction(_title(video), *ranked(self.model, scores, top_k))

    @torch.inference_mode()
    def _scores(self, videos: Sequence[SharedClips], batch_size: int) -> Sequence[Tensor]:
        """Probabilities (classes) of each video, averaged over its views."""
        views = joined(videos)
        frames = views.frames.to(self.device)
        clips, which = views.clips.unique(dim=0, return_inverse=True)  # of a very short video, many are equal
        logits = torch.cat([self._logits(SharedClips(frames, some)) for some in clips.split(batch_size)])
        if self.views.average == "probabilities":
            logits = logits.softmax(-1)
        means = [one.mean(0) for one in logits[which].split([len(video.clips) for video in videos])]
        return means if self.views.average == "probabilities" else [mean.softmax(-1) for mean in means]

    def _logits(self, views: SharedClips) -> Tensor:
        """Logits (clips, classes), from frames that are encoded once where that is possible and saves any."""
        used, clips = views.clips.unique(return_inverse=True)
        if self._shares and len(used) < clips.numel():
            return classify_shared(self.model, views.frames[:, used], clips)
        return self.optimized(views.whole())

    @torch.inference_mode()
    def timeline(
        self,
        video: Video,
        *,
        window: float = TIMELINE_WINDOW,
        stride: float | None = None,
        console: Console | None = None,
    ) -> Timeline:
        """Rank the classes for every window that slides over a video.

        The video is decoded once, and without local UniBlocks and temporal downsampling a frame that several windows
        have in common is encoded once: all of them where `stride` is a multiple of `window` / frames. No more frames
        are held than the windows need that are open at a time; only the scores are kept.

        Args:
            video: as of `predict`.
            window: seconds; the model's number of frames is spread evenly over it.
            stride: seconds from the start of a window to that of the next; None: as `window`. See `Windows.times`.
            console: shows a bar on a terminal; None shows nothing.

        Raises:
            RecipeError: a window or stride that makes no sense, or a backend that sees whole clips only.
            VideoError: it cannot be read.

        Warns:
            VideoWarning: the video is damaged, yet the wanted frames are there.
        """
        if self.optimized.classify is not self.model:
            raise RecipeError(f"backend {self.optimized.backend} cannot share frames between windows; take torch")
        windows = Windows(window, stride)
        with VideoReader(video) as reader:
            times = windows.times(0.0, reader.duration, tolerance=0.5 / reader.rate)
            places = [middle_frames(reader, *time, self.model.preprocessing.num_frames) for time in times]
            scores = np.empty((len(times), self.model.config.num_classes), dtype=np.float32)
            for number, one in enumerate(_shown(self._window_scores(reader, places), len(times), console)):
                scores[number] = one.cpu()
            if reader.damage:
                warnings.warn(f"{_title(video)}: damaged video ({reader.damage})", VideoWarning, stacklevel=2)
        start, end = np.array(times, dtype=np.float64).T
        return Timeline(_title(video), class_names(self.model), start, end, scores)

    def _window_scores(self, reader: VideoReader, places: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Probabilities (classes) of each window."""
        shared = SharedFrames(self.model)
        for indices, frames in zip(places, window_frames(reader, places, self.model.preprocessing), strict=True):
            shared.drop_before(indices[0])
            shared.add({index: frame.to(self.device) for index, frame in frames.items()})
            yield self.model.head(shared.clip(indices).pooled)[0].float().softmax(-1)

    def clips(self, video: Video) -> Tensor:
        """The clips that `predict` looks at.

        Returns:
            float32 (clips x crops, 3, frames, height, width), normalised, in the order of `evaluation_views`.

        Raises:
            VideoError: it cannot be read.
        """
        return self._read(video).whole()

    def _read(self, video: Video) -> SharedClips:
        with VideoReader(video) as reader:
            return distinct_views(reader, self.model.preprocessing, self.views)


def class_names(model: UniFormerV2) -> tuple[str, ...]:
    """The labels of a model's classes, or their numbers."""
    return model.labels or tuple(f"class {number}" for number in range(model.config.num_classes))


def ranked(model: UniFormerV2, scores: Tensor, top_k: int | None) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Labels and scores of the `top_k` most likely classes (None: all), out of the scores (classes) of all."""
    best, classes = scores.topk(len(scores) if top_k is None else min(top_k, len(scores)))
    names = class_names(model)
    return tuple(names[number] for number in classes.tolist()), tuple(best.tolist())


def _title(video: Video) -> str:
    return f"{len(video)} bytes" if isinstance(video, bytes) else str(video)


def _shown(scores: Iterator[Tensor], total: int, console: Console | None) -> Iterator[Tensor]:
    """The same, with a bar on a terminal."""
    if console is None or not console.is_terminal:
        return scores
    from rich.progress import track

    return iter(track(scores, "windows", total, console=console, transient=True))
