"""Localiser: films in, spans in seconds out."""

from __future__ import annotations

from pathlib import Path

import torch

from uniformerv2.data.annotations import Annotation
from uniformerv2.device import pick_device
from uniformerv2.machine import WORKERS
from uniformerv2.measuring.features import extract_features
from uniformerv2.spans.span import Span
from uniformerv2.tasks.localisation.checkpoint import load_localiser
from uniformerv2.tasks.localisation.films import film_times
from uniformerv2.tasks.localisation.finding import find_spans


class Localiser:
    """Finds labelled spans in films of any length.

    Args:
        model: a file that `train_localiser` wrote, or the folder of its run.
        batch_size: windows that the video model computes at once.
        device: a name that torch knows; "auto": a GPU where there is one.

    Attributes:
        labels: of the spans that it finds.

    Raises:
        CheckpointError: not to be read, or no localiser.
        RecipeError: a device that is not here.
    """

    def __init__(self, model: str | Path, *, batch_size: int = 8, device: str = "auto") -> None:
        target = pick_device(device)
        found = load_localiser(model)
        self.model, self.head = found.video.to(target), found.head.to(target)
        self.labels, self.recipe, self.batch_size = found.labels, found.recipe, batch_size

    def localise(
        self, video: str | Path, *, threshold: float = 0.0, workers: int = WORKERS, progress: bool = False
    ) -> list[Span]:
        """The spans of a film, the surest first: start, end, label and score, times in seconds.

        The film is decoded once. Held are the frames of the windows that are open at a time, and the embedding of each.

        Args:
            video: a file, or a folder of frame images.
            threshold: score that a span needs.
            workers: processes that read it; 0: this one.
            progress: whether to show a bar.

        Raises:
            VideoError: the film cannot be read.
        """
        found = extract_features(
            self.model,
            [Annotation(Path(video), "")],
            batch_size=self.batch_size,
            window_seconds=self.recipe.window_seconds,
            stride_seconds=self.recipe.stride_seconds,
            workers=min(workers, 1),
            progress=progress,
        )
        times = film_times(found, self.recipe.stride_seconds)
        spans = find_spans(self.head, torch.from_numpy(found.embeddings), times, self.labels)
        return [span for span in spans if span.score >= threshold]
