"""The spans of one film out of the embeddings of its windows, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from uniformerv2.device import model_device
from uniformerv2.spans.span import Span
from uniformerv2.tasks.localisation.decoding import FilmTimes, decode
from uniformerv2.tasks.localisation.pyramid import SpanHead, places


@torch.inference_mode()
def find_spans(head: SpanHead, embeddings: Tensor, times: FilmTimes, labels: Sequence[str]) -> list[Span]:
    """The spans of a film, the surest first.

    Args:
        head: its mode is changed for the while.
        embeddings: float32 (windows, width).
        times: of the windows.
        labels: of the classes.
    """
    device, training = model_device(head), head.training
    head.eval()
    try:
        valid = torch.ones(1, len(embeddings), dtype=torch.bool, device=device)
        found = head(embeddings[None].to(device), valid)
    finally:
        head.train(training)
    where = places(len(embeddings), head.config, device)
    return decode(found, where, times, labels, classifier_share=head.config.classifier_share)
