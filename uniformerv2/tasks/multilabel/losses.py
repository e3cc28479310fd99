"""Losses of classes that are there or not, each by itself.

All are sums over the classes, so that a model of many classes has no smaller loss for it, and linear in the targets, so
that mixed clips have mixed losses.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from uniformerv2.train.choices import Loss

FOCAL_GAMMA, FOCAL_ALPHA = 2.0, 0.25
NEGATIVE_GAMMA, MARGIN = 4.0, 0.05

Parts = tuple[Tensor, Tensor]  # (clips, classes): the loss of a class if it is there, and if it is not


def cross_entropy(logits: Tensor) -> Parts:
    """Binary cross entropy: -log p and -log (1 - p)."""
    return F.softplus(-logits), F.softplus(logits)


def focal(logits: Tensor) -> Parts:
    """Focal loss (Lin et al., arXiv:1708.02002, equation 5): (1 - q)^2 times the cross entropy of the right answer.

    q is the probability of that answer. What is there weighs 1/4 and what is not 3/4, as in the paper.
    """
    there, absent = cross_entropy(logits)
    probabilities = logits.sigmoid()
    there = FOCAL_ALPHA * (1 - probabilities) ** FOCAL_GAMMA * there
    return there, (1 - FOCAL_ALPHA) * probabilities**FOCAL_GAMMA * absent


def asymmetric(logits: Tensor) -> Parts:
    """Asymmetric loss (Ridnik et al., arXiv:2009.14119, equation 7): easy absent classes count less, or not at all.

    -log p for what is there (gamma+ = 0); p_m^4 (-log (1 - p_m)) with p_m = max(p - 0.05, 0) for what is not.
    """
    there, _ = cross_entropy(logits)
    shifted = (logits.sigmoid() - MARGIN).clamp_min(0)
    return there, -(shifted**NEGATIVE_GAMMA) * (1 - shifted).log()


LOSSES: dict[Loss, Callable[[Tensor], Parts]] = {
    "cross-entropy": cross_entropy,
    "focal": focal,
    "asymmetric": asymmetric,
}
