"""Image transformers of other projects: their family, their architecture, and what had to be assumed.

The naming scheme follows from the keys (image_key_names.py), the architecture from the tensors, the family from both;
the family supplies what no tensor tells. Hints take precedence over such assumptions, options over hints.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from uniformerv2.errors import CheckpointError
from uniformerv2.model.config import Activation, ModelConfig, Pool, RotaryEmbedding
from uniformerv2.weights.image_hints import Hints
from uniformerv2.weights.image_key_names import POSITIONS, STEM, ImageEncoder, depth_of, rename_encoder
from uniformerv2.weights.key_names import StateDict, first_of
from uniformerv2.weights.unwrapping import Weights

Constants = tuple[float, float, float]
Grid = tuple[int, int]

HEAD_DIM = 64  # channels of a head in all published widths but those of HEADS
HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16, 1792: 16, 4096: 32}
HEADS_OF = {
    ("DINOv3", 1280): 20,
    ("MoCo v3", 384): 12,
    ("Perception Encoder", 1536): 16,
    ("SigLIP", 1536): 16,
}
OPENAI_WIDTHS = (768, 1024)  # of OpenAI's published CLIP transformers

MEAN_STD: dict[str, tuple[Constants, Constants]] = {
    "0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
FRAME_EMBEDDINGS = {"class_token": "class token", "mean": "mean of the patches", "attention": "attention pool"}


@dataclass(frozen=True)
class Family:
    """What the models of a family have in common and no tensor tells."""

    constants: str  # a key of MEAN_STD
    norm_eps: float = 1e-6
    norm_eps_transformers: float = 1e-6  # the default there
    pool_heads: int = 0  # 0: as many as in the blocks


FAMILIES = {
    "ViT": Family("0.5", norm_eps_transformers=1e-12),
    "DeiT": Family("ImageNet", norm_eps_transformers=1e-12),
    "DeiT III": Family("ImageNet"),
    "MAE": Family("ImageNet", norm_eps_transformers=1e-12),
    "DINO": Family("ImageNet"),
    "MoCo v3": Family("ImageNet"),
    "BEiT": Family("0.5", norm_eps_transformers=1e-12),
    "CLIP": Family("CLIP", norm_eps=1e-5, norm_eps_transformers=1e-5),
    "SigLIP": Family("0.5"),
    "DINOv2": Family("ImageNet"),
    "DINOv3": Family("ImageNet", norm_eps=1e-5, norm_eps_transformers=1e-5),
    "EVA": Family("CLIP"),
    "EVA-02": Family("CLIP"),
    "Perception Encoder": Family("0.5", norm_eps=1e-5, pool_heads=8),
}


@dataclass(frozen=True)
class ImageModel:
    """An image transformer under our names.

    `config` describes the image transformer alone: no global stages, no local blocks. `state` has a stem of
    (width, 3, patch, patch). `report` lists what was recognised, assumed and left out.
    """

    family: str
    config: ModelConfig
    state: StateDict
    mean: Constants
    std: Constants
    report: tuple[str, ...]


def read_image_model(
    state: Mapping[str, Tensor],
    hints: Hints | None = None,
    *,
    source: str = "the state dict",
    weights: Weights = "model",
    **given: Any,
) -> ImageModel:
    """Recognise an image transformer and rename its tensors.

    Args:
        state: a state dict of any known naming scheme, see `rename_encoder`. Tensors may be on the meta device.
        hints: facts besides the tensors.
        source, weights: as of `rename_encoder`.
        given: fields of `ModelConfig` of the image transformer; they replace hints and what tensors tell. With
            `post_norm=False` or another `pool`, tensors that are no longer needed are left out.

    Raises:
        CheckpointError: no image transformer, tensors without a counterpart here, or values that contradict each
            other.
    """
    hints = hints or Hints()
    encoder = rename_encoder(state, source=source, weights=weights)
    try:
        grid, class_position = _take_positions(encoder.state, given.get("image_size") or hints.image_size)
        family = _family(encoder, grid, class_position, state, given)
        fields, assumed = _architecture(encoder, family, hints, grid)
        config = ModelConfig(**{**fields, **given}, global_after=())
        if hints.rotary and config.rotary is None:
            raise ValueError("rotary positions of an unknown kind; give rotary")
    except KeyError as error:
        raise CheckpointError(f"{source}: {error.args[0]} (as this package calls it) is missing") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: {error}") from error
    usual = FAMILIES[family].constants
    mean, std = MEAN_STD[usual]
    assumed = {name: value for name, value in assumed.items() if name not in given}
    if not (hints.mean and hints.std):
        assumed["mean and std"] = f"of {usual}"
    dropped = _drop_unused(encoder.state, config)
    report = _report(encoder, family, config, assumed, dropped)
    return ImageModel(family, config, encoder.state, hints.mean or mean, hints.std or std, tuple(report))


def _take_positions(state: StateDict, image_size: Grid | None) -> tuple[Grid | None, bool]:
    """The grid that positions are made for, and whether the class token has a position.

    Leaves one row of positions for the class token, if there is one: zeros where it had none. Positions of registers
    are added to them.
    """
    patch = state[STEM].shape[-1]
    expected = (image_size[0] // patch, image_size[1] // patch) if image_size else None
    table = state.get("backbone.blocks.0.attention.relative_bias")
    bias_grid = None if table is None else _grid(_distances, table.shape[0] - 3, expected, "relative biases")
    positions = state.get(POSITIONS)
    if positions is None:
        return bias_grid, False
    class_rows, registers = int("backbone.class_token" in state), state.get("backbone.registers")
    prefix = class_rows + (0 if registers is None else registers.shape[0])
    for extra in (class_rows, 0, prefix):
        if grid := _grid(math.prod, positions.shape[0] - extra, expected, ""):
            break
    else:
        raise ValueError(f"{positions.shape[0]} position embeddings are no square grid; give image_size")
    own, patches = positions[:extra], positions[extra:]
    if registers is not None and extra > class_rows:
        state["backbone.registers"] = registers + own[class_rows:]
        state[POSITIONS] = torch.cat([own[:class_rows], patches])
    elif class_rows and not extra:
        state[POSITIONS] = torch.cat([positions.new_zeros(1, positions.shape[1]), patches])
    return grid, bool(class_rows and extra)


def _distances(grid: Grid) -> int:
    """Number of distances between two patches of a grid."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)


