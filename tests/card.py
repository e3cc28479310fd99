"""A GPU that is played: which stream copies, which one computes, and who waits for whom."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor


class Stream:
    """Remembers what it was told."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.waits: list[int] = []  # for how many uploads, event by event

    def record_event(self) -> int:
        assert threading.current_thread() in self.card.threads
        return len(self.card.uploaded)

    def wait_event(self, event: int) -> None:
        self.waits.append(event)


class Uploaded(Tensor):
    """A tensor that knows which stream uses it."""

    stream: Stream | None = None

    def record_stream(self, stream: Stream) -> None:  # type: ignore[override]
        self.stream = stream


class Card:
    """In the place of CUDA.

    Attributes:
        device: as a program names it.
        computing: the stream of the thread that computes.
        uploaded: all tensors in order.
        threads: that have uploaded, each on a stream that is not the one that computes.
        arrived: set at each upload.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device = torch.device("cuda")
        self.computing = Stream(self)
        self.uploaded: list[Tensor] = []
        self.threads: set[threading.Thread] = set()
        self.arrived = threading.Event()
        self._current = threading.local()
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(self))
        monkeypatch.setattr(torch.cuda, "stream", self._entered)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self._stream)

    @property
    def _stream(self) -> Stream:
        return getattr(self._current, "stream", self.computing)

    @contextmanager
    def _entered(self, stream: Stream) -> Iterator[None]:
        self._current.stream = stream
        try:
            yield
        finally:
            del self._current.stream

    def upload(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A copy, as memory that is used again may change."""
        assert device == self.device
        assert self._stream is not self.computing
        self.threads.add(threading.current_thread())
        self.uploaded.append(tensor.clone().as_subclass(Uploaded))
        self.arrived.set()
        return self.uploaded[-1]
