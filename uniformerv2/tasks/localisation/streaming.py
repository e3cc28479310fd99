"""Spans of a sequence of embeddings that does not end: begun ones are told, and those that are over."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from uniformerv2.device import model_device
from uniformerv2.spans.span import Span
from uniformerv2.tasks.localisation.decoding import MOST_CANDIDATES, Candidates, FilmTimes, candidates, suppressed
from uniformerv2.tasks.localisation.pyramid import SpanHead, places, receptive_field

MOST_AT_ONCE = 8  # windows between two looks of the head
SAME = 0.5  # tIoU from which on a span is the same as one that was told before


class Told(NamedTuple):
    """News of a span."""

    kind: Literal["started", "ended", "withdrawn"]
    number: int  # of the span, from 0
    span: Span  # as far as it is known; the end of one that has started is a guess


@dataclass
class _Open:
    """A span that has started."""

    number: int
    span: Span


class SpanStream:
    """Finds spans while embeddings come.

    Every few windows the head looks at the last ones. What it says of a place counts once `lookahead` windows behind it
    are known, and is brought up to date as long as the windows around it are held. A span is over once its end lies
    as far back. Where lookahead and context reach as far as the head sees (`receptive_field`), what counts is what the
    head says of the whole film.

    Args:
        head: in eval mode.
        labels: of its classes.
        times: of the windows, the duration unknown.
        delay_windows: from the end of a span to its news, at most; more only where later windows move back the end of
            a span that has started.
        context_windows: before a place that the head sees; more than it can see is not held.
        threshold: score that a span needs.
    """

    def __init__(
        self,
        head: SpanHead,
        labels: Sequence[str],
        times: FilmTimes,
        *,
        delay_windows: int,
        context_windows: int,
        threshold: float,
    ) -> None:
        self._head, self._labels, self._times, self._threshold = head, labels, times, threshold
        self.every, self.lookahead = divided_delay(delay_windows)
        self._context = min(max(context_windows, self.lookahead), receptive_field(head.config))
        self._first = 0  # window that is the oldest held: a place of every level
        self._embeddings: list[Tensor] = []
        none = np.empty(0)
        self._candidates = Candidates(none, none.astype(np.int64), np.empty((0, 2)), none)
        self._open: list[_Open] = []
        self._ended: list[Span] = []  # those that spans to come may overlap
        self._line = -math.inf  # seconds: what ends before is over
        self._count = 0  # spans so far

    def add(self, embedding: Tensor) -> list[Told]:
        """The next window, (width); returns what is new."""
        self._embeddings.append(embedding)
        windows = self._first + len(self._embeddings)
        line = windows - 1 - self.lookahead
        return self._look(line) if windows % self.every == 0 and line >= 0 else []

    def end(self, duration: float) -> list[Told]:
        """No more windows come; the stream lasted so many seconds."""
        self._times = replace(self._times, duration=duration)
        return self._look(math.inf) if self._embeddings else []

    @torch.inference_mode()
    def _look(self, line: float) -> list[Told]:
        """Look at places up to a window."""
        embeddings = torch.stack(self._embeddings)[None].to(model_device(self._head))
        found = self._head(embeddings, torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device))
        where = places(embeddings.shape[1], self._head.config, embeddings.device)
        where = where._replace(position=where.position + self._first)
        share = self._head.config.classifier_share
        new = candidates(found, where, self._times, classifier_share=share, min_score=self._threshold)
        known_from = self._first + self._context if self._first else 0  # places before have lost windows that they saw
        old = self._candidates
        kept = (old.position < known_from) & (old.ends[:, 1] >= self._times.seconds(np.array(self._first)))
        fresh = (new.position >= known_from) & (new.position <= line)
        both = old.where(kept).and_others(new.where(fresh))
        self._candidates = both.where(np.argsort(-both.score, kind="stable")[:MOST_CANDIDATES])
        news = list(self._news(suppressed(self._candidates, self._labels, min_score=self._threshold), line))
        self._forget()
        return news

    def _news(self, spans: Sequence[Span], line: float) -> Iterator[Told]:
        over = min(float(self._times.seconds(np.array(line))), self._times.duration)
        waiting, self._open = self._open, []
        for span in spans:
            # so far as it is over: an end that was a guess does not make it another
            alike = [(_overlap(one.span, span, until=over), _overlap(one.span, span), one) for one in waiting]
            share, _, same = max(alike, key=itemgetter(0, 1), default=(0.0, 0.0, None))
            if same is not None and share >= SAME:
                waiting.remove(same)
            elif span.end <= self._line or any(_overlap(told, span) >= SAME for told in self._ended):
                continue  # was told, or would be told too late
            else:
                same = _Open(self._count, span)
                self._count += 1
                yield Told("started", same.number, span)
            same.span = span
            if span.end <= over:
                self._ended.append(span)
                yield Told("ended", same.number, span)
            else:
                self._open.append(same)
        for one in waiting:
            yield Told("withdrawn", one.number, one.span)
        self._line = over

    def _forget(self) -> None:
        """Hold no more windows than places that may still change see, from a place of every level on."""
        most = 2 * self._context + self.lookahead + self.every
        alignment = 2 ** (self._head.config.levels - 1)
        spare = max(0, len(self._embeddings) - most) // alignment * alignment
        del self._embeddings[:spare]
        self._first += spare
        oldest = float(self._times.seconds(np.array(self._first)))
        self._ended = [span for span in self._ended if span.end >= oldest]


def divided_delay(windows: int) -> tuple[int, int]:
    """Windows from one look to the next, and windows behind a place that are waited for: together the delay."""
    every = max(1, min(MOST_AT_ONCE, windows // 4))
    return every, windows - every


def _overlap(one: Span, other: Span, *, until: float = math.inf) -> float:
    """tIoU of spans of one label as far as a moment, 0 for others."""
    common = min(one.end, other.end, until) - max(one.start, other.start)
    if one.label != other.label or common <= 0:
        return 0.0
    return common / (min(max(one.end, other.end), until) - min(one.start, other.start))
