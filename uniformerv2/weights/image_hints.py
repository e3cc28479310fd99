"""Hints: facts about an image transformer that its tensors lack, such as heads, activation, norms, preprocessing.

Read from the metadata of a file, the JSON files of a hub repository, or a live module. Pure: mappings and attributes
in, `Hints` out; neither timm nor transformers is imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

from torch import nn

from uniformerv2.model.config import Pool
from uniformerv2.text import parse_json

# other names of gelu_tanh, quick_gelu and gelu
ACTIVATIONS = {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "GELUTanh": "gelu_tanh",
    "QuickGELU": "quick_gelu",
    "GELU": "gelu",
    "SiLU": "silu",  # of gated MLPs, which are SwiGLU
}
POOLS: dict[str, Pool] = {"token": "class_token", "avg": "mean", "map": "attention"}  # timm's names

# timm's SigLIP models that compute GELU by tanh; the others compute it exactly
TIMM_TANH = re.compile(
    r"vit_(base_patch32_siglip(_gap)?_256|large_patch16_siglip(_gap)?_512|(so400m|giantopt)_patch16_siglip(_gap)?_\d+)"
)


@dataclass(frozen=True)
class Hints:
    """Facts about an image transformer besides its tensors; None where unknown.

    `activation` may be one that our models lack, so that the reader can refuse it by name. `image_size` is (height,
    width) in pixels; `rotary_grid` the rows and columns that rotary positions count to.
    """

    heads: int | None = None
    pool_heads: int | None = None
    norm_eps: float | None = None
    norm_after: bool | None = None
    activation: str | None = None
    pool: Pool | None = None
    image_size: tuple[int, int] | None = None
    rotary: bool | None = None  # whether patches have rotary positions
    rotary_base: float | None = None
    rotary_grid: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def or_else(self, other: Hints) -> Hints:
        """These hints, completed by those of another."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return Hints(**{name: getattr(other, name) if value is None else value for name, value in own.items()})


def hints_from_metadata(metadata: Mapping[str, str]) -> Hints:
    """From the metadata of a safetensors file, strings of JSON.

    Known are `heads`, `mean`, `std`, `img_size`, `global_pool`, `timm_model` (timm's name of the architecture) and
    `overrides` (its changes). Other metadata is ignored.
    """
    values = {key: _json(value) for key, value in metadata.items()}
    overrides = values.get("overrides")
    overrides = overrides if isinstance(overrides, dict) else {}
    own = Hints(
        heads=_whole(values.get("heads")) or _whole(overrides.get("num_heads")),
        image_size=_pair(values.get("img_size")),
        pool=POOLS.get(str(values.get("global_pool"))),
        mean=_three(values.get("mean")),
        std=_three(values.get("std")),
    )
    return own.or_else(hints_from_timm_name(metadata.get("timm_model", "")))


def hints_from_timm_name(name: str) -> Hints:
    """From timm's name of an architecture, with or without owner and tag; nothing from an empty one."""
    name = name.rpartition("/")[2].partition(".")[0]
    if not name:
        return Hints()
    size = re.search(r"patch(\d+)_(\d+)$", name)
    grid = int(size[2]) // int(size[1]) if size and name.startswith("vit_pe_") else None
    return Hints(
        heads=16 if name == "vit_base_patch16_gap_224" else None,
        activation="quick_gelu" if "quickgelu" in name else "gelu_tanh" if TIMM_TANH.fullmatch(name) else "gelu",
        rotary=True if "_rope_" in name else None,
        norm_after=True if "_rpn_" in name or "eva02_enormous" in name else None,
        rotary_grid=(grid, grid) if grid else None,
    )


def hints_from_config(config: Mapping[str, Any]) -> Hints:
    """From the configuration of a hub repository: of transformers, of timm, or of open_clip."""
    if "pretrained_cfg" in config or "architecture" in config:
        return _timm_config(config)
    if isinstance(config.get("model_cfg"), dict):
        return _open_clip_config(config)
    vision = config.get("vision_config")
    return _transformers_config(vision if isinstance(vision, dict) else config)


