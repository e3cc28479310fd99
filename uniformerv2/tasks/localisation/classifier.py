"""What the video model itself says of windows, where it was trained on clips of the actions that are to be found."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

from torch import Tensor, nn

from uniformerv2.model.uniformerv2 import UniFormerV2, class_probabilities


class WindowClassifier(nn.Module):
    """The classifier of a video model as it is now, which no training changes.

    Args:
        video: the model, with labels.
        labels: of the probabilities; the model has all of them.
    """

    def __init__(self, video: UniFormerV2, labels: Sequence[str]) -> None:
        super().__init__()
        self.head = deepcopy(video.head).requires_grad_(False)
        self.several_labels = bool(video.thresholds)
        self.columns = [video.labels.index(label) for label in labels]

    def forward(self, embeddings: Tensor) -> Tensor:
        """(..., width) -> (..., labels)."""
        return class_probabilities(self.head(embeddings), several_labels=self.several_labels)[..., self.columns]
