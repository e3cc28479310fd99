"""Films with their labelled spans, and the embeddings of their windows: computed once, and kept on disk."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from uniformerv2.atomic import whole_file
from uniformerv2.data.annotations import Annotation, Unreadable
from uniformerv2.data.split import split_annotations
from uniformerv2.data.tables import csv_writer, relative_to
from uniformerv2.errors import AnnotationError, CheckpointError, VideoError
from uniformerv2.measuring.digests import videos_digest, weights_digest
from uniformerv2.measuring.features import VideoFeatures, extract_features
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.progress import say
from uniformerv2.spans.span import Span
from uniformerv2.tasks.localisation.decoding import FilmTimes
from uniformerv2.tasks.localisation.recipe import LocaliserRecipe
from uniformerv2.text import short_digest
from uniformerv2.train.run_folder import locked

TOGETHER = 16  # films that are embedded by one call: what a kill loses is a batch, and what is held is their embeddings


@dataclass(frozen=True)
class Film:
    """A file and the rows that name it; one without a label says that there is nothing more to see."""

    path: Path
    rows: tuple[Annotation, ...]

    @property
    def spans(self) -> tuple[Span, ...]:
        """Each once. A row without an end is a span until the end of the film."""
        found = [
            Span(row.start or 0.0, np.inf if row.end is None else row.end, label)
            for row in self.rows
            for label in row.labels
        ]
        return tuple(dict.fromkeys(found))


def films_of(rows: Iterable[Annotation]) -> list[Film]:
    """The rows by file, in the order of the first of each."""
    of_path: dict[Path, list[Annotation]] = {}
    for row in rows:
        of_path.setdefault(row.path, []).append(row)
    return [Film(path, tuple(found)) for path, found in of_path.items()]


def manifest_text(films: Iterable[Film], root: Path) -> str:
    """The rows of the films as a manifest, with paths from the root."""
    shorten, text = relative_to(root), io.StringIO()
    write = csv_writer(text)
    write(("path", "label", "start", "end"))
    for row in (row for film in films for row in film.rows):
        for label in row.labels or ("",):
            write((shorten(str(row.path)), label, row.start, row.end))
    return text.getvalue()


def split_films(
    films: Sequence[Film], *, holdout: float | None, holdout_list: Path | None, seed: int
) -> tuple[list[Film], list[Film]]:
    """Divide into training and held-out films; see `split_annotations`. A holdout is a share of all films.

    Raises:
        AnnotationError: as there; no span to train on, or a label that only held-out films have.
    """
    rows = [replace(row, label="film", other_labels=(), start=None, end=None) for film in films for row in film.rows]
    training, held_out = split_annotations(
        list(dict.fromkeys(rows)), holdout=holdout, holdout_list=holdout_list, seed=seed
    )
    sides = [{row.path for row in side} for side in (training, held_out)]
    trained, held = ([film for film in films if film.path in side] for side in sides)
    known = {span.label for film in trained for span in film.spans}
    if not known:
        raise AnnotationError(
            f"none of {len(trained)} training films has a labelled span; give a manifest with path,label,start,end"
        )
    for film in held:
        if unseen := sorted({span.label for span in film.spans} - known):
            raise AnnotationError(f"{film.path}: held out, and no training film shows {', '.join(map(repr, unseen))}")
    return trained, held


@dataclass(frozen=True)
class EmbeddedFilm:
    """A film whose windows are embedded."""

    path: str
    spans: tuple[Span, ...]  # inside the film
    file: Path  # of its embeddings
    windows: int
    times: FilmTimes

    def embeddings(self, first: int = 0, count: int | None = None) -> Tensor:
        """float32 (windows, width): all, or so many from the first on. Raises CheckpointError."""
        try:
            with safe_open(self.file, framework="pt") as saved:
                end = self.windows if count is None else first + count
                return saved.get_slice("embeddings")[first:end]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.file}: {error}; start the run again, which embeds the film again") from error


class EmbeddingCache:
    """The embeddings of films by a model that does not change: a file each, which appears whole or not at all.

    What decides them names the file: the weights, the film and its windows. So runs share a folder, further films cost
    their own embedding, and a run that was killed goes on in the middle of a film.

    Args:
        model: whose pooled embeddings are taken; its head is not used.
        recipe: with the windows.
        folder: of any number of runs.
    """

    def __init__(self, model: UniFormerV2, recipe: LocaliserRecipe, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.windows: dict[str, Any] = {
            "window_seconds": recipe.window_seconds,
            "stride_seconds": recipe.stride_seconds,
        }
        self._weights = weights_digest(model)
        self.skipped: dict[str, Unreadable] = {}

    def fill(self, films: Sequence[Film], *, workers: int, progress: bool) -> list[EmbeddedFilm]:
        """The films with their embeddings, those missing computed now; without those that cannot be read.

        Raises:
            VideoError: none could be read.
            RecipeError: another process fills the folder.
            CheckpointError: a file cannot be written, or the model computes NaN.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self.folder}: cannot be written to ({error.strerror})") from error
        with locked(self.folder / ".lock"):
            missing = [film for film in films if self._open(film) is None]
            counts = f"{len(films) - len(missing)} of {len(films)} films embedded already, in {self.folder}"
            say(counts, progress=progress and bool(missing))
            for first in range(0, len(missing), TOGETHER):
                self._embed(missing[first : first + TOGETHER], workers=workers, progress=progress)
        found = [embedded for film in films if (embedded := self._open(film)) is not None]
        if films and not found:
            reason = next(iter(self.skipped.values())).reason
            raise VideoError(f"not one of {len(films)} films could be read; the first: {reason}")
        return found

    def _file(self, film: Film) -> Path:
        facts = [self._weights, self.windows, videos_digest([Annotation(film.path, "")])]
        return self.folder / f"{short_digest(facts)}.safetensors"

    def _open(self, film: Film) -> EmbeddedFilm | None:
        """None where it is not embedded, or not whole after a loss of power."""
        file = self._file(film)
        with suppress(OSError, SafetensorError, KeyError), safe_open(file, framework="pt") as saved:
            windows = saved.get_slice("embeddings").get_shape()[0]
            start, end = saved.get_tensor("first").tolist()
            duration = saved.get_tensor("duration").item()
            times = FilmTimes((start + end) / 2, self.windows["stride_seconds"], duration)
            return EmbeddedFilm(str(film.path), tuple(inside(film.spans, duration)), file, windows, times)
        return None

    def _embed(self, films: Sequence[Film], *, workers: int, progress: bool) -> None:
        journal = self.folder / f"{short_digest([self._file(film).stem for film in films])}.journal"
        rows = [Annotation(film.path, "") for film in films]
        try:
            found = extract_features(
                self.model, rows, **self.windows, workers=workers, journal=journal, resume=True, progress=progress
            )
        except VideoError as error:  # none of them
            self.skipped |= {str(film.path): Unreadable(str(film.path), str(error)) for film in films}
        else:
            self.skipped |= {video.path: video for video in found.skipped}
            for number, film in enumerate(films):
                if str(film.path) not in self.skipped:
                    self._write(self._file(film), found, found.video == number)
        for video in (self.skipped[path] for path in map(str, (film.path for film in films)) if path in self.skipped):
            say(f"skipped: {video.reason}", progress=progress, style="yellow")
        journal.unlink(missing_ok=True)

    def _write(self, file: Path, found: VideoFeatures, of_film: np.ndarray) -> None:
        start, end = found.start[of_film], found.end[of_film]
        tensors = {
            "embeddings": torch.from_numpy(found.embeddings[of_film]).contiguous(),
            "first": torch.tensor([start[0], end[0]], dtype=torch.float64),
            "duration": torch.tensor(end[-1], dtype=torch.float64),
        }
        try:
            with whole_file(file) as partial:
                save_file(tensors, partial)
        except (OSError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{file}: could not be written ({reason}); make room and resume the run") from error


def film_times(found: VideoFeatures, stride_seconds: float) -> FilmTimes:
    """How the windows of one film lie."""
    middle = float(found.start[0] + found.end[0]) / 2
    return FilmTimes(middle, stride_seconds, float(found.end[-1]))


def inside(spans: Iterable[Span], duration: float) -> Iterable[Span]:
    """Cut at the end of the film; without those that begin there or later."""
    return (replace(span, end=min(span.end, duration)) for span in spans if span.start < duration)


def strange_spans(films: Sequence[Film], embedded: Sequence[EmbeddedFilm]) -> list[str]:
    """Lines for people: spans that reach past the end of their film, which are cut, or begin there and are left out."""
    durations = {film.path: film.times.duration for film in embedded}
    lines = []
    for film in films:
        if (duration := durations.get(str(film.path))) is None:
            continue
        late = [span for span in film.spans if span.start >= duration]
        cut = [span for span in film.spans if span.start < duration < span.end - 0.5 and np.isfinite(span.end)]
        for what, some in (("begin after its end and are left out", late), ("reach past its end and are cut", cut)):
            if some:
                first = f"{some[0].label!r} from {some[0].start:g} s to {some[0].end:g} s"
                lines.append(f"{film.path}: lasts {duration:g} s; {len(some)} span(s) {what}, such as {first}")
    return lines