def hints_from_preprocessor(config: Mapping[str, Any]) -> Hints:
    """From the preprocessor_config.json of a hub repository."""
    return Hints(mean=_three(config.get("image_mean")), std=_three(config.get("image_std")))


def hints_from_module(module: nn.Module) -> Hints:
    """From a live module: from the `config` of transformers, or from attributes of timm's modules."""
    config = getattr(module, "config", None)
    if hasattr(config, "to_dict"):
        return hints_from_config(cast(Any, config).to_dict())
    blocks, pretrained = getattr(module, "blocks", None), getattr(module, "pretrained_cfg", None)
    if not isinstance(blocks, (nn.ModuleList, nn.Sequential)) or not len(blocks):
        return Hints()
    block, pool, rope = blocks[0], getattr(module, "attn_pool", None), getattr(module, "rope", None)
    own = Hints(
        heads=_whole(getattr(getattr(block, "attn", None), "num_heads", None)),
        pool_heads=_whole(getattr(pool, "num_heads", None)),
        # the position of the norms follows from the class of timm's blocks alone
        norm_after=type(block).__name__ in ("ResPostBlock", "EvaBlockPostNorm") or None,
        norm_eps=getattr(getattr(block, "norm1", None), "eps", None),
        activation=_module_activation(getattr(getattr(block, "mlp", None), "act", None)),
        pool=POOLS.get(str(getattr(module, "global_pool", None))),
        image_size=_pair(getattr(getattr(module, "patch_embed", None), "img_size", None)),
        rotary=None if rope is None else True,
        rotary_base=getattr(rope, "temperature", None),
        rotary_grid=_pair(getattr(rope, "ref_feat_shape", None)),
    )
    return own.or_else(_timm_config({"pretrained_cfg": pretrained}) if isinstance(pretrained, dict) else Hints())


def _transformers_config(config: Mapping[str, Any]) -> Hints:
    mean_pooling, activation = config.get("use_mean_pooling"), config.get("hidden_act")
    if config.get("use_gated_mlp") and activation != "silu":
        activation = f"gated {activation}"
    return Hints(
        heads=_whole(config.get("num_attention_heads")),
        norm_eps=config.get("layer_norm_eps"),
        activation=ACTIVATIONS.get(str(activation), activation),
        pool=None if mean_pooling is None else "mean" if mean_pooling else "class_token",
        image_size=_pair(config.get("image_size")),
        rotary_base=config.get("rope_theta"),
    )


def _timm_config(config: Mapping[str, Any]) -> Hints:
    pretrained = config.get("pretrained_cfg") or {}
    size = pretrained.get("input_size")
    pool = config.get("global_pool", pretrained.get("global_pool"))
    own = Hints(
        pool=POOLS.get(str(pool)),
        image_size=_pair(size[1:]) if isinstance(size, (list, tuple)) and len(size) == 3 else None,
        mean=_three(pretrained.get("mean")),
        std=_three(pretrained.get("std")),
    )
    # the activation follows from the name alone
    return own.or_else(hints_from_timm_name(str(config.get("architecture", ""))))


def _open_clip_config(config: Mapping[str, Any]) -> Hints:
    model, preprocess = config["model_cfg"], config.get("preprocess_cfg") or {}
    vision = model.get("vision_cfg") or {}
    own = Hints(
        image_size=_pair(vision.get("image_size")),
        mean=_three(preprocess.get("mean")),
        std=_three(preprocess.get("std")),
    )
    if name := vision.get("timm_model_name"):
        return own.or_else(hints_from_timm_name(str(name)))
    width, per_head = _whole(vision.get("width")), _whole(vision.get("head_width")) or 64
    quick = bool(model.get("quick_gelu"))
    return own.or_else(Hints(heads=width // per_head if width else None, activation="quick_gelu" if quick else "gelu"))


def _module_activation(module: object) -> str | None:
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    name = type(module).__name__
    return None if module is None else ACTIVATIONS.get(name, name)


def _json(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return text


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _pair(value: Any) -> tuple[int, int] | None:
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(_whole(side) for side in pair):
        return None
    return pair[0], pair[1]


def _three(value: Any) -> tuple[float, float, float] | None:
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        return None
    return float(value[0]), float(value[1]), float(value[2])
