"""Everything that a localiser depends on but its video model and the data. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from uniformerv2.errors import RecipeError
from uniformerv2.text import parse_json
from uniformerv2.train.recipe import Optimization


@dataclass(frozen=True)
class PyramidConfig:
    """The head that finds spans in a sequence of embeddings."""

    width: int = 128
    """Numbers of a place, in every level."""
    heads: int = 4
    """Of the attention."""
    radius: int = 8
    """How many places before and after itself a place attends to, in its own level."""
    blocks: int = 2
    """Transformer blocks before the first halving; each further level has one."""
    levels: int = 6
    """Of the pyramid; each has half as many places as the one before."""
    reach: float = 4.0
    """Farthest end of a span, in windows, that a place of the first level answers for; doubles with each level."""
    centre_radius: float = 1.5
    """Places so near to the middle of a span, in places of their level, answer for it."""
    dropout: float = 0.1
    """Before each sum with what came before."""
    embedding_dropout: float = 0.5
    """Share of the numbers of an embedding that a training step leaves out, the same ones in all windows of a film."""
    classifier_share: float = 0.25
    """Of the video model's own classifier in the score of a span, where it knows all labels of the spans. 0: none."""

    def __post_init__(self) -> None:
        for name in ("width", "heads", "radius", "levels", "reach", "centre_radius"):
            _require(getattr(self, name) > 0, f"{name} must be positive", getattr(self, name))
        _require(self.blocks >= 0, "blocks must not be negative", self.blocks)
        _require(self.width % self.heads == 0, f"width must be divisible by heads {self.heads}", self.width)
        for name in ("dropout", "embedding_dropout", "classifier_share"):
            _require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1)", getattr(self, name))


@dataclass(frozen=True)
class LocaliserRecipe:
    """How a film is embedded, and how the head is trained.

    Raises:
        RecipeError: values that are not possible.
    """

    window_seconds: float = 2.0
    """Length of a window, which the video model embeds as a clip."""
    stride_seconds: float = 0.5
    """From the start of a window to that of the next. Spans that are much shorter are not found."""
    head: PyramidConfig = field(default_factory=PyramidConfig)
    crop_windows: int = 256
    """A longer film is trained on a stretch of so many windows, drawn anew in each epoch around one of its spans."""
    epochs: int = 30
    """Passes over the training films."""
    batch_size: int = 4
    """Films of a step."""
    lr: float = 1e-3
    """Learning rate after the warm-up."""
    video_lr: float = 0.0
    """The same of the video model, which is then trained too, end to end, on the frames of the films. 0: it stays as it
    is, and its embeddings are kept."""
    warmup_epochs: float = 3.0
    """Epochs until the learning rate is reached, linearly."""
    weight_decay: float = 0.05
    """Decoupled weight decay; none on biases, norms and other 1-D parameters."""
    ema: float = 0.99
    """Decay of a running average of the weights, which is then evaluated and saved. 0: none."""
    evaluate_every: int = 5
    """Epochs between evaluations of the held-out films; the last epoch is always evaluated."""
    seed: int = 0
    """Decides the new parameters, the order of the films, the stretches, and the held-out films."""

    def __post_init__(self) -> None:
        for name in ("window_seconds", "stride_seconds"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"{name} must be a positive number of seconds", value)
        _require(self.video_lr >= 0, "video_lr must not be negative", self.video_lr)
        _require(self.crop_windows >= 1, "crop_windows must be positive", self.crop_windows)
        self.optimization()

    def optimization(self) -> Optimization:
        """As the training knows it. The head is small: it is computed in float32, and not compiled."""
        return Optimization(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            warmup_epochs=self.warmup_epochs,
            start_lr=0.0,
            end_lr=0.0,
            weight_decay=self.weight_decay,
            clip_norm=1.0,
            precision="fp32",
            compile=False,
            ema=self.ema,
            evaluate_every=self.evaluate_every,
            seed=self.seed,
        )

    def vary(self, **values: Any) -> LocaliserRecipe:
        """The same with other values of some fields. Raises RecipeError."""
        try:
            return replace(self, **values)
        except TypeError as error:
            raise RecipeError(f"no such field of a localiser's recipe: {error}") from None

    def lasting(self, epochs: int) -> LocaliserRecipe:
        """The same with other epochs, of which the warm-up takes the same share."""
        return self.vary(epochs=epochs, warmup_epochs=self.warmup_epochs * epochs / self.epochs)

    def to_json(self) -> str:
        """As recipe.json and a checkpoint have it."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> LocaliserRecipe:
        """From the output of `dataclasses.asdict`, also after JSON. Raises TypeError and RecipeError."""
        return cls(**{**fields, "head": PyramidConfig(**fields["head"])})


class BegunLocaliser(NamedTuple):
    """What the recipe.json of a localiser's run tells."""

    recipe: LocaliserRecipe
    checkpoint: str | None  # whose video model embeds the windows; None: it came from no file

    @classmethod
    def read(cls, file: Path) -> BegunLocaliser:
        """Raises RecipeError: not the recipe of such a run."""
        try:
            facts = parse_json(file.read_text(encoding="utf-8"))
            return cls(LocaliserRecipe.from_fields(facts["localiser"]), facts.get("video_checkpoint"))
        except (OSError, KeyError, TypeError, ValueError, RecipeError) as error:
            raise RecipeError(f"{file}: not the recipe of a localiser's run ({error}); start another run") from error


def _require(condition: bool, what: str, value: object) -> None:
    if not condition:
        raise RecipeError(f"{what}, got {value}")
