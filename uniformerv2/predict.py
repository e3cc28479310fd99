"""Predictor: a video in, ranked labels out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from uniformerv2.device import pick_device
from uniformerv2.errors import RecipeError
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.video.reader import VideoReader
from uniformerv2.video.views import evaluation_views
from uniformerv2.weights.checkpoint import load_model
from uniformerv2.weights.labels import map_head


@dataclass(frozen=True)
class Prediction:
    """What a model sees in a video, the most likely class first."""

    video: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]  # probabilities, averaged over the views; all classes together have 1


class Predictor:
    """Classifies videos with a model.

    Args:
        model: a checkpoint of ours, or a model.
        device: "auto" (a GPU where there is one), or a name that torch knows.
        num_clips: clips evenly spread over the video.
        num_crops: 1 (centre) or 3 (along the longer side) of each clip.
        head: "kinetics400", "kinetics600" or "kinetics700": only these classes of a Kinetics-710 head.

    Raises:
        RecipeError: a device that is not here, or impossible counts.
        CheckpointError: the checkpoint cannot be read, or has no such head.
    """

    def __init__(
        self,
        model: str | Path | UniFormerV2,
        *,
        device: str = "auto",
        num_clips: int = 1,
        num_crops: int = 1,
        head: str | None = None,
    ) -> None:
        if num_clips < 1 or num_crops not in (1, 3):
            raise RecipeError(f"need num_clips >= 1 and num_crops 1 or 3, got {num_clips} and {num_crops}")
        self.device = pick_device(device)
        model = model if isinstance(model, UniFormerV2) else load_model(model)
        self.model = (map_head(model, head) if head else model).to(self.device).eval()
        self.num_clips, self.num_crops = num_clips, num_crops

    @torch.inference_mode()
    def predict(self, video: str | Path | bytes, *, top_k: int | None = 5) -> Prediction:
        """Rank the classes for one video.

        Args:
            video: a file, the bytes of one, or a folder of frame images.
            top_k: how many classes to return, at least 1; None: all.

        Raises:
            VideoError: it cannot be read.
        """
        clips = self.views(video).to(self.device)
        scores = torch.cat([self.model(clip[None]).float().softmax(-1) for clip in clips]).mean(0)
        title = f"{len(video)} bytes" if isinstance(video, bytes) else str(video)
        return Prediction(title, *ranked(self.model, scores, top_k))

    def views(self, video: str | Path | bytes) -> Tensor:
        """The clips that `predict` looks at.

        Returns:
            float32 (clips x crops, 3, frames, height, width), normalised, in the order of `evaluation_views`.

        Raises:
            VideoError: it cannot be read.
        """
        with VideoReader(video) as reader:
            return evaluation_views(
                reader, self.model.preprocessing, num_clips=self.num_clips, num_crops=self.num_crops
            )


def class_names(model: UniFormerV2) -> tuple[str, ...]:
    """The labels of a model's classes, or their numbers."""
    return model.labels or tuple(f"class {number}" for number in range(model.config.num_classes))


def ranked(model: UniFormerV2, scores: Tensor, top_k: int | None) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Labels and scores of the `top_k` most likely classes (None: all), out of the scores (classes) of all."""
    best, classes = scores.topk(len(scores) if top_k is None else min(top_k, len(scores)))
    names = class_names(model)
    return tuple(names[number] for number in classes.tolist()), tuple(best.tolist())
