"""The architecture and the preprocessing as data, without tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

LocalBlocks = Literal["none", "attention", "attention+mlp"]
LocalMixing = Literal["convolution", "calibrated", "differences", "shift"]  # model/temporal_mixing.py
Fusion = Literal["sequential", "parallel", "hierarchical_kv", "hierarchical_q"]
Layout = Literal["scene", "temporal"]
Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
Pool = Literal["class_token", "mean", "attention"]

CALIBRATION_REDUCTION = 4  # of the channels of a local block, where its calibration is computed


@dataclass(frozen=True)
class Preprocessing:
    """How a video becomes a clip of the kind that a model was trained on. Belongs to a checkpoint.

    `size` is (height, width) in pixels; `mean` and `std` are per channel, on values in [0, 1], in
    the model's own channel order.
    """

    num_frames: int = 8
    sampling: Literal["segments"] = "segments"  # evenly spread over the whole video (TSN)
    size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    channel_order: Literal["rgb", "bgr"] = "rgb"

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """From the output of `dataclasses.asdict`, also after JSON. Raises TypeError and ValueError."""
        return cls(**_with_tuples(fields))

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"num_frames must be positive, got {self.num_frames}")
        if min(self.size) < 1:
            raise ValueError(f"size must be positive (height, width), got {self.size}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")


@dataclass(frozen=True)
class RotaryEmbedding:
    """Rotary position embedding (RoPE) of the patches: half of each head's channels encode the row, half the column.

    The patch in row i of n has the position `start + span * (i + offset) / n`, and the j-th pair of the row's channels
    is rotated by `position * base ** (-j / pairs)` radians; the same for columns. Class and register tokens are not
    rotated. Positions of EVA-02 go to 16 whatever the size, those of Perception Encoder from 1 to its own grid, and
    those of DINOv3 one turn each way from the centre.
    """

    base: float = 10000.0
    span: tuple[float, float] = (16.0, 16.0)  # rows, columns
    offset: float = 0.0
    start: float = 0.0
    columns_first: bool = False  # the first half of the channels encodes the column
    halves: bool = False  # a pair is (c, c + dim / 2) of a head's dim channels, not (2c, 2c + 1)


@dataclass(frozen=True)
class ModelConfig:
    """The architecture: which parameters a UniFormerV2 has and what it computes with them.

    It does not contain the number of frames: no parameter depends on it.
    """

    # the image transformer
    width: int = 768
    depth: int = 12
    heads: int = 12
    patch_size: int = 16  # pixels
    image_size: tuple[int, int] = (224, 224)  # (height, width) of the position embedding, in pixels
    mlp_ratio: float = 4.0
    gated_mlp: bool = False  # SwiGLU; mlp_ratio counts each of its two halves
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    patch_bias: bool = False
    class_token: bool = True
    register_tokens: int = 0
    position_embedding: bool = True
    rotary: RotaryEmbedding | None = None
    relative_bias: bool = False  # learned attention bias per head and distance between patches (BEiT)
    layer_scale: bool = False  # a learned factor per channel on both residuals of a block
    norm_after: bool = False  # post-norm: x + norm(attention(x)) instead of x + attention(norm(x)) (EVA-02-E)
    attention_norm: bool = False  # a LayerNorm before the output projection of the attention (EVA-02)
    mlp_norm: bool = False  # a LayerNorm before the output projection of the MLP (EVA-02)
    pre_norm: bool = True  # a LayerNorm before the blocks (CLIP)
    post_norm: bool = False  # the image model's final norm, on the tokens that make the frame embedding
    pool: Pool = "class_token"  # the frame embedding: the class token, or the patches pooled
    pool_norm: bool = False  # a LayerNorm after pooling
    pool_heads: int = 0  # heads of the attention pool; 0: `heads`
    pool_mlp_ratio: float = 4.0  # of the attention pool

    # what makes it a video model
    local_blocks: LocalBlocks = "none"
    local_reduction: float = 1.5  # the local block works in int(width / local_reduction) channels
    local_kernel: int = 3  # frames; odd
    local_mixing: LocalMixing = "convolution"  # of the frames; the others are not of the paper
    temporal_downsample: bool = False  # the stem has a kernel of three frames and halves the frame rate
    global_after: tuple[int, ...] = (8, 9, 10, 11)  # blocks that a global UniBlock follows, from 0
    global_mlp_ratio: float = 4.0
    num_queries: int = 1
    fusion: Fusion = "sequential"
    mix_class_token: bool = True  # False in the frozen variant: the input of the head is the global token alone
    num_classes: int = 400

    # training only: nothing here changes a parameter or an output in eval mode
    drop_path: float = 0.0  # of the last image block; grows linearly from 0
    global_drop_path: float = 0.0  # of the last global block; grows linearly from 0
    global_dropout: float = 0.0  # inside the MLP of the global blocks
    head_dropout: float = 0.0
    checkpoint_blocks: int = 0  # how many of the first blocks recompute activations in the backward pass

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        height, width = self.image_size
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not divisible by patch_size {self.patch_size}")
        if self.local_kernel < 1 or self.local_kernel % 2 == 0:
            raise ValueError(f"local_kernel must be odd and positive, got {self.local_kernel}")
        self._check_local_mixing()
        if list(self.global_after) != sorted(set(self.global_after)) or not all(
            0 <= block < self.depth for block in self.global_after
        ):
            raise ValueError(
                f"global_after must be increasing block numbers below depth {self.depth}, got {self.global_after}"
            )
        if self.pool not in ("class_token", "mean", "attention"):
            raise ValueError(f"pool must be class_token, mean or attention, got {self.pool!r}")
        if self.pool == "class_token" and not self.class_token:
            raise ValueError("pool class_token needs a class token; without one, pool by mean or attention")
        if self.rotary is not None and self.width // self.heads % 4:
            raise ValueError(f"rotary needs heads of a multiple of 4 channels, got {self.width // self.heads}")
        if self.relative_bias and self.register_tokens:
            raise ValueError("relative_bias has no entries for register_tokens; use one or the other")
        if self.width % (self.pool_heads or self.heads):
            raise ValueError(f"width {self.width} is not divisible by pool_heads {self.pool_heads}")
        if not self.global_after and not self.mix_class_token:
            raise ValueError("a model without global_after needs mix_class_token: the head has no other input")
        if self.num_queries < 1:
            raise ValueError(f"num_queries must be positive, got {self.num_queries}")
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be positive, got {self.num_classes}")

    def _check_local_mixing(self) -> None:
        mixing, known = self.local_mixing, get_args(LocalMixing)
        if mixing not in known:
            raise ValueError(f"local_mixing must be {', '.join(known[:-1])} or {known[-1]}, got {mixing!r}")
        if mixing != "convolution" and self.local_blocks == "none":
            raise ValueError(f"local_mixing {mixing} needs local UniBlocks: local_blocks attention or attention+mlp")
        if mixing == "shift" and self.local_kernel == 1:
            raise ValueError("local_mixing shift needs a local_kernel of 3 frames or more, got 1")

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> ModelConfig:
        """From the output of `dataclasses.asdict`, also after JSON.

        Raises:
            TypeError: an unknown field.
            ValueError: values that contradict each other.
        """
        known = _with_tuples(fields)
        if known.get("rotary") is not None:
            known["rotary"] = RotaryEmbedding(**_with_tuples(known["rotary"]))
        return cls(**known)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row at `image_size`."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Lists, which JSON has for tuples, as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


# width, depth, heads, patch size (pixels), image size (pixels)
MODEL_SIZES: dict[str, tuple[int, int, int, int, int]] = {
    "Ti/16": (192, 12, 3, 16, 224),
    "S/16": (384, 12, 6, 16, 224),
    "B/16": (768, 12, 12, 16, 224),
    "L/14": (1024, 24, 16, 14, 224),
    "L/14@336": (1024, 24, 16, 14, 336),
}


def layout_options(layout: Layout, depth: int) -> dict[str, object]:
    """The two layouts of the paper (section 4), as fields of `ModelConfig`.

    "scene": global UniBlocks only, after the last four blocks (Kinetics and its like).
    "temporal": local UniBlocks everywhere, temporal downsampling in the stem, and global UniBlocks
    after the last two thirds of the blocks (Something-Something).
    """
    if layout == "scene":
        return {"global_after": tuple(range(max(depth - 4, 0), depth))}
    if layout == "temporal":
        return {
            "local_blocks": "attention+mlp",
            "temporal_downsample": True,
            "global_after": tuple(range(depth // 3, depth)),
        }
    raise ValueError(f"layout must be 'scene' or 'temporal', got {layout!r}")


def named_config(size: str, layout: Layout = "scene", **options: Any) -> ModelConfig:
    """The configuration of a named size, for example `named_config("B/16", "temporal", num_classes=174)`.

    Args:
        size: a key of `MODEL_SIZES`.
        layout: "scene" or "temporal", see `layout_options`.
        options: fields of `ModelConfig`, in place of those of size and layout.

    Raises:
        ValueError: an unknown size or layout, or values that contradict each other.
    """
    if size not in MODEL_SIZES:
        raise ValueError(f"unknown size {size!r}; the named sizes are {', '.join(MODEL_SIZES)}")
    width, depth, heads, patch_size, image_size = MODEL_SIZES[size]
    fields: dict[str, Any] = {
        "width": width,
        "depth": depth,
        "heads": heads,
        "patch_size": patch_size,
        "image_size": (image_size, image_size),
        **layout_options(layout, depth),
        **options,
    }
    return ModelConfig(**fields)