def _grid(count: Callable[[Grid], int], wanted: int, expected: Grid | None, what: str) -> Grid | None:
    """The grid with that many patches or distances: the expected one if they are as many, else a square."""
    side = math.isqrt(max(wanted, 0))
    for grid in (expected, (side, side), (side // 2 + 1, side // 2 + 1)):
        if grid and wanted > 0 and count(grid) == wanted:
            return grid
    if what:
        raise ValueError(f"{wanted} {what} fit no square grid; give image_size")
    return None


def _family(
    encoder: ImageEncoder,
    grid: Grid | None,
    class_position: bool,
    keys: Mapping[str, Tensor],
    given: Mapping[str, Any],
) -> str:
    """A key of `FAMILIES`. The order of the tests matters: each assumes that the former ones failed."""
    state, scheme = encoder.state, encoder.scheme
    pre_norm, post_norm, pool, class_token, registers, scale, biases = (
        f"backbone.{name}" in state
        for name in (
            "pre_norm.weight",
            "post_norm.weight",
            "pool.query",
            "class_token",
            "registers",
            "blocks.0.scale1",
            "blocks.0.attention.relative_bias",
        )
    )
    if pre_norm or scheme == "OpenAI CLIP":
        # the Perception Encoder's variants for language and dense prediction have no final norm; some CLIP files too
        perception = pool or (not post_norm and (scale or scheme == "timm"))
        return "Perception Encoder" if perception else "CLIP"
    if scheme == "transformers CLIP" or (pool and not class_token):
        return "SigLIP"
    if biases:
        return "BEiT"
    if scheme == "transformers DINOv3" or (registers and class_token and grid is None):
        return "DINOv3"
    if encoder.keys_without_bias and grid is not None:
        return "EVA-02" if _gated(state) else "EVA"
    if grid is None and "rotary" not in given:
        raise ValueError("no positions: neither an embedding nor relative biases, and not DINOv3; give rotary")
    if scale:
        return "DINOv2" if registers or class_position else "DeiT III"
    return _plain_family(encoder, keys)


def _plain_family(encoder: ImageEncoder, keys: Mapping[str, Tensor]) -> str:
    """Families of the plain architecture are distinguished by the other parts of their files."""
    if any(".decoder" in f".{key}" for key in keys):
        return "MAE"
    if encoder.prefix.endswith(("base_encoder.", "momentum_encoder.")):
        return "MoCo v3"
    if any(key.endswith(("dist_token", "distillation_token")) for key in keys):
        return "DeiT"
    if any("head.last_layer" in key for key in keys):
        return "DINO"
    return "ViT"


def _gated(state: StateDict) -> bool:
    return state["backbone.blocks.0.mlp.fc1.weight"].shape[0] == 2 * state["backbone.blocks.0.mlp.fc2.weight"].shape[1]


def _architecture(
    encoder: ImageEncoder, family: str, hints: Hints, grid: Grid | None
) -> tuple[dict[str, Any], dict[str, object]]:
    """Fields of `ModelConfig`, and those of them that were assumed."""
    state, known = encoder.state, FAMILIES[family]
    width, _, _, patch = state[STEM].shape
    has = {name.removeprefix("backbone.") for name in state}
    hidden = state["backbone.blocks.0.mlp.fc2.weight"].shape[1]
    gated = _gated(state)
    assumed: dict[str, object] = {}

    def hint_or(name: str, hint: Any, default: Any) -> Any:
        if hint is None:
            assumed[name] = default
        return default if hint is None else hint

    eps = known.norm_eps_transformers if encoder.scheme.startswith("transformers") else known.norm_eps
    table = state.get("backbone.blocks.0.attention.relative_bias")
    heads = hints.heads if table is None else table.shape[1]
    usual_heads = HEADS_OF.get((family, width)) or HEADS.get(width) or max(width // HEAD_DIM, 1)
    grid_size = (grid[0] * patch, grid[1] * patch) if grid else None
    fields: dict[str, Any] = {
        "width": width,
        "depth": depth_of(state),
        "heads": hint_or("heads", heads, usual_heads),
        "patch_size": patch,
        "image_size": grid_size or hint_or("image_size", hints.image_size, (224, 224)),
        "mlp_ratio": hidden / width,
        "gated_mlp": gated,
        "activation": _activation(hint_or("activation", hints.activation, _usual_activation(encoder, family)), gated),
        "norm_eps": hint_or("norm_eps", hints.norm_eps, eps),
        "patch_bias": "patch_embedding.bias" in has,
        "class_token": "class_token" in has,
        "register_tokens": state["backbone.registers"].shape[0] if "registers" in has else 0,
        "position_embedding": "position_embedding" in has,
        "rotary": _rotary(family, hints, grid, "class_token" in has),
        "relative_bias": table is not None,
        "layer_scale": "blocks.0.scale1" in has,
        # EVA-02-E alone has this width
        "norm_after": hints.norm_after or (family == "EVA" and width == 1792),
        "attention_norm": "blocks.0.attention.norm.weight" in has,
        "mlp_norm": "blocks.0.mlp.norm.weight" in has,
        "pre_norm": "pre_norm.weight" in has,
        "post_norm": "post_norm.weight" in has,
        "pool": _pool(has, family, hints),
        "pool_norm": "pool_norm.weight" in has,
    }
    if "pool.query" in has:
        fields["pool_heads"] = hint_or("pool_heads", hints.pool_heads, known.pool_heads or fields["heads"])
        fields["pool_mlp_ratio"] = state["backbone.pool.mlp.fc2.weight"].shape[1] / width
    return fields, assumed


def _usual_activation(encoder: ImageEncoder, family: str) -> Activation:
    """OpenAI's CLIP computes QuickGELU, open_clip's own models GELU, under the same key names."""
    state = encoder.state
    if family == "SigLIP" and encoder.scheme != "timm":
        return "gelu_tanh"
    if family != "CLIP" or encoder.scheme == "timm":
        return "gelu"
    openai = state[STEM].shape[0] in OPENAI_WIDTHS and "backbone.blocks.0.scale1" not in state
    return "quick_gelu" if openai else "gelu"


def _activation(name: str, gated: bool) -> Activation:
    if gated and name in ("silu", "swish"):
        return "gelu"  # not used: a gated MLP is SwiGLU
    if name not in get_args(Activation):
        raise ValueError(f"activation {name!r} is none of {', '.join(get_args(Activation))}")
    return name  # type: ignore[return-value]


def _rotary(family: str, hints: Hints, grid: Grid | None, class_token: bool) -> RotaryEmbedding | None:
    """The positions of each family's patches, see `RotaryEmbedding`."""
    if family == "DINOv3":
        turn = 4 * math.pi  # from -2 pi to 2 pi
        return RotaryEmbedding(hints.rotary_base or 100.0, (turn, turn), offset=0.5, start=-turn / 2, halves=True)
    if family == "EVA-02":
        rows, columns = hints.rotary_grid or (16, 16)
        return RotaryEmbedding(span=(float(rows), float(columns)))
    if family == "Perception Encoder":
        rows, columns = hints.rotary_grid or grid or (16, 16)
        return RotaryEmbedding(span=(float(rows), float(columns)), offset=float(class_token), columns_first=True)
    return None


def _pool(has: set[str], family: str, hints: Hints) -> Pool:
    """How a frame is pooled: as its configuration says if the tensors allow it, else as they suggest."""
    possible: dict[Pool, bool] = {"class_token": "class_token" in has, "attention": "pool.query" in has, "mean": True}
    if hints.pool and possible[hints.pool]:
        return hints.pool
    if possible["attention"]:
        return "attention"
    # BEiT pools its patches, whether or not it was fine-tuned; a norm after pooling is that of a mean elsewhere too
    means = family == "BEiT" or ("pool_norm.weight" in has and "post_norm.weight" not in has)
    return "class_token" if possible["class_token"] and not means else "mean"


def _drop_unused(state: StateDict, config: ModelConfig) -> list[str]:
    """Remove tensors that the options make unneeded; returns their names."""
    unused = {
        "post_norm.": not config.post_norm,
        "pool_norm.": not config.pool_norm,
        "pool.": config.pool != "attention",
    }
    prefixes = tuple(f"backbone.{name}" for name, drop in unused.items() if drop)
    dropped = [name for name in state if name.startswith(prefixes)] if prefixes else []
    for name in dropped:
        del state[name]
    return dropped


def _report(
    encoder: ImageEncoder, family: str, config: ModelConfig, assumed: Mapping[str, object], dropped: list[str]
) -> list[str]:
    height, width = config.image_size
    names = f"{encoder.scheme} names" + (f" under {encoder.prefix}" if encoder.prefix else "")
    lines = [
        f"recognised {family} ({names}): {config.width} wide, {config.depth} blocks, patches of {config.patch_size} "
        f"pixels, images of {height}x{width}; frame embedding: {FRAME_EMBEDDINGS[config.pool]}"
    ]
    if assumed:
        values = ", ".join(f"{name} {value}" for name, value in assumed.items())
        lines.append(f"assumed: {values}")
    if encoder.zero_biases:
        lines.append(f"no biases in {', '.join(encoder.zero_biases)}: zeros")
    if left_out := [*_groups(encoder.left_out), *dropped]:
        lines.append(f"left out: {first_of(left_out, 12)}")
    return lines


def _groups(keys: tuple[str, ...]) -> list[str]:
    """Names of modules instead of those of their tensors."""
    counts: dict[str, int] = {}
    for key in keys:
        parts = re.sub(r"(\.\d.*|\.weight|\.bias)$", "", key).split(".")
        module = ".".join(parts[:2])
        counts[module] = counts.get(module, 0) + 1
    return [name if count == 1 else f"{name} ({count} tensors)" for name, count in counts.items()]
