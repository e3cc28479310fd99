"""Predictor: a video in, ranked classes or a timeline out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from uniformerv2.ahead import ahead
from uniformerv2.data.annotations import Annotation, Interval, Unreadable
from uniformerv2.data.processes import Crash, in_order
from uniformerv2.data.shards import video_source
from uniformerv2.device import fetch_later, model_device, on_device, one_late, upload
from uniformerv2.errors import AnnotationError, RecipeError, VideoError
from uniformerv2.inference.optimize import Backend, optimize, rewritten
from uniformerv2.inference.parts import in_parts, over_views
from uniformerv2.inference.precision import InferencePrecision
from uniformerv2.inference.reduction import Reduction
from uniformerv2.inference.sharing import SharedFrames, classify_shared, sharing_obstacle
from uniformerv2.machine import WORKERS
from uniformerv2.model.config import Preprocessing
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.predictions import Prediction, check_threshold
from uniformerv2.progress import track
from uniformerv2.timeline import Timeline, check_top_k
from uniformerv2.video.clips import SharedClips, Windows, distinct_views, interval_frames, joined, window_frames
from uniformerv2.video.limits import Limits
from uniformerv2.video.reader import VideoReader, VideoWarning
from uniformerv2.video.views import Views
from uniformerv2.weights.loading import resolve_model

Video = str | Path | bytes | Annotation


@dataclass(frozen=True, eq=False)
class _Batch:
    """Videos that are computed together."""

    videos: tuple[tuple[Video, BaseException | None], ...]  # each with its error, if it could not be read
    counts: tuple[int, ...]  # clips of each that was read
    tensors: tuple[Tensor, ...]  # the frames of those, as in `SharedClips`, if there are any
    clips: Tensor  # int64, as in `SharedClips`, on the CPU

    @classmethod
    def of(cls, reads: Sequence[tuple[Video, SharedClips | BaseException]]) -> _Batch:
        clips = [read for _, read in reads if isinstance(read, SharedClips)]
        together = joined(clips) if clips else SharedClips(torch.empty(0), torch.empty(0, dtype=torch.int64))
        videos = tuple((video, None if isinstance(read, SharedClips) else read) for video, read in reads)
        counts = tuple(len(of_video.clips) for of_video in clips)
        return cls(videos, counts, (together.frames,) if clips else (), together.clips)

    def to(self, device: torch.device) -> _Batch:
        return replace(self, tensors=tuple(upload(tensor, device) for tensor in self.tensors))


class Predictor:
    """Classifies videos. It can be pickled, and so used in worker processes.

    Args:
        model: a checkpoint (a file, the name of a published model, a repository of the hub), or a model, which keeps
            its mode; torch.compile, DataParallel or DistributedDataParallel may wrap it.
        views: clips and crops of each video, and what is averaged over them.
        batch_size: clips that the model computes at once, at least 1; None: 8 on a GPU, 1 on a CPU, where batching
            adds latency and little throughput.
        head: "kinetics400", "kinetics600" or "kinetics700": only these classes of a Kinetics-710 head.
        precision, backend, reduction: as of `optimize`.
        calibration_videos: videos like those to come: "int8" is calibrated on them, and any precision is compared with
            the plain model on them.
        device: a name that torch knows; "auto": a checkpoint goes to a GPU where there is one, a model stays.

    Attributes:
        model: the plain model: to save, to train, to wrap. Once its weights changed, make another Predictor.
        optimized: computes the scores; knows how they differ on the calibration videos.

    Raises:
        RecipeError: a device that is not here, a batch size below 1, or as `optimize`; from every method, where the
            weights of the model changed.
        CheckpointError: the checkpoint cannot be read, or has no such head.
        VideoError: a video to calibrate on cannot be read.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        views: Views = Views(),
        batch_size: int | None = None,
        head: str | None = None,
        precision: InferencePrecision | Literal["auto"] = "fp32",
        backend: Backend | Literal["auto"] = "torch",
        reduction: Reduction | None = None,
        calibration_videos: Sequence[str | Path] = (),
        device: str = "auto",
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise RecipeError(f"the batch size must be at least 1, got {batch_size}")
        self.model = resolve_model(model, device=device, head=head)
        self.device = model_device(self.model)
        self.views = views
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else 8)
        clips = [self.clips(video) for video in calibration_videos]
        self.optimized = optimize(
            self.model,
            backend=backend,
            precision=precision,
            reduction=reduction,
            calibration_clips=clips,
            validation_clips=clips,
        )
        # exported graphs compute whole clips, and a compiled one gains nothing by another number of frames in each
        # batch; where tokens are reduced, a frame may depend on the one before it
        eager = self.optimized.backend == "torch"
        self._shares = eager and reduction is None and not sharing_obstacle(self.model.config)

    def predict(self, video: Video, *, top_k: int | None = 5, threshold: float = 0.0) -> Prediction:
        """Rank the classes for one video; or, with a model that names several labels, find those that it shows.

        Args:
            video: a file, the bytes of one, or a folder of frame images; or an annotation, of which the interval is
                classified, and whose label does not matter.
            top_k: how many classes to return, at least 1; None: all. A model that names several labels returns all
                classes that reach their thresholds.
            threshold: probability that the most likely class needs to be the answer, `Prediction.label`; below it,
                that is None, for none of these. Of several labels, the one that all classes need; 0: each its own.

        Raises:
            RecipeError: `top_k` below 1, or a threshold outside [0, 1].
            VideoError: the video cannot be read.
        """
        check_top_k(top_k)
        check_threshold(threshold)
        [scores] = self._scores(_Batch.of([(video, self._read(video))]).to(self.device)).cpu()
        return self._prediction(video, scores, top_k, threshold)

    def predict_all(
        self, videos: Iterable[Video], *, workers: int = WORKERS, top_k: int | None = 5, threshold: float = 0.0
    ) -> Generator[Prediction | Unreadable, None, None]:
        """Rank the classes for many videos, while the next ones are read.

        The model computes clips of several videos at once, while others read the next batch; these two batches are
        all that is held, and the scores of the one before, which come once the next is given to the device; a GPU holds
        up to two batches more. What reads ends with the iteration, also where that is broken off. A video with more
        views than a batch has clips is a batch of its own, computed in parts.

        Args:
            videos: each as of `predict`; taken as they are needed.
            workers: processes that read, under the limits of the environment (`Limits`); a video that ends one is
                tried once more, and then one that cannot be read. 0: a thread of this process, which such a video ends.
            top_k, threshold: as of `predict`.

        Yields:
            For each video in order its prediction, or why it cannot be read.

        Raises:
            RecipeError: as `predict`.
        """
        check_top_k(top_k)
        check_threshold(threshold)
        count = max(1, self.batch_size // len(self.views))
        row = 0
        reads = self._reads(videos, count, workers)
        batches = map(_Batch.of, iter(lambda: list(islice(reads, count)), []))  # map keeps none of them
        with closing(reads), closing(on_device(batches, self.device)) as uploaded:
            for outcomes, scores in one_late(map(self._begin, uploaded)):
                of_read = iter(scores)
                for video, error in outcomes:
                    if error is None:
                        yield self._prediction(video, next(of_read), top_k, threshold)
                    elif isinstance(error, VideoError):
                        yield Unreadable(_title(video), str(error), row)
                    else:
                        raise error
                    row += 1

    def _reads(
        self, videos: Iterable[Video], count: int, workers: int
    ) -> Generator[tuple[Video, SharedClips | BaseException], None, None]:
        """Each video with its clips, or why there are none; `count` of them are read ahead."""
        if workers == 0:
            with closing(ahead(self._read, videos, count=count)) as futures:
                for video, future in futures:
                    yield video, future.exception() or future.result()
            return
        threads = 1 if workers > 1 or Limits.from_environment().memory_bytes else 0  # each takes a stack of memory
        read = partial(_read_apart, self.model.preprocessing, self.views, threads)
        with closing(in_order(read, videos, workers=workers, ahead=count)) as results:
            for video, found in results:
                if isinstance(found, Crash):
                    yield video, VideoError(f"{_title(video)}: reading it ended a process ({found.cause})")
                elif isinstance(found, VideoError):
                    yield video, found
                else:
                    frames, clips, damage = found
                    for message in damage:
                        warnings.warn(message, VideoWarning, stacklevel=1)
                    yield video, SharedClips(torch.from_numpy(frames), torch.from_numpy(clips))

    def _begin(self, batch: _Batch) -> tuple[Sequence[tuple[Video, BaseException | None]], Callable[[], Tensor]]:
        """Begin a batch: its videos with their errors, and what waits for the scores of those without."""
        return batch.videos, fetch_later(self._scores(batch)) if batch.counts else partial(torch.empty, 0)

    def _prediction(self, video: Video, scores: Tensor, top_k: int | None, threshold: float) -> Prediction:
        several = self.model.thresholds
        labels, probabilities = ranked(self.model, scores, None if several else top_k)
        if several:
            needed = dict(zip(class_names(self.model), several, strict=True))
            pairs = zip(labels, probabilities, strict=True)
            named = [(label, score) for label, score in pairs if score >= (threshold or needed[label])]
            labels, probabilities = (tuple(column) for column in zip(*named, strict=True)) if named else ((), ())
        sure = bool(labels) and probabilities[0] >= threshold
        return Prediction(_title(video), labels, probabilities, label=labels[0] if sure else None)

    @torch.inference_mode()
    def _scores(self, batch: _Batch) -> Tensor:
        """Probabilities (videos, classes) of the videos that were read, averaged over the views of each."""
        [frames] = batch.tensors
        clips, which = batch.clips.unique(dim=0, return_inverse=True)  # of a very short video, many are equal
        parts = in_parts(lambda some: self._logits(SharedClips(frames, some)), clips, self.batch_size, by=self)
        logits = torch.cat(parts)
        of_videos = logits[which].split(list(batch.counts))
        return torch.stack([over_views(self.model, some, self.views.average) for some in of_videos])

    def _logits(self, clips: SharedClips) -> Tensor:
        """Logits (clips, classes), from frames that are encoded once where that is possible and saves any."""
        used, indices = clips.clips.unique(return_inverse=True)
        if self._shares and len(used) < indices.numel():
            return classify_shared(rewritten(self.optimized), clips.frames[:, used], indices)
        return self.optimized(clips.whole())

    @torch.inference_mode()
    def timeline(
        self,
        video: Video,
        *,
        window_seconds: float | None = 2.0,
        stride_seconds: float | None = None,
        progress: bool = False,
    ) -> Timeline:
        """Classify windows that slide over a video.

        The video is decoded once, and without local UniBlocks and temporal downsampling a frame that several windows
        have in common is encoded once: all of them where the stride is a multiple of `window_seconds` / frames. Only
        the frames of those windows are held that are open at a time, and the scores.

        Args:
            video: as of `predict`.
            window_seconds: length of a window, whose frames `Windows.plan` chooses; None: the whole video.
            stride_seconds: from the start of a window to that of the next; None: as `window_seconds`.
            progress: whether to show a bar.

        Raises:
            RecipeError: a window or stride that is not possible, or a backend that computes whole clips only.
            VideoError: the video cannot be read.

        Warns:
            VideoWarning: the video is damaged, yet the wanted frames are there.
        """
        shared = SharedFrames(rewritten(self.optimized))
        windows = Windows(window_seconds, stride_seconds)
        with _reader(video) as reader:
            start, end = _interval(video)
            plan = windows.plan(reader, self.model.preprocessing.num_frames, start=start, end=end)
            count = len(plan.indices)
            scores = np.empty((count, self.model.config.num_classes), dtype=np.float32)
            windows_scores = self._window_scores(reader, plan.indices, shared)
            found = track(windows_scores, "windows", total=count, progress=progress)
            for number, window_scores in enumerate(found):
                scores[number] = window_scores.cpu()
            if reader.damage:
                warnings.warn(f"{_title(video)}: damaged video ({reader.damage})", VideoWarning, stacklevel=2)
        return Timeline(_title(video), class_names(self.model), plan.start, plan.end, scores)

    def _window_scores(self, reader: VideoReader, windows: np.ndarray, shared: SharedFrames) -> Iterator[Tensor]:
        """Probabilities (classes) of each window."""
        former: list[int] = []
        reading = window_frames(reader, windows, self.model.preprocessing)
        for indices, frames in zip(map(np.ndarray.tolist, windows), reading, strict=True):
            if indices != former:  # in a gap, windows are alike
                shared.drop_before(indices[0])
                shared.add({index: frame.to(self.device) for index, frame in frames.items()})
                scores = shared.scores(indices)
            former = indices
            yield scores

    def clips(self, video: Video) -> Tensor:
        """The clips of a video that `predict` classifies.

        Returns:
            float32 (clips x crops, 3, frames, height, width), normalised, in the order of `evaluation_views`.

        Raises:
            VideoError: the video cannot be read.
        """
        return self._read(video).whole()

    def _read(self, video: Video) -> SharedClips:
        return _read(self.model.preprocessing, self.views, video)


def class_names(model: UniFormerV2) -> tuple[str, ...]:
    """The labels of a model's classes, or their numbers."""
    return model.labels or tuple(f"class {number}" for number in range(model.config.num_classes))


def ranked(model: UniFormerV2, scores: Tensor, top_k: int | None) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Labels and scores of the `top_k` most likely classes (None: all), out of the scores (classes) of all."""
    best, classes = scores.topk(len(scores) if top_k is None else min(top_k, len(scores)))
    names = class_names(model)
    return tuple(names[number] for number in classes.tolist()), tuple(best.tolist())


def _read(preprocessing: Preprocessing, views: Views, video: Video, *, threads: int = 0) -> SharedClips:
    with _reader(video, threads=threads) as reader:
        first, count = interval_frames(reader, *_interval(video))
        return distinct_views(reader, preprocessing, views, first=first, count=count)


def _read_apart(
    preprocessing: Preprocessing, views: Views, threads: int, video: Video
) -> tuple[np.ndarray, np.ndarray, list[str]] | VideoError:
    """What `_read` gives as arrays, which another process can send, and what is damaged; or why there is nothing."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VideoWarning)
        try:
            read = _read(preprocessing, views, video, threads=threads)
        except VideoError as error:
            return error
    damage = [str(warning.message) for warning in caught if issubclass(warning.category, VideoWarning)]
    return read.frames.numpy(), read.clips.numpy(), damage


def _reader(video: Video, *, threads: int = 0) -> VideoReader:
    if not isinstance(video, Annotation):
        return VideoReader(video, threads=threads)
    try:
        return VideoReader(video_source(video.path), threads=threads, name=str(video.path))
    except (AnnotationError, FileNotFoundError) as error:  # a shard that has changed
        raise VideoError(f"{video.path}: {error}") from error


def _interval(video: Video) -> Interval:
    return video.interval if isinstance(video, Annotation) else (None, None)


def _title(video: Video) -> str:
    if isinstance(video, Annotation):
        return str(video.path)
    return f"{len(video)} bytes" if isinstance(video, bytes) else str(video)
