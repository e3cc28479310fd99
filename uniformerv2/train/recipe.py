"""Everything that a training run depends on, as data. Imports no torch, so that the command line can show the defaults.

How many loader workers there are and which device computes is not part of a recipe: neither changes what is learned.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any, Literal

from uniformerv2.errors import RecipeError
from uniformerv2.model.config import Layout, LocalBlocks, LocalMixing
from uniformerv2.text import nearest
from uniformerv2.train.choices import Loss, Monitor
from uniformerv2.video.augmentation import Augmentation
from uniformerv2.video.views import Views

TrainingPrecision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
Sampling = Literal["none", "balanced", "square-root"]

USUAL_TASK = "classification"
START = ("arm", "model", "checkpoint")  # of these fields of `ModelRecipe`, a recipe gives exactly one
NUM_FRAMES, SIZE = 8, 224  # of clips, unless the recipe or its checkpoint has others
AS_THE_CHECKPOINT: dict[str, Any] = {  # fields of `ModelRecipe` with which arming would change a checkpoint
    **{"local_blocks": "layout", "local_mixing": None, "temporal_downsample": None, "global_after": None},
    **{"post_norm": None, "mix_class_token": True},
}


@dataclass(frozen=True)
class ModelRecipe:
    """Which model a run starts from."""

    arm: str | None = None
    """Image transformer to arm: a file, a folder, or a repository of the hub (docs/image_transformers.md)."""
    model: str | None = None
    """Named size to train from scratch instead: Ti/16, S/16, B/16, L/14 or L/14@336."""
    checkpoint: str | None = None
    """Video checkpoint to go on from instead: a file, the name of a published model, or a repository of the hub.
    It has its own layout, blocks and downsampling."""
    weights: Literal["model", "ema"] = "model"
    """ema: the averaged weights of a file that has both."""
    map_head: bool | None = None
    """Which rows of the checkpoint's head go on. None: those of the data's classes, and the other classes get new rows.
    True: the same, but every class must have a row, in whatever spelling of Kinetics. False: none, the head is new."""
    layout: Layout = "temporal"
    """temporal: local UniBlocks, temporal downsampling, global UniBlocks after the last two thirds of the blocks.
    scene: global UniBlocks after the last four blocks."""
    local_blocks: LocalBlocks | Literal["layout"] = "layout"
    """Where local UniBlocks stand; layout: as in the layout."""
    local_mixing: LocalMixing | None = None
    """How local UniBlocks mix frames; None: by the paper's convolution, or as the checkpoint does (docs/models.md)."""
    temporal_downsample: bool | None = None
    """Whether the stem sees three frames and halves the frame rate; None: as in the layout."""
    global_after: tuple[int, ...] | None = None
    """Blocks, counted from 0, that are followed by a global UniBlock; None: as in the layout."""
    post_norm: bool | None = None
    """Whether the image transformer's final norm is used; the published models leave CLIP's out.
    None: if it has one."""
    mix_class_token: bool = True
    """Mix what stands for the frames into the video's embedding; the published frozen models do not."""
    motion_first: bool = False
    """Train the start on drawn motions first, which only the order of frames tells apart, so that its temporal parts
    have learned order before they see the videos; the head is then new (docs/training.md)."""
    frozen_backbone: bool = False
    """Train only what arming added, and leave the image transformer as it is."""
    cache_features: Literal["none", "fp32", "fp16"] = "none"
    """Cache the features of the fixed_views by a frozen backbone on disk, in this number format, instead of computing
    them in every epoch. For models without local UniBlocks."""
    drop_path: float = 0.0
    """Stochastic depth of the last image block; grows linearly from 0."""
    global_drop_path: float = 0.0
    """Stochastic depth of the last global UniBlock; grows linearly from 0."""
    global_dropout: float = 0.0
    """Dropout inside the MLP of the global UniBlocks."""
    head_dropout: float = 0.0
    """Dropout before the classifier."""
    checkpoint_blocks: int = 0
    """How many of the first blocks compute their activations again in the backward pass, to save memory."""

    def __post_init__(self) -> None:
        chosen = [name for name in (self.arm, self.model, self.checkpoint) if name is not None]
        what = "choose one of an image transformer (--arm), a named size (--model) and a video model (--checkpoint)"
        _require(len(chosen) == 1, what, chosen)
        _require(not self.map_head or self.checkpoint is not None, "map_head needs a checkpoint", self.checkpoint)
        what = "motion_first needs a new head: leave map_head out, or motion_first"
        _require(not (self.map_head and self.motion_first), what, f"map_head {self.map_head}")
        for name in ("drop_path", "global_drop_path", "global_dropout", "head_dropout"):
            _require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1)", getattr(self, name))
        _require(self.checkpoint_blocks >= 0, "checkpoint_blocks must not be negative", self.checkpoint_blocks)

    def options(self) -> dict[str, Any]:
        """The fields of `ModelConfig` that replace those of size and layout, or of the checkpoint."""
        always = ("drop_path", "global_drop_path", "global_dropout", "head_dropout", "checkpoint_blocks")
        as_is = ("local_mixing", "temporal_downsample", "global_after", "post_norm")
        where_chosen = {name: getattr(self, name) for name in as_is}
        where_chosen["local_blocks"] = None if self.local_blocks == "layout" else self.local_blocks
        where_chosen["mix_class_token"] = None if self.mix_class_token else False
        chosen = {name: value for name, value in where_chosen.items() if value is not None}
        return {name: getattr(self, name) for name in always} | chosen


