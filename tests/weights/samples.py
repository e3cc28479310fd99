"""Small models, and state dicts of video models and image transformers in the names of other projects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models import BASE
from uniformerv2 import ModelConfig, Preprocessing, UniFormerV2
from uniformerv2.model.arming import fit_weights
from uniformerv2.weights.image_recognise import ImageModel
from uniformerv2.weights.key_names import VIDEO_FORMATS, StateDict, from_ours

CONFIG = replace(BASE, depth=2, local_blocks="attention", global_after=(1,), num_classes=3)
PREPROCESSING = Preprocessing(
    num_frames=5, size=(16, 24), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), channel_order="bgr"
)


def small_model(labels: Sequence[str] = ("run", "wälk", "a, b"), **changes: Any) -> UniFormerV2:
    """A model of ours with everything that a checkpoint keeps; `changes` are fields of its configuration."""
    torch.manual_seed(0)
    config = replace(CONFIG, **{"num_classes": len(labels), **changes})
    model = UniFormerV2(config, replace(PREPROCESSING, size=config.image_size), labels, "a guess")
    model.origin, model.licence = "a test", "MIT"
    return model


def assert_same(one: UniFormerV2, other: UniFormerV2) -> None:
    assert (one.config, one.preprocessing, one.labels) == (other.config, other.preprocessing, other.labels)
    assert (one.label_note, one.origin, one.licence) == (other.label_note, other.origin, other.licence)
    assert same_tensors(one.state_dict(), other.state_dict())


def same_tensors(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[key].dtype == second[key].dtype and torch.equal(first[key], second[key]) for key in second
    )


# --- other implementations

RELEASED = ModelConfig(
    width=64, depth=5, heads=1, patch_size=8, image_size=(24, 24), num_classes=400, global_after=(1, 2, 3, 4)
)


def foreign_state(config: ModelConfig = RELEASED, project: str = "official") -> StateDict:
    """Random weights of a video model in the names of another implementation."""
    torch.manual_seed(1)
    model = UniFormerV2(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return from_ours(model.state_dict(), VIDEO_FORMATS[project])[0]


# --- image transformers

META: Callable[..., Tensor] = lambda *shape: torch.empty(shape, device="meta")  # noqa: E731


def linear(name: str, rows: int, columns: int, *, bias: bool = True, rand: Callable[..., Tensor] = META) -> StateDict:
    return {f"{name}.weight": rand(rows, columns)} | ({f"{name}.bias": rand(rows)} if bias else {})


def norm(name: str, width: int, rand: Callable[..., Tensor] = META) -> StateDict:
    return {f"{name}.weight": rand(width), f"{name}.bias": rand(width)}


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> StateDict:
    return {prefix + key: tensor for key, tensor in state.items()}


def timm_state(
    width: int,
    depth: int,
    hidden: int,
    *,
    patch: int = 16,
    grid: int = 14,
    positions: int | None = None,
    class_token: bool = True,
    registers: int = 0,
    norms: tuple[str, ...] = ("norm",),
    pool: bool = False,
    rand: Callable[..., Tensor] = META,
    **block: Any,
) -> StateDict:
    """A state dict in timm's names.

    `positions`: rows of the embedding, 0 for none; default: with a class token. `block`: as of `timm_block`.
    """
    state = {"patch_embed.proj.weight": rand(width, 3, patch, patch)}
    state |= {} if "norm_pre" in norms else {"patch_embed.proj.bias": rand(width)}
    rows = grid * grid + class_token if positions is None else positions
    state |= {"pos_embed": rand(1, rows, width)} if rows else {}
    state |= {"cls_token": rand(1, 1, width)} if class_token else {}
    state |= {"reg_token": rand(1, registers, width)} if registers else {}
    for name in norms:
        state |= norm(name, width, rand)
    for number in range(depth):
        state |= timm_block(f"blocks.{number}", width, hidden, (2 * grid - 1) ** 2 + 3, rand, **block)
    if pool:
        state |= {"attn_pool.latent": rand(1, 1, width)} | norm("attn_pool.norm", width, rand)
        state |= linear("attn_pool.q", width, width, rand=rand) | linear("attn_pool.kv", 2 * width, width, rand=rand)
        state |= linear("attn_pool.proj", width, width, rand=rand)
        state |= linear("attn_pool.mlp.fc1", 4 * width, width, rand=rand)
        state |= linear("attn_pool.mlp.fc2", width, 4 * width, rand=rand)
    return state


def small_vit(**options: Any) -> StateDict:
    torch.manual_seed(0)
    small: dict[str, Any] = {"width": 8, "depth": 2, "hidden": 16, "patch": 2, "grid": 2, "rand": torch.randn}
    return timm_state(**{**small, **options})


def timm_block(
    name: str,
    width: int,
    hidden: int,
    distances: int,
    rand: Callable[..., Tensor],
    *,
    bias: str = "qkv",
    scale: str = "",
    gate: str = "",
    inner_norms: tuple[str, ...] = (),
    relative_heads: int = 0,
) -> StateDict:
    state = norm(f"{name}.norm1", width, rand) | norm(f"{name}.norm2", width, rand)
    if bias == "split":
        for part in "qkv":
            state |= linear(f"{name}.attn.{part}_proj", width, width, bias=part != "k", rand=rand)
    else:
        state |= linear(f"{name}.attn.qkv", 3 * width, width, bias=bias == "qkv", rand=rand)
    if bias == "qv":
        state |= {f"{name}.attn.q_bias": rand(width), f"{name}.attn.v_bias": rand(width)}
    if relative_heads:
        state[f"{name}.attn.relative_position_bias_table"] = rand(distances, relative_heads)
    state |= linear(f"{name}.attn.proj", width, width, rand=rand) | linear(f"{name}.mlp.fc2", width, hidden, rand=rand)
    if gate == "split":
        state |= linear(f"{name}.mlp.fc1_g", hidden, width, rand=rand)
        state |= linear(f"{name}.mlp.fc1_x", hidden, width, rand=rand)
    else:
        state |= linear(f"{name}.mlp.fc1", hidden * (2 if gate else 1), width, rand=rand)
    for inner in inner_norms:
        state |= norm(f"{name}.{inner}", hidden if "mlp" in inner else width, rand)
    return state | ({f"{name}.{scale.format(i)}": rand(width) for i in (1, 2)} if scale else {})


def clip_state(width: int, depth: int, *, patch: int = 16, grid: int = 14, post_norm: bool = True) -> StateDict:
    """A state dict in the names of OpenAI's CLIP, on the meta device."""
    state = {
        "class_embedding": META(width),
        "positional_embedding": META(grid * grid + 1, width),
        "conv1.weight": META(width, 3, patch, patch),
        **norm("ln_pre", width),
        **(norm("ln_post", width) if post_norm else {}),
    }
    for block in (f"transformer.resblocks.{number}" for number in range(depth)):
        state |= norm(f"{block}.ln_1", width) | norm(f"{block}.ln_2", width)
        state |= {f"{block}.attn.in_proj_weight": META(3 * width, width), f"{block}.attn.in_proj_bias": META(3 * width)}
        state |= linear(f"{block}.attn.out_proj", width, width)
        state |= linear(f"{block}.mlp.c_fc", 4 * width, width) | linear(f"{block}.mlp.c_proj", width, 4 * width)
    return state


def assert_fits(image: ImageModel) -> None:
    """Exactly the tensors of the architecture, of exactly its shapes."""
    with torch.device("meta"):
        model = UniFormerV2(image.config)
    fitted, _ = fit_weights(image.state, image.config, image.config)
    wanted = {key: value.shape for key, value in model.state_dict().items() if key.startswith("backbone.")}
    assert {key: value.shape for key, value in fitted.items()} == wanted
