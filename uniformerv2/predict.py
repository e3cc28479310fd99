"""Predictor: a video in, ranked labels out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from uniformerv2.device import pick_device
from uniformerv2.errors import RecipeError
from uniformerv2.inference.optimize import Backend, optimize
from uniformerv2.inference.precision import Precision
from uniformerv2.inference.reduction import Reduction
from uniformerv2.model.sharing import SharedFrames
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.timeline import Timeline
from uniformerv2.video.reader import VideoReader, VideoWarning
from uniformerv2.video.views import evaluation_views
from uniformerv2.video.windows import Windows, middle_frames, window_frames
from uniformerv2.weights.checkpoint import load_model
from uniformerv2.weights.labels import map_head

if TYPE_CHECKING:
    from rich.console import Console

TIMELINE_WINDOW = 2.0  # seconds


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
        num_clips: clips evenly spread over the video.
        num_crops: 1 (centre) or 3 (along the longer side) of each clip.
        head: "kinetics400", "kinetics600" or "kinetics700": only these classes of a Kinetics-710 head.
        precision, backend, reduction: as of `optimize`.
        calibration: videos like those to come: for "int8", and to see in any precision what it changes.

    Attributes:
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
        num_clips: int = 1,
        num_crops: int = 1,
        head: str | None = None,
        precision: Precision | Literal["auto"] = "fp32",
        backend: Backend = "torch",
        reduction: Reduction | None = None,
        calibration: Sequence[str | Path] = (),
    ) -> None:
        if num_clips < 1 or num_crops not in (1, 3):
            raise RecipeError(f"need num_clips >= 1 and num_crops 1 or 3, got {num_clips} and {num_crops}")
        self.device = pick_device(device)
        model = model if isinstance(model, UniFormerV2) else load_model(model)
        self.model = (map_head(model, head) if head else model).to(self.device).eval()
        self.num_clips, self.num_crops = num_clips, num_crops
        clips = [self.views(video) for video in calibration]
        self.optimized = optimize(
            self.model, backend=backend, precision=precision, reduction=reduction, calibration=clips, check=clips
        )
        if isinstance(self.optimized.classify, UniFormerV2):
            self.model = self.optimized.classify  # the plain weights may go

    @torch.inference_mode()
    def predict(self, video: str | Path | bytes, *, top_k: int | None = 5) -> Prediction:
        """Rank the classes for one video.

        Args:
            video: a file, the bytes of one, or a folder of frame images.
            top_k: how many classes to return, at least 1; None: all.

        Raises:
            VideoError: it cannot be read.
        """
        clips = self.views(video).to(self.device)
        scores = torch.cat([self.optimized(clip[None]).softmax(-1) for clip in clips]).mean(0)
        return Prediction(_title(video), *ranked(self.model, scores, top_k))

    @torch.inference_mode()
    def timeline(
        self,
        video: str | Path | bytes,
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
            shared.forget_before(indices[0])
            shared.add({index: frame.to(self.device) for index, frame in frames.items()})
            yield self.model.head(shared.clip(indices).pooled)[0].float().softmax(-1)

    def views(self, video: str | Path | bytes) -> Tensor:
        """The clips that `predict` looks at.

        Returns:
            float32 (clips x crops, 3, frames, height, width), normalised, in the order of `evaluation_views`.

        Raises:
            VideoError: it cannot be read.
        """
        with VideoReader(video) as reader:
            return evaluation_views(
                reader, self.model.preprocessing, num_clips=self.num_clips, num_crops=self.num_crops
            )


def class_names(model: UniFormerV2) -> tuple[str, ...]:
    """The labels of a model's classes, or their numbers."""
    return model.labels or tuple(f"class {number}" for number in range(model.config.num_classes))


def ranked(model: UniFormerV2, scores: Tensor, top_k: int | None) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Labels and scores of the `top_k` most likely classes (None: all), out of the scores (classes) of all."""
    best, classes = scores.topk(len(scores) if top_k is None else min(top_k, len(scores)))
    names = class_names(model)
    return tuple(names[number] for number in classes.tolist()), tuple(best.tolist())


def _title(video: str | Path | bytes) -> str:
    return f"{len(video)} bytes" if isinstance(video, bytes) else str(video)


def _shown(scores: Iterator[Tensor], total: int, console: Console | None) -> Iterator[Tensor]:
    """The same, with a bar on a terminal."""
    if console is None or not console.is_terminal:
        return scores
    from rich.progress import track

    return iter(track(scores, "windows", total, console=console, transient=True))
