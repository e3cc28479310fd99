"""Videos as batches of clips: one dataset and one loader for training and evaluation."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from uniformerv2.data.annotations import Annotation
from uniformerv2.errors import AnnotationError, VideoError
from uniformerv2.model.config import Preprocessing
from uniformerv2.video.augment import Augmentation, augment
from uniformerv2.video.reader import VideoReader, VideoWarning
from uniformerv2.video.sampling import random_segment_indices
from uniformerv2.video.views import evaluation_views


@dataclass
class Sample:
    """What became of one video. Exactly one of `clips` and `error` is None."""

    index: int  # row of the dataset
    path: str
    label: int
    clips: Tensor | None = None  # float32 (views, 3, frames, height, width), normalised
    error: str | None = None  # why there are no clips
    warnings: list[str] = field(default_factory=list)  # what is damaged in a video that was read all the same


@dataclass
class Batch:
    """The readable videos of a batch. The others are left out and named."""

    clips: Tensor  # float32 (n, views, 3, frames, height, width), normalised; (0,) if nothing could be read
    labels: Tensor  # int64 (n)
    indices: list[int]  # rows of the dataset, n of them
    paths: list[str]  # n of them
    errors: list[tuple[str, str]]  # (path, reason) of every video that could not be read
    warnings: list[tuple[str, str]]  # (path, what is damaged) of videos that were read all the same

    def __len__(self) -> int:
        return len(self.paths)

    def pin_memory(self) -> Batch:
        """Called by the loader where there is a GPU, so that copying overlaps with computing."""
        self.clips, self.labels = self.clips.pin_memory(), self.labels.pin_memory()
        return self


class VideoDataset(Dataset[Sample]):
    """Annotated videos as clips: a random view each in training, fixed views in evaluation.

    An unreadable video gives a sample with its error, never another video.

    Args:
        annotations: the rows; their labels must be among `classes`.
        classes: label names; the position is the class number.
        preprocessing: frames, size and normalisation of the model.
        augmentation: given for training, None for evaluation.
        num_clips: evaluation only: clips spread over the video.
        num_crops: evaluation only: 1 (centre) or 3 crops of each clip; `evaluation_views` gives their order.
        threads: decoder threads per video; 1 inside loader workers, 0 lets the decoder choose.

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
        num_clips: int = 1,
        num_crops: int = 1,
        threads: int = 1,
    ) -> None:
        if num_clips < 1 or num_crops not in (1, 3):
            raise ValueError(f"need num_clips >= 1 and num_crops 1 or 3, got {num_clips} and {num_crops}")
        if augmentation is not None and num_clips * num_crops != 1:
            raise ValueError(f"training takes one view per video, got {num_clips} clips and {num_crops} crops")
        if not annotations:
            raise AnnotationError("no videos given")
        numbers = {name: number for number, name in enumerate(classes)}
        unknown = sorted({row.label for row in annotations} - set(numbers))
        if unknown:
            row = next(row for row in annotations if row.label == unknown[0])
            raise AnnotationError(
                f"{row.path}: label {row.label!r} is not among the {len(numbers)} classes of the model "
                f"({', '.join(classes[:3])}, ...); {len(unknown)} label(s) are unknown to it"
            )
        self.annotations = list(annotations)
        self.labels = [numbers[row.label] for row in annotations]
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.num_clips = num_clips
        self.num_crops = num_crops
        self.threads = threads

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """The clips of one video.

        Args:
            key: the row or, in training, (row, draw). `draw` seeds all randomness of the view, so an equal
                key gives an equal clip in any worker and in any process.
        """
        index, draw = key if isinstance(key, tuple) else (key, 0)
        row = self.annotations[index]
        sample = Sample(index=index, path=str(row.path), label=self.labels[index])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", VideoWarning)
            try:
                sample.clips = self._read(row, random.Random(f"{index} {draw}"))
            except VideoError as error:
                sample.error = str(error)
        for warning in caught:
            if issubclass(warning.category, VideoWarning):
                sample.warnings.append(str(warning.message))
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return sample

    def _read(self, row: Annotation, rng: random.Random) -> Tensor:
        with VideoReader(row.path, threads=self.threads) as reader:
            first, count = _annotated_frames(reader, row)
            if self.augmentation is not None:
                indices = [first + index for index in random_segment_indices(count, self.preprocessing.num_frames, rng)]
                return augment(reader.frames_at(indices), self.preprocessing, self.augmentation, rng)[None]
            return evaluation_views(
                reader,
                self.preprocessing,
                num_clips=self.num_clips,
                num_crops=self.num_crops,
                first=first,
                count=count,
            )


def _annotated_frames(reader: VideoReader, row: Annotation) -> tuple[int, int]:
    """(first frame, number of frames) of the annotated interval; the frames shown at its two ends belong to it."""
    if row.start is not None and row.start >= reader.duration:
        raise VideoError(
            f"{row.path}: the annotation starts at {row.start:g} s, but the video lasts {reader.duration:g} s"
        )
    first = 0 if row.start is None else reader.index_at(row.start)
    last = len(reader) - 1 if row.end is None else reader.index_at(row.end)
    return first, last - first + 1


class EpochSampler(Sampler[tuple[int, int]]):
    """Keys (index, draw) of a training epoch: every video once, in an order and with draws that (seed, epoch) decide.

    Call `set_epoch` before each epoch, on the sampler itself or as `loader.sampler.set_epoch(epoch)`.
    """

    def __init__(self, length: int, *, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = random.Random(f"{self.seed} {self.epoch}")
        for index in rng.sample(range(self.length), self.length):
            yield index, rng.getrandbits(32)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples as one batch; those without clips are left out and named in `errors`."""
    clips = [sample.clips for sample in samples if sample.clips is not None]
    read = [sample for sample in samples if sample.clips is not None]
    return Batch(
        clips=torch.stack(clips) if clips else torch.empty(0),
        labels=torch.tensor([sample.label for sample in read], dtype=torch.int64),
        indices=[sample.index for sample in read],
        paths=[sample.path for sample in read],
        errors=[(sample.path, sample.error) for sample in samples if sample.error is not None],
        warnings=[(sample.path, text) for sample in samples for text in sample.warnings],
    )


def make_loader(
    dataset: VideoDataset, *, batch_size: int, workers: int, seed: int, training: bool
) -> DataLoader[Sample]:
    """A loader of `Batch`es.

    In training every epoch is shuffled by (seed, epoch), see `EpochSampler`, and an incomplete last batch is
    dropped, unless it is the only one: a single clip would spoil the statistics of BatchNorm. In evaluation every
    video comes once, in order.

    Args:
        dataset: what to load.
        batch_size: videos per batch, at least 1.
        workers: processes that read ahead, each on one thread; 0 reads in this process. The batches are the same.
        seed: of the order and of the random views.
        training: see above.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(len(dataset), seed=seed) if training else None,
        drop_last=training and len(dataset) >= batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),  # or the loader would draw from the one of the dropouts
    )
