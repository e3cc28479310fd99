"""Before the training of a localiser: does everything work, and what will it cost?"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uniformerv2.data.annotations import Annotation, Unreadable
from uniformerv2.data.sources import Classes
from uniformerv2.errors import VideoError
from uniformerv2.machine import WORKERS
from uniformerv2.measuring.features import extract_features
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.progress import say
from uniformerv2.tasks.localisation.decoding import FilmTimes
from uniformerv2.tasks.localisation.films import EmbeddedFilm, Film
from uniformerv2.tasks.localisation.recipe import LocaliserRecipe
from uniformerv2.tasks.localisation.training import LESS_MEMORY, Embedded, build_trainer, one_process, split_data
from uniformerv2.train.failures import reporting_device_failures
from uniformerv2.train.log import read_metrics
from uniformerv2.train.run_folder import RunFolder
from uniformerv2.video.clips import Windows
from uniformerv2.video.reader import VideoReader
from uniformerv2.weights.loading import resolve_model

FILMS = 8  # that are opened, on either side
EMBEDDED = 3  # of these, whose first windows are embedded
WINDOWS = 32  # of each


@dataclass(frozen=True)
class LocaliserDryRun:
    """What a whole run will take, judged by a few films, their first windows, a few steps and saving."""

    films: int  # all of them
    windows: int  # of all films, if they are as long as those that were opened
    window_seconds: float  # to embed one
    steps: int  # of an epoch
    step_seconds: float
    training_seconds: float  # of the head, evaluations included
    memory_mib: float  # at most so far: of the GPU in tensors, else of this process
    skipped: tuple[Unreadable, ...]  # films that were opened and could not be read

    def lines(self) -> list[str]:
        """The same for people."""
        embedding, training = (
            timedelta(seconds=round(seconds)) for seconds in (self.windows * self.window_seconds, self.training_seconds)
        )
        return [
            *(f"skipped: {video.reason}" for video in self.skipped),
            f"everything works: about {self.windows} windows of {self.films} films, {self.window_seconds:.3g} s each: "
            f"{embedding} to embed them once",
            f"{self.steps} steps an epoch, {self.step_seconds:.3g} s each: {training} to train the head with its "
            f"evaluations; {self.memory_mib / 2**10:.2f} GiB of memory at most",
        ]


def dry_run_localiser(
    model: str | Path | nn.Module,
    data: str | Path | Sequence[Annotation],
    recipe: LocaliserRecipe,
    *,
    root: str | Path | None = None,
    classes: Classes | None = None,
    holdout: float | None = None,
    holdout_list: str | Path | None = None,
    group: str | None = None,
    device: str = "auto",
    workers: int = WORKERS,
    progress: bool = False,
) -> LocaliserDryRun:
    """Everything that `train_localiser` does, for the first windows of a few films, in a folder that is removed.

    The arguments and the errors are those of `train_localiser`.
    """
    one_process()
    source: Any = {"root": root, "classes": classes, "holdout": holdout, "holdout_list": holdout_list}
    films = split_data(data, recipe, group=group, **source)
    video = resolve_model(model, device=device)
    sample = _Sample(video, recipe, workers=workers, progress=progress)
    few = Embedded(*(sample.films(_spread(side)) for side in (films.training, films.held_out)))
    with tempfile.TemporaryDirectory() as folder, reporting_device_failures("dry run", LESS_MEMORY):
        short = recipe.vary(epochs=1, warmup_epochs=0.0)
        run = RunFolder(folder)
        trainer, task = build_trainer(run, video, films.labels, short, few)
        trainer.fit()
        with trainer.step.evaluated() as head:
            begun = time.perf_counter()
            task.measure(head)
            measuring = (time.perf_counter() - begun) * len(films.held_out) / max(1, len(few.held_out))
        steps = [record for record in read_metrics(run.metrics) if record["kind"] == "step"]
    seconds = statistics.median(step["clips"] / step["clips_per_second"] for step in steps[1:] or steps)
    per_epoch = math.ceil(len(films.training) / recipe.batch_size)
    evaluations = math.ceil(recipe.epochs / recipe.evaluate_every) + 1
    counted, every = [*few.training, *few.held_out], len(films.training) + len(films.held_out)
    return LocaliserDryRun(
        films=every,
        windows=round(every * statistics.fmean(film.windows for film in counted)),
        window_seconds=statistics.median(sample.seconds),
        steps=per_epoch,
        step_seconds=seconds,
        training_seconds=recipe.epochs * per_epoch * seconds + evaluations * measuring,
        memory_mib=max(step["memory_mib"] for step in steps),
        skipped=tuple(sample.skipped),
    )


def _spread(films: Sequence[Film]) -> list[Film]:
    """A few, from all over them."""
    return [films[number * len(films) // FILMS] for number in range(FILMS)] if len(films) > FILMS else list(films)


@dataclass(frozen=True)
class _RepeatedFilm(EmbeddedFilm):
    """A film whose first windows stand for all others."""

    known: Tensor

    def embeddings(self, first: int = 0, count: int | None = None) -> Tensor:
        """See `EmbeddedFilm`."""
        end = self.windows if count is None else first + count
        return self.known[torch.arange(first, end) % len(self.known)]


class _Sample:
    """Films that are opened, the first of them embedded from their beginning on.

    Attributes:
        seconds: that a window took, film by film.
        skipped: films that could not be read.
    """

    def __init__(self, video: UniFormerV2, recipe: LocaliserRecipe, *, workers: int, progress: bool) -> None:
        self.video, self.recipe = video, recipe
        self.options: Any = {"workers": min(workers, 1), "progress": progress}
        self.seconds: list[float] = []
        self.skipped: list[Unreadable] = []
        self._known = torch.empty(0)  # embeddings of the film that was embedded last

    def films(self, films: Sequence[Film]) -> list[EmbeddedFilm]:
        """Those that can be read. Raises VideoError if there are none of several."""
        found = [one for number, film in enumerate(films) if (one := self._film(film, number < EMBEDDED)) is not None]
        if films and not found:
            raise VideoError(f"not one of {len(films)} films could be read; the first: {self.skipped[-1].reason}")
        return found

    def _film(self, film: Film, embedded: bool) -> EmbeddedFilm | None:
        recipe = self.recipe
        try:
            with VideoReader(film.path) as reader:
                duration, tolerance = reader.duration, 0.5 / reader.rate
            if embedded:
                self._embed(film, duration)
        except VideoError as error:
            self.skipped.append(Unreadable(str(film.path), str(error)))
            say(f"skipped: {error}", progress=self.options["progress"], style="yellow")
            return None
        starts, ends = Windows(recipe.window_seconds, recipe.stride_seconds).times(0.0, duration, tolerance=tolerance)
        times = FilmTimes(float(starts[0] + ends[0]) / 2, recipe.stride_seconds, duration)
        return _RepeatedFilm(str(film.path), film.spans, film.path, len(starts), times, self._known)

    def _embed(self, film: Film, duration: float) -> None:
        end = self.recipe.window_seconds + (WINDOWS - 1) * self.recipe.stride_seconds
        row = Annotation(film.path, "", 0.0, min(end, duration))
        begun = time.perf_counter()
        found = extract_features(
            self.video,
            [row],
            window_seconds=self.recipe.window_seconds,
            stride_seconds=self.recipe.stride_seconds,
            **self.options,
        )
        self.seconds.append((time.perf_counter() - begun) / len(found.embeddings))
        self._known = torch.from_numpy(found.embeddings)
