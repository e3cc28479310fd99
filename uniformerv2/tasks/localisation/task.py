"""Localisation as the trainer knows it: the loss of a batch of films, and mean average precision on held-out ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from uniformerv2.data.annotations import Unreadable
from uniformerv2.device import model_device
from uniformerv2.errors import AnnotationError
from uniformerv2.spans.scoring import ProtocolName, SpanScores, score_spans
from uniformerv2.spans.span import Spans
from uniformerv2.tasks.localisation.batches import FilmBatch, span_targets
from uniformerv2.tasks.localisation.films import EmbeddedFilm
from uniformerv2.tasks.localisation.finding import find_spans
from uniformerv2.tasks.localisation.pyramid import SpanHead, places
from uniformerv2.tasks.localisation.recipe import PyramidConfig
from uniformerv2.tasks.localisation.targets import PlaceTargets, SpanTargets, assign, span_losses
from uniformerv2.train.task import BatchLoss

TIOU = (0.3, 0.4, 0.5, 0.6, 0.7)  # whose mean decides which epoch is the best


@dataclass(frozen=True)
class LocalisationResult:
    """What a trained localiser finds in the films that could be read. Others are counted, named and left out."""

    scores: SpanScores
    predictions: Spans  # by path
    skipped: tuple[Unreadable, ...] = ()
    protocol: ProtocolName | None = None  # whose thresholds are taken

    @property
    def summary(self) -> str:
        """A line for people."""
        return f"average mAP {self.scores.average_mean_ap:.1%} on {len(self.predictions)} held-out films"

    def to_json(self) -> dict[str, Any]:
        """As evaluation.json has it."""
        return {
            "protocol": self.protocol,
            **self.scores.to_json(),
            "evaluated": len(self.predictions),
            "skipped": [asdict(video) for video in self.skipped],
            "spans": {path: [asdict(span) for span in found] for path, found in self.predictions.items()},
        }


def measure_films(
    head: SpanHead, films: Sequence[EmbeddedFilm], labels: Sequence[str], *, tiou: Sequence[float] = TIOU
) -> LocalisationResult:
    """Find the spans of films, and score them by OpenTAD's rules. Raises AnnotationError where no film has a span."""
    found: Spans = {film.path: find_spans(head, film.embeddings(), film.times, labels) for film in films}
    result = score_films(found, films, tiou=tiou)
    if result is None:
        raise AnnotationError(f"none of {len(films)} films that could be read has a span: no annotation to score by")
    return result


def score_films(
    found: Spans, films: Sequence[EmbeddedFilm], *, tiou: Sequence[float] = TIOU
) -> LocalisationResult | None:
    """Score what was found in films, and leave out those that nothing was looked for in; None without a span."""
    truth: Spans = {film.path: film.spans for film in films if film.path in found}
    if not any(truth.values()):
        return None
    return LocalisationResult(score_spans(truth, found, tiou=tiou, opentad=True), found)


class LocalisationTask:
    """Loss and metric of a `SpanHead`: a `train.task.Task`.

    The loss of a film is a sum over its places, divided by the places that answer for a span in a training film on the
    average. That number is known before the training; a running mean of it, as in the paper, would be a state.

    Args:
        config: of the head.
        labels: of the classes.
        training, held_out: the films; of the first only their spans are looked at.
    """

    scalars: tuple[str, ...] = ("class_loss", "border_loss")
    monitor = "average_map"
    lower_is_better = False

    def __init__(
        self,
        config: PyramidConfig,
        labels: Sequence[str],
        training: Sequence[EmbeddedFilm],
        held_out: Sequence[EmbeddedFilm] = (),
    ) -> None:
        self.config, self.labels, self.held_out = config, labels, held_out
        classes = {label: number for number, label in enumerate(labels)}
        counts = [self._targets(span_targets(film, classes), film.windows, film.windows) for film in training]
        answering = sum(int(targets.positive.sum()) for targets in counts)
        self.positives = max(1.0, answering / max(1, len(training)))  # of a film

    def loss(self, model: nn.Module, batch: FilmBatch) -> BatchLoss | None:
        """See `train.task.Task`."""
        if not batch.paths:
            return None
        device = model_device(model)
        given = batch.films.to(device) if isinstance(batch.films, Tensor) else batch.films
        found = model(given, batch.valid.to(device))
        length, films = max(batch.windows), len(batch.paths)
        assigned = [
            self._targets(spans, count, length) for spans, count in zip(batch.spans, batch.windows, strict=True)
        ]
        targets = PlaceTargets(*(torch.stack(parts).to(device) for parts in zip(*assigned, strict=True)))
        classes, borders = (total / (films * self.positives) for total in span_losses(found, targets))
        scalars = {"class_loss": classes.detach(), "border_loss": borders.detach()}
        return BatchLoss(classes + borders, scalars, films)

    def _targets(self, spans: SpanTargets, windows: int, length: int) -> PlaceTargets:
        """Of a film with so many windows, in a batch of this length."""
        return assign(
            spans,
            places(length, self.config),
            windows=windows,
            centre_radius=self.config.centre_radius,
            num_classes=len(self.labels),
        )

    def empty_input(self, model: nn.Module) -> Tensor:
        """See `train.task.Task`."""
        raise NotImplementedError("a localiser is trained by one process")

    def files(self, batch: FilmBatch) -> Sequence[str]:
        """See `train.task.Task`."""
        return batch.paths

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """See `train.task.Task`."""
        found = self.measure(model)
        return {} if found is None else {self.monitor: found.scores.average_mean_ap}

    def measure(self, model: nn.Module) -> LocalisationResult | None:
        """The spans of the held-out films, and how good they are; None where no film with a span is held out."""
        if not any(film.spans for film in self.held_out):
            return None
        assert isinstance(model, SpanHead)
        return measure_films(model, self.held_out, self.labels)
