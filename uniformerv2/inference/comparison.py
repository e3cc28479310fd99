"""How far the output of a rewritten model differs from that of the plain one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from uniformerv2.inference.precision import InferencePrecision

Classifier = Callable[[Tensor], Tensor]  # clips (batch, 3, frames, height, width) -> logits (batch, classes)


@dataclass(frozen=True)
class Limits:
    """Limits on the changes by a rewrite."""

    deviation: float  # of a logit, relative to the largest logit
    flips: float  # share of the clips whose most likely class changes


LIMITS: dict[InferencePrecision, Limits] = {
    "fp32": Limits(1e-4, 0.0),  # sums in another order
    "bf16": Limits(0.02, 0.01),
    "int8": Limits(0.25, 0.02),
}
REDUCED_LIMITS = Limits(float("inf"), 0.02)  # fewer tokens change every logit
NO_LIMITS = Limits(float("inf"), 1.0)


@dataclass(frozen=True)
class Comparison:
    """Differences between a rewritten model and the plain one on clips."""

    clips: int
    deviation: float  # largest difference of a logit, relative to the plain model's largest
    flips: int  # clips whose most likely class changes

    def within(self, limits: Limits) -> bool:
        return self.deviation <= limits.deviation and self.flips <= limits.flips * self.clips

    def __str__(self) -> str:
        return f"logits differ by {self.deviation:.1e} of the largest, {self.flips} of {self.clips} clips change class"


@torch.inference_mode()
def compare(rewritten: Classifier, plain: Classifier, clips: Iterable[Tensor]) -> Comparison:
    """Run both on the same clips.

    Args:
        clips: batches (n, 3, frames, height, width), at least one.
    """
    pairs = [(rewritten(batch).float().cpu(), plain(batch).float().cpu()) for batch in clips]
    ours, theirs = (torch.cat(logits) for logits in zip(*pairs, strict=True))
    deviation = (ours - theirs).abs().max() / theirs.abs().max()
    flips = (ours.argmax(-1) != theirs.argmax(-1)).sum()
    # NaN must not pass for a small deviation
    return Comparison(len(ours), float(deviation.nan_to_num(nan=float("inf"))), int(flips))