@dataclass(frozen=True)
class ClipRecipe:
    """The clip that the model sees."""

    num_frames: int | None = None
    """Frames of a clip, spread evenly over the video. None: as the checkpoint has it, 8 for another start."""
    size: int | tuple[int, int] | None = None
    """Side of a square clip in pixels, or height and width; divisible by the patch size.
    None: as the checkpoint has it, 224 for another start."""
    mean: tuple[float, float, float] | None = None
    """Of each channel in [0, 1], to normalise with; 0.45 in the published models. None: as the start was trained."""
    std: tuple[float, float, float] | None = None
    """Standard deviation to normalise with; 0.225 in the published models. None: as the start was trained."""
    channel_order: Literal["rgb", "bgr"] | None = None
    """Order in which the model sees the channels; None: as the start was trained, rgb for images."""

    def __post_init__(self) -> None:
        _require(self.num_frames is None or self.num_frames >= 1, "num_frames must be positive", self.num_frames)
        _require(self.height_width is None or min(self.height_width) >= 1, "size must be positive", self.size)
        _require(self.std is None or min(self.std) > 0, "std must be positive", self.std)

    @property
    def height_width(self) -> tuple[int, int] | None:
        """In pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def filled(self, num_frames: int, height_width: tuple[int, int]) -> ClipRecipe:
        """The same with these frames and pixels where it leaves them open."""
        height, width = height_width
        size = height if height == width else height_width
        return replace(
            self,
            num_frames=num_frames if self.num_frames is None else self.num_frames,
            size=size if self.size is None else self.size,
        )


@dataclass(frozen=True)
class AugmentationOptions:
    """What is worth choosing of `Augmentation`. The defaults suit sets of some dozens to thousands of videos."""

    num_ops: int = 0
    """RandAugment operations that distort a training clip; 4 in the released recipes, for 100,000 videos and more."""
    magnitude: float = 7.0
    """Mean strength of these operations, 0 to 10."""
    crop_area: tuple[float, float] = (0.5, 1.0)
    """Smallest and largest share of the frame that a training clip keeps; 0.08 1 in the released recipes."""
    flip: bool = True
    """Mirror half of the training clips."""
    flip_labels: str = "auto"
    """Words that change places in the label of a mirrored clip, such as "left,right" or "left,right;west,east". Clips
    of a class with such a word but without its counterpart are not mirrored. auto: left and right, and clockwise and
    counterclockwise, where the names of the classes have both. none: a mirrored clip keeps its label."""
    reverse_labels: str = "none"
    """Pairs of classes that are each other played backwards, such as "sit_down,stand_up;open,close" or "wave,wave".
    Half of their training clips are played so, with the label of the other. none: no clip is."""
    repeats: int = 1
    """Clips of each decoded video in a batch, each with frames and distortions of its own: saves decoding."""
    erasing: float = 0.0
    """Probability that a random rectangle of a training clip is erased."""
    mixup: float = 0.0
    """Blend pairs of clips; alpha of the beta distribution of the share. 0: never."""
    cutmix: float = 0.0
    """Paste a rectangle of one clip into another; alpha of the beta distribution of its area. 0: never."""
    fixed_views: int = 0
    """So many random views of each video are drawn once and take turns, one an epoch. 0: new ones in each epoch."""

    @classmethod
    def of(cls, augmentation: Augmentation) -> AugmentationOptions:
        """What an augmentation looks like on the command line."""
        shown = {option.name: getattr(augmentation, option.name) for option in fields(cls)}
        return cls(**shown | {"flip": augmentation.flip > 0})

    def build(self) -> Augmentation:
        """Raises RecipeError for values out of range."""
        try:
            return Augmentation(**asdict(self) | {"flip": 0.5 if self.flip else 0.0})
        except ValueError as error:
            raise RecipeError(str(error)) from error


@dataclass(frozen=True)
class Optimization:
    """AdamW with linear warm-up and a cosine, step by step."""

    epochs: int = 20
    """Passes over the training files."""
    batch_size: int = 8
    """Clips of a step, over all processes and micro-batches."""
    lr: float = 3e-4
    """Learning rate after the warm-up. CLIP weights want far less: 1e-5 at batch size 256."""
    lr_base_batch: int | None = None
    """Batch size that lr, start_lr and end_lr are meant for: they are scaled linearly to batch_size.
    None: they stay as they are."""
    accumulate: int = 1
    """Micro-batches that a step is split into, to save memory."""
    warmup_epochs: float = 2.0
    """Epochs until the learning rate is reached, linearly from start_lr."""
    start_lr: float = 1e-6
    """Learning rate of the first step."""
    end_lr: float = 1e-6
    """Learning rate at the end of the last epoch."""
    layer_decay: float = 1.0
    """Learning rate of each image block relative to that of the block above; what arming added has the full rate.
    1: the same everywhere."""
    weight_decay: float = 0.05
    """Decoupled weight decay; none on biases, norms and other 1-D parameters."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the running averages."""
    clip_norm: float = 20.0
    """Largest norm of all gradients together; a larger gradient is scaled down to it."""
    label_smoothing: float = 0.1
    """Share of the target probability that is spread over all classes."""
    loss: Loss = "cross-entropy"
    """focal, asymmetric: for videos with several labels (docs/multilabel.md)."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: in the loss, a clip weighs the more the rarer its class is, 1 on the average of the training files."""
    sampling: Sampling = "none"
    """Which training files an epoch has. none: each once. balanced: drawn so that all classes are equally likely.
    square-root: so that each is as likely as the square root of its number of files says."""
    background: float = 0.0
    """Share of the training rows that are windows outside all spans of the films, drawn as a class `background`; with
    task multilabel, without a label. 0: none."""
    precision: TrainingPrecision = "auto"
    """bf16: autocast to bfloat16. fp16: autocast to float16, with a scaled loss; GPUs only.
    auto: bf16 where the device computes with it and the model is wide enough to gain."""
    ema: float = 0.0
    """Decay of a running average of the weights, which is then evaluated and saved beside them. 0: none."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the model with torch.compile. auto: on a GPU where that works."""
    evaluate_every: int = 1
    """Epochs between evaluations of the held-out files; the last epoch is always evaluated."""
    monitor: Monitor = "auto"
    """The figure of the held-out files that decides which epoch is the best; of equals, the later. auto: top1; map,
    mean average precision, where a video may have several labels."""
    early_stop: int = 0
    """Stop after so many evaluations without a better monitor. 0: never."""
    seed: int = 0
    """Decides the new parameters, the order of the files, the augmentation and the held-out files."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "lr", "clip_norm", "evaluate_every"):
            _require(getattr(self, name) > 0, f"{name} must be positive", getattr(self, name))
        for name in ("warmup_epochs", "early_stop", "weight_decay"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative", getattr(self, name))
        for name in ("ema", "label_smoothing", "background"):
            _require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1)", getattr(self, name))
        divisible = self.batch_size % self.accumulate == 0
        _require(divisible, f"batch_size must be divisible by accumulate {self.accumulate}", self.batch_size)
        base, warmup = self.lr_base_batch, self.warmup_epochs
        _require(base is None or base >= 1, "lr_base_batch must be positive", base)
        _require(warmup <= self.epochs, f"warmup_epochs must be at most epochs {self.epochs}", warmup)
        _require(0 <= self.start_lr <= self.lr, f"start_lr must be in [0, lr {self.lr}]", self.start_lr)
        _require(0 <= self.end_lr <= self.lr, f"end_lr must be in [0, lr {self.lr}]", self.end_lr)
        _require(0 < self.layer_decay <= 1, "layer_decay must be in (0, 1]", self.layer_decay)
        _require(all(0 <= beta < 1 for beta in self.betas), "betas must be in [0, 1)", self.betas)
        _require(0 <= self.seed < 2**32, "seed must be in [0, 2**32)", self.seed)

    def scaled(self) -> Optimization:
        """The same with learning rates for the batch size that it has."""
        if self.lr_base_batch is None:
            return self
        factor = self.batch_size / self.lr_base_batch
        rates = {name: getattr(self, name) * factor for name in ("lr", "start_lr", "end_lr")}
        return replace(self, lr_base_batch=self.batch_size, **rates)


@dataclass(frozen=True)
class Recipe:
    """The whole truth of a run: saved beside it, printed when it starts.

    Vary one with `vary`, or a part with `dataclasses.replace`. Raises RecipeError for values out of range.
    """

    model: ModelRecipe
    clip: ClipRecipe = field(default_factory=ClipRecipe)
    optimization: Optimization = field(default_factory=Optimization)
    augmentation: Augmentation = field(default_factory=lambda: AugmentationOptions().build())
    evaluation: Views = Views()  # of each held-out video at the end of the run; after each epoch one view is evaluated

    def __post_init__(self) -> None:
        together = self.optimization.accumulate * self.augmentation.repeats
        what = f"batch_size must be divisible by accumulate times repeats, {together}"
        _require(self.optimization.batch_size % together == 0, what, self.optimization.batch_size)
        single, reversing = self.clip.num_frames == 1, self.augmentation.reverse_labels != "none"
        for name, asked in (("motion_first", self.model.motion_first), ("reverse_labels", reversing)):
            _require(not (single and asked), f"{name} needs clips of several frames", "num_frames 1")
        if self.model.cache_features == "none":
            return
        # a clip that comes again must be the same, and the image transformer too
        frozen, views = self.model.frozen_backbone, self.augmentation.fixed_views
        _require(frozen, "cache_features needs frozen_backbone", frozen)
        _require(views > 0, "cache_features needs fixed_views", views)
        mixed = (self.augmentation.mixup, self.augmentation.cutmix)
        _require(not any(mixed), "cache_features needs clips that are not mixed, mixup 0 and cutmix 0", mixed)

    def vary(self, **values: Any) -> Recipe:
        """The same with other values of some fields, wherever they stand: `recipe.vary(lr=1e-4, epochs=30)`.

        Another start (arm, model or checkpoint) takes the place of the recipe's.

        Raises:
            RecipeError: no field of that name (the message has the nearest), or values out of range.
        """
        if chosen := {name for name in START if values.get(name) is not None}:
            values = {**dict.fromkeys(START), **values}
            if "checkpoint" not in chosen:
                values = {"map_head": None, **values}
        parts: dict[str, dict[str, Any]] = {part.name: {} for part in fields(self)}
        place = {option.name: part for part, option, _ in self._options()}
        for name, value in values.items():
            if name not in place:
                raise RecipeError(f"no recipe has a field {name!r}; {nearest(name, place)}")
            parts[place[name]][name] = value
        try:
            return replace(self, **{part: replace(getattr(self, part), **some) for part, some in parts.items()})
        except ValueError as error:
            raise RecipeError(str(error)) from error

    def starting_from(self, **start: str) -> Recipe:
        """The same from another start. A checkpoint keeps its own blocks, whatever a recipe that arms says of them."""
        arms = self.model.checkpoint is None
        return self.vary(**(AS_THE_CHECKPOINT if arms and "checkpoint" in start else {}), **start)

    def lasting(self, epochs: int) -> Recipe:
        """The same with other epochs, of which the warm-up takes the same share."""
        before = self.optimization
        return self.vary(epochs=epochs, warmup_epochs=before.warmup_epochs * epochs / before.epochs)

    def resolved(self) -> Recipe:
        """The recipe with learning rates for its batch size, and frames and pixels unless a checkpoint has them.

        It resolves to itself.
        """
        clip = self.clip if self.model.checkpoint else self.clip.filled(NUM_FRAMES, (SIZE, SIZE))
        return replace(self, clip=clip, optimization=self.optimization.scaled())

    def _options(self) -> Iterator[tuple[str, Field[Any], Any]]:
        """Part, field and value of all options. No two parts have a field of the same name."""
        for part in fields(self):
            values = getattr(self, part.name)
            for option in fields(values):
                yield part.name, option, getattr(values, option.name)

    def to_json(self, *, task: str = USUAL_TASK) -> str:
        """As recipe.json has it, with the name of the task unless it is the usual one."""
        return json.dumps(({} if task == USUAL_TASK else {"task": task}) | asdict(self), indent=2) + "\n"

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Recipe:
        """From the output of `dataclasses.asdict`, also after JSON. Raises TypeError, ValueError and RecipeError."""
        parts = {"model": ModelRecipe, "clip": ClipRecipe, "optimization": Optimization}
        parts |= {"augmentation": Augmentation, "evaluation": Views}
        return cls(**{name: part(**_with_tuples(fields[name])) for name, part in parts.items() if name in fields})

    def lines(self) -> list[tuple[str, str]]:
        """The same for people: a line for each part."""
        return [
            (part, ", ".join(f"{name} {value}" for name, value in values.items() if value is not None))
            for part, values in asdict(self).items()
        ]


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Lists, which JSON has for tuples, as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What two recipes, read from JSON, disagree on: ["epochs 20 is now 30", ...]."""
    return [f"{name} {old} is now {new}" for name, (old, new) in disagreements([before, after]).items()]


def disagreements(recipes: Sequence[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """The fields, by name, that recipes read from JSON disagree on, with the value of each; None where it has none."""
    values = [_flat(recipe) for recipe in recipes]
    names = sorted({name for recipe in values for name in recipe})
    of_each = {name: tuple(recipe.get(name) for recipe in values) for name in names}
    return {name: found for name, found in of_each.items() if any(value != found[0] for value in found)}


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """The fields of all parts together: no two parts have a field of the same name."""
    flat: dict[str, Any] = {}
    for name, value in recipe.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat


def _require(condition: bool, what: str, value: object) -> None:
    if not condition:
        raise RecipeError(f"{what}, got {value}")
