"""Which places answer for which spans, and the loss of what they say."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from uniformerv2.tasks.localisation.pyramid import Found, Places

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss, as its paper has them (arXiv:1708.02002)


class SpanTargets(NamedTuple):
    """The labelled spans of a film, in windows: 0 is the middle of the first."""

    ends: Tensor  # float32 (spans, 2): start and end
    classes: Tensor  # int64 (spans)


class PlaceTargets(NamedTuple):
    """What the head should say."""

    classes: Tensor  # float32 (places, classes): 1 for the classes of the span that a place answers for
    distances: Tensor  # float32 (places, 2): in windows
    positive: Tensor  # bool (places): whether it answers for any


def assign(spans: SpanTargets, places: Places, *, windows: int, centre_radius: float, num_classes: int) -> PlaceTargets:
    """Which places answer for which spans.

    A place answers for a span that it lies in, near its middle, if the farther end is as far away as its level is for;
    of several spans for the shortest, and for the classes of all that are equally long. A span without such a place,
    shorter than the windows are apart, has the nearest one of the first level.

    Args:
        spans: perhaps none; they may reach beyond the windows, as where a stretch of a film is trained.
        places: of the film, or of a padded batch.
        windows: of the film.
        centre_radius: how near, in places of the level.
        num_classes: of the head.
    """
    position = places.position
    classes = position.new_zeros(len(position), num_classes)
    if not len(spans.ends):
        return PlaceTargets(classes, position.new_zeros(len(position), 2), position.new_zeros(len(position)).bool())
    start, end = spans.ends.unbind(1)
    # (places, spans)
    before, after = position[:, None] - start, end - position[:, None]
    farther = torch.maximum(before, after)
    middle = (start + end) / 2
    near = (position[:, None] - middle).abs() <= centre_radius * places.stride[:, None]
    answers = (torch.minimum(before, after) > 0) & near
    answers &= (farther >= places.nearest[:, None]) & (farther < places.farthest[:, None])
    answers &= (position < windows)[:, None]
    lost = ~answers.any(dim=0) & (middle >= -0.5) & (middle < windows - 0.5)
    for number in lost.nonzero().flatten().tolist():
        distance = (position - middle[number]).abs()
        answers[distance.masked_fill(places.stride > 1, torch.inf).argmin(), number] = True
    length = (end - start).expand_as(answers).masked_fill(~answers, torch.inf)
    shortest, chosen = length.min(dim=1)
    positive = shortest.isfinite()
    equal = answers & (length <= shortest[:, None] + 1e-3)
    classes = (equal.float() @ F.one_hot(spans.classes, num_classes).float()).clamp(max=1)
    distances = torch.stack([side.gather(1, chosen[:, None])[:, 0] for side in (before, after)], dim=1)
    return PlaceTargets(classes, distances.clamp(min=0) * positive[:, None], positive)


def span_losses(found: Found, targets: PlaceTargets) -> tuple[Tensor, Tensor]:
    """Sums over a batch: the focal loss of all classes at valid places, the distance-IoU loss of positive ones.

    Args:
        found: of the batch.
        targets: with an axis for the batch before all others; positive places are valid.
    """
    focal = focal_loss(found.logits, targets.classes) * found.valid[..., None]
    borders = distance_iou_loss(found.distances[targets.positive], targets.distances[targets.positive])
    return focal.sum(), borders.sum()


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each score: binary cross entropy, weighted down where it is right already."""
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    score = logits.sigmoid()
    missing = torch.where(targets > 0.5, 1 - score, score)
    return torch.where(targets > 0.5, ALPHA, 1 - ALPHA) * missing**GAMMA * entropy


def distance_iou_loss(distances: Tensor, targets: Tensor) -> Tensor:
    """1 - IoU + (distance of the middles / length of both together)² (arXiv:1911.08287, in one dimension).

    Args:
        distances, targets: (n, 2), not negative: from a common place to the start and to the end of a span.
    """
    common = torch.minimum(distances, targets).sum(1)
    hull = torch.maximum(distances, targets).sum(1).clamp(min=1e-6)
    union = (distances.sum(1) + targets.sum(1) - common).clamp(min=1e-6)
    middles = (distances - targets) @ distances.new_tensor([-0.5, 0.5])
    return 1 - common / union + (middles / hull) ** 2
