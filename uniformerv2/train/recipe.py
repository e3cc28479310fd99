"""Everything that a training run depends on, as data. Imports no torch, so that the command line can show the defaults.

How many loader workers there are and which device computes is not part of a recipe: neither changes what is learned.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from uniformerv2.errors import RecipeError
from uniformerv2.model.config import Layout, LocalBlocks

if TYPE_CHECKING:
    from uniformerv2.video.augment import Augmentation

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class ModelRecipe:
    """Which model a run starts from."""

    arm: str | None = None
    """Image transformer to arm: a safetensors file with timm's names."""
    model: str | None = None
    """Named size to train from scratch instead: Ti/16, S/16, B/16, L/14 or L/14@336."""
    layout: Layout = "temporal"
    """temporal: local UniBlocks, temporal downsampling, global UniBlocks after the last two thirds of the blocks.
    scene: global UniBlocks after the last four blocks."""
    local_blocks: LocalBlocks | Literal["layout"] = "layout"
    """Where local UniBlocks stand; layout: where the layout says."""
    temporal_downsample: bool | None = None
    """Whether the stem sees three frames and halves the frame rate; None: as the layout says."""
    global_after: tuple[int, ...] | None = None
    """Blocks, counted from 0, that are followed by a global UniBlock; None: as the layout says."""
    drop_path: float = 0.0
    """Stochastic depth of the last image block; grows linearly from 0."""
    head_dropout: float = 0.0
    """Dropout before the classifier."""

    def __post_init__(self) -> None:
        chosen = [name for name in (self.arm, self.model) if name is not None]
        _require(len(chosen) == 1, "choose either an image transformer (--arm) or a named size (--model)", chosen)
        _require(0 <= self.drop_path < 1, "drop_path must be in [0, 1)", self.drop_path)
        _require(0 <= self.head_dropout < 1, "head_dropout must be in [0, 1)", self.head_dropout)

    def options(self) -> dict[str, Any]:
        """The fields of `ModelConfig` that replace what size and layout say."""
        options: dict[str, Any] = {"drop_path": self.drop_path, "head_dropout": self.head_dropout}
        if self.local_blocks != "layout":
            options["local_blocks"] = self.local_blocks
        if self.temporal_downsample is not None:
            options["temporal_downsample"] = self.temporal_downsample
        if self.global_after is not None:
            options["global_after"] = self.global_after
        return options


@dataclass(frozen=True)
class ClipRecipe:
    """The clip that the model sees."""

    num_frames: int = 8
    """Frames of a clip, spread evenly over the video."""
    size: int | tuple[int, int] = 224
    """Side of a square clip in pixels, or height and width; divisible by the patch size."""

    def __post_init__(self) -> None:
        _require(self.num_frames >= 1, "num_frames must be positive", self.num_frames)
        _require(min(self.height_width) >= 1, "size must be positive", self.size)

    @property
    def height_width(self) -> tuple[int, int]:
        """In pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


@dataclass(frozen=True)
class AugmentationOptions:
    """What is worth choosing of `Augmentation`. The defaults suit sets of some dozens to thousands of videos."""

    num_ops: int = 0
    """RandAugment operations that distort a training clip; 4 in the released recipes, for 100,000 videos and more."""
    crop_area: tuple[float, float] = (0.5, 1.0)
    """Smallest and largest share of the frame that a training clip keeps; 0.08 1 in the released recipes."""
    flip: bool = True
    """Mirror half of the training clips; not where left and right tell classes apart."""

    def build(self) -> Augmentation:
        """Raises RecipeError for values out of range."""
        from uniformerv2.video.augment import Augmentation  # imports torch, which `--help` must not wait for

        try:
            return Augmentation(num_ops=self.num_ops, crop_area=self.crop_area, flip=0.5 if self.flip else 0.0)
        except ValueError as error:
            raise RecipeError(str(error)) from error


@dataclass(frozen=True)
class Optimization:
    """AdamW with linear warm-up and a cosine, step by step."""

    epochs: int = 20
    """Passes over the training files."""
    batch_size: int = 8
    """Clips of a step."""
    lr: float = 3e-4
    """Learning rate after the warm-up. CLIP weights want far less: 1e-5 at batch size 256."""
    warmup_epochs: float = 2.0
    """Epochs until the learning rate is reached, linearly from start_lr."""
    start_lr: float = 1e-6
    """Learning rate of the first step."""
    end_lr: float = 1e-6
    """Learning rate of the last step."""
    weight_decay: float = 0.05
    """Decoupled weight decay; none on biases, norms and other 1-D parameters."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the running averages."""
    clip_norm: float = 20.0
    """Largest norm of all gradients together; a larger gradient is scaled down to it."""
    label_smoothing: float = 0.1
    """Share of the target probability that is spread over all classes."""
    precision: Precision = "auto"
    """bf16: autocast to bfloat16. auto: bf16 where the device computes with it and the model is wide enough to gain."""
    evaluate_every: int = 1
    """Epochs between evaluations of the held-out files; the last epoch is always evaluated."""
    seed: int = 0
    """Decides the new parameters, the order of the files, the augmentation and the held-out files."""

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs must be positive", self.epochs)
        _require(self.batch_size >= 1, "batch_size must be positive", self.batch_size)
        _require(self.lr > 0, "lr must be positive", self.lr)
        _require(self.warmup_epochs >= 0, "warmup_epochs must not be negative", self.warmup_epochs)
        _require(
            self.warmup_epochs <= self.epochs, f"warmup_epochs must be at most epochs {self.epochs}", self.warmup_epochs
        )
        _require(0 <= self.start_lr <= self.lr, f"start_lr must be in [0, lr {self.lr}]", self.start_lr)
        _require(0 <= self.end_lr <= self.lr, f"end_lr must be in [0, lr {self.lr}]", self.end_lr)
        _require(self.weight_decay >= 0, "weight_decay must not be negative", self.weight_decay)
        _require(all(0 <= beta < 1 for beta in self.betas), "betas must be in [0, 1)", self.betas)
        _require(self.clip_norm > 0, "clip_norm must be positive", self.clip_norm)
        _require(0 <= self.label_smoothing < 1, "label_smoothing must be in [0, 1)", self.label_smoothing)
        _require(self.evaluate_every >= 1, "evaluate_every must be positive", self.evaluate_every)
        _require(0 <= self.seed < 2**32, "seed must be in [0, 2**32)", self.seed)


@dataclass(frozen=True)
class Recipe:
    """The whole truth of a run: saved beside it, printed when it starts.

    Vary one with `dataclasses.replace`. Raises RecipeError for values out of range.
    """

    model: ModelRecipe
    clip: ClipRecipe = field(default_factory=ClipRecipe)
    optimization: Optimization = field(default_factory=Optimization)
    augmentation: Augmentation = field(default_factory=lambda: AugmentationOptions().build())

    def to_json(self) -> str:
        """As recipe.json has it."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def lines(self) -> list[tuple[str, str]]:
        """The same for people: a line for each part."""
        return [
            (part, ", ".join(f"{name} {value}" for name, value in values.items() if value is not None))
            for part, values in asdict(self).items()
        ]


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What two recipes, read from JSON, disagree on: ["epochs 20 is now 30", ...]."""
    found = []
    for name in before.keys() | after.keys():
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new)
        elif old != new:
            found.append(f"{name} {old} is now {new}")
    return sorted(found)


def _require(condition: bool, what: str, value: object) -> None:
    if not condition:
        raise RecipeError(f"{what}, got {value}")
