"""Before the training of a localiser: does everything work, and what will it cost?"""

from __future__ import annotations

import copy
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
from uniformerv2.tasks.localisation.end_to_end import opened, skip
from uniformerv2.tasks.localisation.films import EmbeddedFilm, Film
from uniformerv2.tasks.localisation.recipe import LocaliserRecipe
from uniformerv2.tasks.localisation.training import LESS_MEMORY, Embedded, build_trainer, one_process, split_data
from uniformerv2.train.failures import reporting_device_failures
from uniformerv2.train.log import read_metrics
from uniformerv2.train.run_folder import RunFolder
from uniformerv2.weights.loading import resolve_model

FILMS = 8  # that are opened, on either side
EMBEDDED = 3  # of these, whose first windows are embedded
WINDOWS = 32  # of each


@dataclass(frozen=True)
class LocaliserDryRun:
    """What a whole run will take, judged by a few films, their first windows, a few steps and saving."""

    films: int  # all of them
    windows: int  # that are embedded once: of all films, if they are as long as those that were opened
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
        windows = f"about {self.windows} windows of {self.films} films, {self.window_seconds:.3g} s each"
        return [
            *(f"skipped: {video.reason}" for video in self.skipped),
            f"everything works: {windows}: {embedding} to embed them once" if self.windows else "everything works",
            f"{self.steps} steps an epoch, {self.step_seconds:.3g} s each: {training} to train with evaluations; "
            f"{self.memory_mib / 2**10:.2f} GiB of memory at most",
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
    shown, every = [*few.training, *few.held_out], len(films.training) + len(films.held_out)
    window_seconds = statistics.median(sample.seconds)
    if recipe.video_lr:  # each evaluation embeds the held-out films
        steps, _ = _try(copy.deepcopy(video), films.labels, recipe, few._replace(held_out=[]), sample.skipped)
        measuring = window_seconds * sum(film.windows for film in few.held_out)
    else:
        steps, measuring = _try(video, films.labels, recipe, few, sample.skipped)
    measuring *= len(films.held_out) / max(1, len(few.held_out))
    seconds = statistics.median(step["clips"] / step["clips_per_second"] for step in steps[1:] or steps)
    per_epoch = math.ceil(len(films.training) / recipe.batch_size)
    evaluations = math.ceil(recipe.epochs / recipe.evaluate_every) + 1
    return LocaliserDryRun(
        films=every,
        windows=0 if recipe.video_lr else round(every * statistics.fmean(film.windows for film in shown)),
        window_seconds=window_seconds,
        steps=per_epoch,
        step_seconds=seconds,
        training_seconds=recipe.epochs * per_epoch * seconds + evaluations * measuring,
        memory_mib=max(step["memory_mib"] for step in steps),
        skipped=tuple(sample.skipped.values()),
    )


def _try(
    video: UniFormerV2, labels: tuple[str, ...], recipe: LocaliserRecipe, few: Embedded, skipped: dict[str, Unreadable]
) -> tuple[list[dict[str, Any]], float]:
    """Train for an epoch on a few films, evaluate and save; the records of the steps, and seconds of an evaluation."""
    short = recipe.vary(epochs=1, warmup_epochs=0.0)
    with tempfile.TemporaryDirectory() as folder, reporting_device_failures("dry run", LESS_MEMORY):
        run = RunFolder(folder)
        trainer, task = build_trainer(run, video, labels, short, few, skipped=skipped, workers=0)
        trainer.fit()
        with trainer.step.evaluated() as trained:
            begun = time.perf_counter()
            task.measure(trained)
            measuring = time.perf_counter() - begun
        return [record for record in read_metrics(run.metrics) if record["kind"] == "step"], measuring


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
        skipped: by path, the films that could not be read.
    """

    def __init__(self, video: UniFormerV2, recipe: LocaliserRecipe, *, workers: int, progress: bool) -> None:
        self.video, self.recipe = video, recipe
        self.options: Any = {"workers": min(workers, 1), "progress": progress}
        self.seconds: list[float] = []
        self.skipped: dict[str, Unreadable] = {}
        self._known = torch.empty(0)  # embeddings of the film that was embedded last

    def films(self, films: Sequence[Film]) -> list[EmbeddedFilm]:
        """Those that can be read. Raises VideoError if there are none of several."""
        found: list[EmbeddedFilm] = []
        for film in films:
            one = self._film(film, embedded=len(found) < EMBEDDED)
            found += [] if one is None else [one]
        if films and not found:
            reason = next(iter(self.skipped.values())).reason
            raise VideoError(f"not one of {len(films)} films could be read; the first: {reason}")
        return found

    def _film(self, film: Film, *, embedded: bool) -> EmbeddedFilm | None:
        try:
            found = opened(film, self.recipe)
            if embedded:
                self._embed(film, found.times.duration)
        except VideoError as error:
            skip(self.skipped, str(film.path), error, progress=self.options["progress"])
            return None
        return _RepeatedFilm(**vars(found), known=self._known)

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
