"""Videos as batches of clips: one dataset and one loader for training and evaluation."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from uniformerv2.data.annotations import Annotation, unknown_labels
from uniformerv2.data.loader import Sample, SampleKey, VideoLoader
from uniformerv2.data.order import EpochSampler
from uniformerv2.data.shards import video_source
from uniformerv2.errors import AnnotationError, VideoError
from uniformerv2.model.config import Preprocessing
from uniformerv2.video.augment import augment
from uniformerv2.video.augmentation import REVERSED, Augmentation
from uniformerv2.video.clips import evaluation_views, interval_frames
from uniformerv2.video.reader import VideoReader, VideoWarning
from uniformerv2.video.views import Views, random_segment_indices

Shown = tuple[int, ...]  # numbers of classes: one, but where a video may have several labels


class VideoDataset(Dataset[Sample]):
    """Annotated videos as clips: random views in training, fixed views in evaluation.

    Whatever the number of views, a video is decoded once, with the frames of all of them. An unreadable video gives a
    sample with its error, never another video.

    Args:
        annotations: the rows; their labels must be among `classes`. A path may be a video file, a folder of frames or
            a member of a tar shard (`shards.py`).
        classes: label names; the position is the class number.
        preprocessing: frames, size and normalisation of the model.
        augmentation: given for training, None for evaluation.
        repeats: training only: views of a video in one batch (repeated augmentation), each with frames and an
            augmentation of its own; the first is the one of `repeats=1`.
        mirrored_classes: training only: by class number, the class that a clip shows when it is mirrored; None for a
            class whose clips are never mirrored. Then a sample has the label of each view. Empty: labels stay.
        reversed_classes: training only: by class number, the class that a clip shows when it is played backwards, as
            half of them then are; None for a class whose clips never are. Then, too, a sample has the label of each
            view, and one that is played backwards is mirrored as a clip of the class that it shows. Empty: none is.
        views: evaluation only; `evaluation_views` gives their order.
        several_labels: whether a video may have several labels, or none: then a sample has 1 for each class that it
            shows and 0 for the others, in place of a class number.

    Raises:
        AnnotationError: no annotations, or a label that is not among the classes.
    """

    def __init__(
        self,
        annotations: Sequence[Annotation],
        classes: Sequence[str],
        preprocessing: Preprocessing,
        *,
        augmentation: Augmentation | None = None,
        repeats: int = 1,
        mirrored_classes: Sequence[int | None] = (),
        reversed_classes: Sequence[int | None] = (),
        views: Views = Views(),
        several_labels: bool = False,
    ) -> None:
        if repeats < 1:
            raise ValueError(f"need repeats >= 1, got {repeats}")
        if augmentation is not None and len(views) != 1:
            raise ValueError(f"training takes random views (repeats), got {views}")
        if augmentation is None and repeats != 1:
            raise ValueError(f"only training repeats, and it needs an augmentation; got repeats {repeats} without")
        if not annotations:
            raise AnnotationError("no videos given")
        numbers = {name: number for number, name in enumerate(classes)}
        labels_of = [row.labels if several_labels else (row.label,) for row in annotations]
        if unknown := sorted({label for labels in labels_of for label in labels} - set(numbers)):
            raise unknown_labels(annotations, unknown, classes)
        self.annotations = list(annotations)
        self.classes_shown = [tuple(numbers[label] for label in labels) for labels in labels_of]
        self.num_classes, self.several_labels = len(classes), several_labels
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.repeats = repeats
        self.mirrored_classes = mirrored_classes
        self.reversed_classes = reversed_classes
        self.labels_each_view = bool(mirrored_classes or reversed_classes)
        self.views = views

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def labels(self) -> list[int | list[int]]:
        """Of each row, as a sample has it."""
        return [self.label_of(row) for row in range(len(self))]

    def label_of(self, row: int) -> int | list[int]:
        """What a sample of the row has as label, unless the augmentation changes it."""
        return self._label(self.classes_shown[row])

    def _label(self, shown: Shown) -> int | list[int]:
        if not self.several_labels:
            return shown[0]
        return [int(number in shown) for number in range(self.num_classes)]

    @property
    def clips_shape(self) -> tuple[int, int, int, int, int]:
        """(views, 3, frames, height, width) of a sample's clips."""
        return self.repeats * len(self.views), 3, self.preprocessing.num_frames, *self.preprocessing.size

    def __getitem__(self, key: SampleKey) -> Sample:
        return self.read(key)

    def read(self, key: SampleKey, *, out: Tensor | None = None) -> Sample:
        """The clips of one video, written to `out` (of `clips_shape`) or to new memory.

        `key` is the row or, in training, (row, draw). `draw` seeds all randomness of the views, so an equal key gives
        equal clips in any process.
        """
        index, draw = key if isinstance(key, tuple) else (key, 0)
        row = self.annotations[index]
        sample = Sample(index=index, path=str(row.path), label=self.label_of(index))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", VideoWarning)
            try:
                memory = torch.empty(self.clips_shape) if out is None else out
                of_views = self._read(row, self.classes_shown[index], f"{index} {draw}", memory)
                if self.labels_each_view:
                    sample.label = [self._label(of_view) for of_view in of_views]
                sample.clips = memory
            except VideoError as error:
                sample.error = str(error)
            except (AnnotationError, OSError) as error:  # a shard that has changed
                sample.error = f"{row.path}: {error}"
        for warning in caught:
            if issubclass(warning.category, VideoWarning):
                sample.damage.append(str(warning.message))
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return sample

    def unreadable(self, key: SampleKey, reason: str) -> Sample:
        """The sample of a video that could not be read, for a reason that the loader knows."""
        index = key[0] if isinstance(key, tuple) else key
        path = str(self.annotations[index].path)
        return Sample(index=index, path=path, label=self.label_of(index), error=f"{path}: {reason}")

    def _read(self, row: Annotation, shown: Shown, seed: str, out: Tensor) -> list[Shown]:
        """Write the clips to `out`; returns the classes that each shows, or in evaluation all."""
        with VideoReader(video_source(row.path), threads=1, name=str(row.path)) as reader:
            first, count = interval_frames(reader, row.start, row.end)
            if self.augmentation is None:
                evaluation_views(reader, self.preprocessing, self.views, first=first, count=count, out=out)
                return [shown]
            return self._random_views(reader, self.augmentation, shown, first, count, seed, out)

    def _random_views(
        self,
        reader: VideoReader,
        augmentation: Augmentation,
        shown: Shown,
        first: int,
        count: int,
        seed: str,
        out: Tensor,
    ) -> list[Shown]:
        """Written to `out`; returns the classes that each of them shows."""
        seeds = [f"{seed} {number}" if number else seed for number in range(self.repeats)]
        draws = [random.Random(own) for own in seeds]
        num_frames = self.preprocessing.num_frames
        indices = [random_segment_indices(count, num_frames, draw) for draw in draws]
        each = [shown] * self.repeats
        if self.reversed_classes and (counterparts := _counterparts(shown, self.reversed_classes)) is not None:
            for view, own in enumerate(seeds):
                if random.Random(f"{own} reversed").random() < REVERSED:  # leaves all other draws as they are
                    indices[view].reverse()
                    each[view] = counterparts
        views = reader.frames_at([first + index for clip in indices for index in clip]).split(num_frames)
        return [
            self._augmented(view, augmentation, of_view, draw, clip)
            for view, of_view, draw, clip in zip(views, each, draws, out, strict=True)
        ]

    def _augmented(
        self, view: Tensor, augmentation: Augmentation, shown: Shown, draw: random.Random, out: Tensor
    ) -> Shown:
        """Written to `out`; returns the classes that it shows, those of its mirror image if it is mirrored."""
        others = _counterparts(shown, self.mirrored_classes) if self.mirrored_classes else shown
        if others is None:
            augmentation, others = replace(augmentation, flip=0.0, flip_labels="none"), shown
        mirrored = augment(view, self.preprocessing, augmentation, draw, out=out).mirrored
        return others if mirrored else shown


