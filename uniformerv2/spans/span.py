"""A span: something that happens in a video from one time to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Span:
    """A labelled stretch of a video. Spans of one video may overlap, also those of one label.

    What evaluators have to count as wrong can be expressed too: nothing is checked here.
    """

    start: float  # seconds from the first frame
    end: float  # seconds; as the benchmarks have it, the span's duration is end - start
    label: str
    score: float = 1.0  # of a prediction, higher is surer; 1 for what somebody labelled


Spans: TypeAlias = dict[str, Sequence[Span]]
"""The spans of each video, by the name or path of the video; a video without spans has an empty sequence."""
