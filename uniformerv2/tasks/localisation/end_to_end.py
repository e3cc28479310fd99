"""The video model trained with the head: windows of films as frames, embedded with gradients some at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from uniformerv2.ahead import ahead
from uniformerv2.data.annotations import Annotation, Unreadable
from uniformerv2.device import model_device
from uniformerv2.errors import VideoError
from uniformerv2.measuring.features import extract_features
from uniformerv2.measuring.window_reading import read_windows
from uniformerv2.model.config import Preprocessing
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.progress import say
from uniformerv2.spans.span import Spans
from uniformerv2.tasks.localisation.batches import FilmBatch, FilmLoader, span_targets
from uniformerv2.tasks.localisation.decoding import FilmTimes
from uniformerv2.tasks.localisation.films import EmbeddedFilm, Film, inside
from uniformerv2.tasks.localisation.finding import find_spans
from uniformerv2.tasks.localisation.pyramid import Found, SpanHead
from uniformerv2.tasks.localisation.recipe import LocaliserRecipe
from uniformerv2.tasks.localisation.task import LocalisationResult, LocalisationTask, score_films
from uniformerv2.train.optim import freeze_unused
from uniformerv2.video.clips import SharedClips, Windows
from uniformerv2.video.reader import VideoReader

TOGETHER = 8  # windows whose activations are held


class EndToEnd(nn.Module):
    """A video model and a head that are trained as one.

    The video model stays in eval mode. So its BatchNorms keep the statistics of many videos, and activations that are
    computed again in the backward pass are what they were.

    Args:
        video, head: whose parameters these are.
        lr_scale: learning rate of the video model relative to that of the head.
    """

    def __init__(self, video: UniFormerV2, head: SpanHead, *, lr_scale: float) -> None:
        super().__init__()
        self.video, self.head = video, head
        video.requires_grad_(True)
        freeze_unused(video)
        video.head.requires_grad_(False)  # of its own classes
        for parameter in video.parameters():
            parameter.lr_scale = lr_scale  # type: ignore[attr-defined]  # see `train.optim`

    def train(self, mode: bool = True) -> EndToEnd:
        super().train(mode)
        self.video.eval()
        return self

    def forward(self, films: Sequence[SharedClips], valid: Tensor) -> Found:
        """See `SpanHead`; of each film the clips of its windows."""
        return self.head(pad_sequence([self._embed(film) for film in films], batch_first=True), valid)

    def _embed(self, film: SharedClips) -> Tensor:
        """float32 (windows, width)."""
        device = model_device(self.video)

        def pooled(clips: Tensor) -> Tensor:
            # (3, clips, frames of a clip, height, width) -> (clips, 3, frames of a clip, height, width)
            return self.video.forward_features(film.frames[:, clips].transpose(0, 1).to(device)).pooled

        return torch.cat([checkpoint(pooled, clips, use_reentrant=False) for clips in film.clips.split(TOGETHER)])


def opened(film: Film, recipe: LocaliserRecipe) -> EmbeddedFilm:
    """A film with the windows that it has, none of which is embedded. Raises VideoError."""
    with VideoReader(film.path) as reader:
        duration, rate = reader.duration, reader.rate
    windows = Windows(recipe.window_seconds, recipe.stride_seconds)
    starts, ends = windows.times(0.0, duration, tolerance=min(0.5 / rate, 0.5 * recipe.window_seconds))
    times = FilmTimes(float(starts[0] + ends[0]) / 2, recipe.stride_seconds, duration)
    return EmbeddedFilm(str(film.path), tuple(inside(film.spans, duration)), film.path, len(starts), times)


class OpenedFilms:
    """In the place of an `EmbeddingCache` where the video model is trained: films are opened, and nothing is kept."""

    def __init__(self, model: UniFormerV2, recipe: LocaliserRecipe) -> None:
        self.model, self.recipe = model, recipe
        self.skipped: dict[str, Unreadable] = {}

    def fill(self, films: Sequence[Film], *, workers: int, progress: bool) -> list[EmbeddedFilm]:
        """See `EmbeddingCache`."""
        found = []
        for film in films:
            try:
                found.append(opened(film, self.recipe))
            except VideoError as error:
                skip(self.skipped, str(film.path), error, progress=progress)
        if films and not found:
            reason = next(iter(self.skipped.values())).reason
            raise VideoError(f"not one of {len(films)} films could be read; the first: {reason}")
        return found


def skip(skipped: dict[str, Unreadable], path: str, error: VideoError, *, progress: bool) -> None:
    """Remember a film that cannot be read, and name it once."""
    say(f"skipped: {error}", progress=progress and path not in skipped, style="yellow")
    skipped[path] = Unreadable(path, str(error))


@dataclass
class ClipLoader(FilmLoader):
    """As `FilmLoader`, with the frames of the windows, read a batch ahead; films that cannot be read are left out."""

    recipe: LocaliserRecipe = field(kw_only=True)
    preprocessing: Preprocessing = field(kw_only=True)
    skipped: dict[str, Unreadable] = field(kw_only=True)
    progress: bool = field(kw_only=True)

    def __iter__(self) -> Iterator[FilmBatch]:
        with closing(ahead(self.batch, self.stretches(), count=1)) as batches:
            for _, batch in batches:
                yield batch.result()

    def batch(self, stretches: Sequence[tuple[EmbeddedFilm, int]]) -> FilmBatch:
        """See `FilmLoader`."""
        read: list[tuple[EmbeddedFilm, int, SharedClips]] = []
        for film, first in stretches:
            try:
                read.append((film, first, self._clips(film, first)))
            except VideoError as error:
                skip(self.skipped, film.path, error, progress=self.progress)
        return FilmBatch(
            tuple(film.path for film, _, _ in read),
            tuple(clips for _, _, clips in read),
            tuple(len(clips.clips) for _, _, clips in read),
            tuple(span_targets(film, self.classes, first=first) for film, first, _ in read),
        )

    def _clips(self, film: EmbeddedFilm, first: int) -> SharedClips:
        """Of the windows of a stretch; a frame that several have is held once."""
        length, stride = self.recipe.window_seconds, self.recipe.stride_seconds
        last = first + min(film.windows - first, self.crop_windows) - 1
        end = None if last + 1 == film.windows else last * stride + length
        row = Annotation(Path(film.path), "", first * stride, end)
        frames: dict[int, Tensor] = {}
        clips: list[tuple[int, ...]] = []
        for window in read_windows(row, Windows(length, stride), self.preprocessing, []):
            for place, number in enumerate(window.frames):
                if number not in frames:
                    frames[number] = window.clip[:, place].clone()  # without the rest of the clip
            clips.append(window.frames)
        places = {number: place for place, number in enumerate(frames)}
        shared = torch.tensor([[places[number] for number in clip] for clip in clips])
        return SharedClips(torch.stack([*frames.values()], dim=1), shared)


class EndToEndTask(LocalisationTask):
    """As `LocalisationTask`, of an `EndToEnd`: held-out films are embedded anew at each evaluation.

    Args:
        recipe: of the localiser.
        labels, training, held_out: as there.
        skipped: receives films that cannot be read.
        workers: processes that read held-out films.
        progress: whether to name those that cannot be read.
    """

    def __init__(
        self,
        recipe: LocaliserRecipe,
        labels: Sequence[str],
        training: Sequence[EmbeddedFilm],
        held_out: Sequence[EmbeddedFilm] = (),
        *,
        skipped: dict[str, Unreadable],
        workers: int = 0,
        progress: bool = False,
    ) -> None:
        super().__init__(recipe.head, labels, training, held_out)
        self.recipe, self.skipped, self.workers, self.progress = recipe, skipped, workers, progress

    def measure(self, model: nn.Module) -> LocalisationResult | None:
        """See `LocalisationTask`."""
        assert isinstance(model, EndToEnd)
        found: Spans = {}
        for film in self.held_out:
            try:
                embeddings = self._embed(model.video, film)
            except VideoError as error:
                skip(self.skipped, film.path, error, progress=self.progress)
            else:
                found[film.path] = find_spans(model.head, embeddings, film.times, self.labels)
        return score_films(found, self.held_out)

    def _embed(self, video: UniFormerV2, film: EmbeddedFilm) -> Tensor:
        found = extract_features(
            video,
            [Annotation(Path(film.path), "")],
            window_seconds=self.recipe.window_seconds,
            stride_seconds=self.recipe.stride_seconds,
            workers=min(self.workers, 1),
        )
        return torch.from_numpy(found.embeddings)