def _counterparts(shown: Shown, classes: Sequence[int | None]) -> Shown | None:
    """The classes that a changed clip shows in place of these; None where one of them has no counterpart."""
    others = [other for number in shown if (other := classes[number]) is not None]
    return tuple(others) if len(others) == len(shown) else None


def make_loader(
    dataset: VideoDataset,
    *,
    batch_size: int,
    workers: int,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    fixed_views: int = 0,
    weights: Sequence[float] = (),
    max_failures: float = 0.01,
    device: torch.device | None = None,
) -> VideoLoader:
    """A loader of `Batch`es.

    With an augmentation every epoch is shuffled by (seed, epoch), divided among the processes and drops rows that fill
    no step, as `EpochSampler` says. Without, every video comes once, in order, and in this process. A batch with
    unreadable videos is smaller.

    Args:
        dataset: has an augmentation for training.
        batch_size: videos per batch, at least 1.
        workers: processes that read ahead, each on one thread; 0 reads in this process, which a video that crashes
            the decoder then ends. The batches are the same.
        seed: training only: of the order and of the random views.
        rank: training only: this process, in [0, world).
        world: training only: processes that train together.
        fixed_views: training only: random views of each video that take turns, one an epoch; 0: new ones in each.
        weights: training only: how often each row comes, see `EpochSampler`.
        max_failures: training only: share of the videos that may be unreadable; where this process finds more (and
            more than one), iterating ends with a VideoError that names the first.
        device: that computes, see `VideoLoader`; None: batches stay in the memory of the host.
    """
    sampler: EpochSampler | range = range(len(dataset))
    training = dataset.augmentation is not None
    if training:
        sampler = EpochSampler(
            len(dataset),
            seed=seed,
            batch_size=batch_size,
            rank=rank,
            world=world,
            views=fixed_views,
            weights=weights,
        )
        batch_size = sampler.batch_size
    return VideoLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        workers=workers,
        max_failures=max_failures if training else None,
        device=device,
    )
