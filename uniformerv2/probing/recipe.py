"""Everything that a probe depends on but the data, as data. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

from uniformerv2.errors import RecipeError


class Setting(NamedTuple):
    """One of those that are trained together."""

    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class ProbeRecipe:
    """What is probed, and how.

    Raises:
        RecipeError: values that are not possible.
    """

    arm: str | None = None
    """Image transformer to arm: a file, a folder, or a repository of the hub (docs/image_transformers.md)."""
    checkpoint: str | None = None
    """Video checkpoint to go on from instead: a file, the name of a published model, or a repository of the hub.
    It has its own layout, blocks and downsampling."""
    learning_rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
    """Each is trained with each of the weight decays, all at once."""
    weight_decays: tuple[float, ...] = (0.01, 0.1, 0.4, 0.8)
    """Decoupled weight decays; none on biases, norms and other 1-D parameters."""
    epochs: int = 40
    """Passes over the training files."""
    batch_size: int = 16
    """Clips of a step, the same for all settings."""
    num_frames: int | None = None
    """Frames of a clip, spread evenly over the video. None: as the checkpoint has it, 8 for an image transformer."""
    size: int | tuple[int, int] | None = None
    """Side of a square clip in pixels, or height and width; divisible by the patch size. None: as the start has it."""
    global_after: tuple[int, ...] | None = None
    """Blocks, counted from 0, whose tokens a stage of the probe sees; None: the last one."""
    temporal_differences: bool = False
    """Add to each patch token half the difference between its place in the next frame and in the last, so that the
    probe of an image transformer sees the order of the frames (docs/training.md)."""
    fixed_views: int = 2
    """So many random views of each training video are encoded once and take turns, one an epoch."""
    flip: bool = True
    """Mirror half of the training clips."""
    cache_features: Literal["fp32", "fp16"] = "fp32"
    """Number format of the tokens on disk."""
    seed: int = 0
    """Decides the new parameters, the order of the files, the augmentation and the held-out files."""

    def __post_init__(self) -> None:
        starts = [start for start in (self.arm, self.checkpoint) if start is not None]
        what = "choose one of an image transformer (--arm) and a video model (--checkpoint)"
        _require(len(starts) == 1, what, starts)
        for name in ("epochs", "batch_size", "fixed_views"):
            _require(getattr(self, name) >= 1, f"{name} must be positive", getattr(self, name))
        _require(self.global_after != (), "global_after needs a block at least", self.global_after)
        rates, decays = self.learning_rates, self.weight_decays
        positive, no_less = all(0 < rate < math.inf for rate in rates), all(0 <= decay < math.inf for decay in decays)
        _require(bool(rates) and positive, "learning_rates must be positive numbers, at least one", rates)
        _require(bool(decays) and no_less, "weight_decays must be numbers from 0, at least one", decays)

    @property
    def settings(self) -> list[Setting]:
        """Every learning rate with every weight decay."""
        return [Setting(*both) for both in product(self.learning_rates, self.weight_decays)]

    @property
    def start(self) -> str:
        """What is probed."""
        return str(self.arm or self.checkpoint)


def _require(condition: bool, what: str, value: object) -> None:
    if not condition:
        raise RecipeError(f"{what}, got {value}")
