"""Names of image transformers in other projects -> ours. Pure: names and tensors in, names and tensors out.

A layout is a table of rules, as those of video models are, but read in one direction and with several names for one
parameter: whoever published a family changed a name or two. `#` stands for a block number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uniformerv2.errors import CheckpointError
from uniformerv2.weights.key_names import Rule, StateDict, first_of, to_ours

BLOCK, POOL = "backbone.blocks.#", "backbone.pool"
STEM, POSITIONS = "backbone.patch_embedding.weight", "backbone.position_embedding"


def _both(ours: str, *theirs: str) -> list[Rule]:
    """A module with a weight and a bias, under one of several names."""
    return [Rule(f"{ours}.{part}", f"{name}.{part}") for name in theirs for part in ("weight", "bias")]


def _packed(ours: str, theirs: str) -> list[Rule]:
    """The packed input projection of nn.MultiheadAttention."""
    return [Rule(f"{ours}.weight", f"{theirs}_weight"), Rule(f"{ours}.bias", f"{theirs}_bias")]


def _named(ours: str, *theirs: str, singletons: tuple[int, ...] = ()) -> list[Rule]:
    return [Rule(ours, name, singletons) for name in theirs]


def _tokens(class_token: str, positions: str, *registers: str) -> list[Rule]:
    """Tokens and positions that have a batch dimension."""
    return [
        *_named("backbone.class_token", class_token, singletons=(0, 1)),
        *_named("backbone.registers", *registers, singletons=(0,)),
        *_named(POSITIONS, positions, singletons=(0,)),
    ]


# timm's names, which DeiT, MAE, MoCo v3, DINO, DINOv2, DINOv3, BEiT and EVA share but for a few
_TIMM = [
    *_tokens("cls_token", "pos_embed", "reg_token", "register_tokens", "storage_tokens", "dist_token"),
    *_both("backbone.patch_embedding", "patch_embed.proj"),
    *_both("backbone.pre_norm", "norm_pre"),
    *_both("backbone.post_norm", "norm"),
    *_both("backbone.pool_norm", "fc_norm"),
    *_both(f"{BLOCK}.norm1", "blocks.#.norm1"),
    *_both(f"{BLOCK}.attention.qkv", "blocks.#.attn.qkv"),
    *_named(f"{BLOCK}.attention.key_mask", "blocks.#.attn.qkv.bias_mask"),  # DINOv3's own: its keys have no bias
    *(rule for part in "qkv" for rule in _both(f"{BLOCK}.attention.{part}", f"blocks.#.attn.{part}_proj")),
    *(Rule(f"{BLOCK}.attention.{part}.bias", f"blocks.#.attn.{part}_bias") for part in "qkv"),
    *_named(f"{BLOCK}.attention.relative_bias", "blocks.#.attn.relative_position_bias_table"),
    *_named("backbone.relative_bias", "rel_pos_bias.relative_position_bias_table"),
    *_both(f"{BLOCK}.attention.norm", "blocks.#.attn.norm", "blocks.#.attn.inner_attn_ln"),
    *_both(f"{BLOCK}.attention.proj", "blocks.#.attn.proj"),
    *_named(f"{BLOCK}.scale1", "blocks.#.ls1.gamma", "blocks.#.gamma_1"),
    *_both(f"{BLOCK}.norm2", "blocks.#.norm2"),
    *_both(f"{BLOCK}.mlp.fc1", "blocks.#.mlp.fc1", "blocks.#.mlp.w12"),
    *_both(f"{BLOCK}.mlp.gate", "blocks.#.mlp.fc1_g", "blocks.#.mlp.w1"),
    *_both(f"{BLOCK}.mlp.value", "blocks.#.mlp.fc1_x", "blocks.#.mlp.w2"),
    *_both(f"{BLOCK}.mlp.norm", "blocks.#.mlp.norm", "blocks.#.mlp.ffn_ln"),
    *_both(f"{BLOCK}.mlp.fc2", "blocks.#.mlp.fc2", "blocks.#.mlp.w3"),
    *_named(f"{BLOCK}.scale2", "blocks.#.ls2.gamma", "blocks.#.gamma_2"),
    *_named(f"{POOL}.query", "attn_pool.latent", singletons=(0,)),
    *_both(f"{POOL}.attention.q", "attn_pool.q"),
    *_both(f"{POOL}.attention.kv", "attn_pool.kv"),
    *_both(f"{POOL}.attention.proj", "attn_pool.proj"),
    *_both(f"{POOL}.norm", "attn_pool.norm"),
    *_both(f"{POOL}.mlp.fc1", "attn_pool.mlp.fc1"),
    *_both(f"{POOL}.mlp.fc2", "attn_pool.mlp.fc2"),
]

# OpenAI's CLIP, which open_clip, mmaction2's CLIP encoders and the Perception Encoder share
_CLIP_BLOCK = "transformer.resblocks.#"
_CLIP = [
    *_named("backbone.class_token", "class_embedding"),
    *_named(POSITIONS, "positional_embedding"),
    *_both("backbone.patch_embedding", "conv1"),
    *_both("backbone.pre_norm", "ln_pre"),
    *_both("backbone.post_norm", "ln_post"),
    *_both(f"{BLOCK}.norm1", f"{_CLIP_BLOCK}.ln_1"),
    *_packed(f"{BLOCK}.attention.qkv", f"{_CLIP_BLOCK}.attn.in_proj"),
    *_both(f"{BLOCK}.attention.proj", f"{_CLIP_BLOCK}.attn.out_proj"),
    *_named(f"{BLOCK}.scale1", f"{_CLIP_BLOCK}.ls_1.gamma"),
    *_both(f"{BLOCK}.norm2", f"{_CLIP_BLOCK}.ln_2"),
    *_both(f"{BLOCK}.mlp.fc1", f"{_CLIP_BLOCK}.mlp.c_fc"),
    *_both(f"{BLOCK}.mlp.fc2", f"{_CLIP_BLOCK}.mlp.c_proj"),
    *_named(f"{BLOCK}.scale2", f"{_CLIP_BLOCK}.ls_2.gamma"),
    *_named(f"{POOL}.query", "attn_pool.probe", singletons=(0,)),
    *_packed(f"{POOL}.attention.qkv", "attn_pool.attn.in_proj"),
    *_both(f"{POOL}.attention.proj", "attn_pool.attn.out_proj"),
    *_both(f"{POOL}.norm", "attn_pool.layernorm"),
    *_both(f"{POOL}.mlp.fc1", "attn_pool.mlp.c_fc"),
    *_both(f"{POOL}.mlp.fc2", "attn_pool.mlp.c_proj"),
]

# transformers' CLIP and SigLIP
_HF_CLIP_BLOCK = "encoder.layers.#"
_HF_CLIP = [
    *_named("backbone.class_token", "embeddings.class_embedding"),
    *_named(POSITIONS, "embeddings.position_embedding.weight"),
    *_both("backbone.patch_embedding", "embeddings.patch_embedding"),
    *_both("backbone.pre_norm", "pre_layrnorm"),  # their spelling
    *_both("backbone.post_norm", "post_layernorm"),
    *_both(f"{BLOCK}.norm1", f"{_HF_CLIP_BLOCK}.layer_norm1"),
    *(rule for part in "qkv" for rule in _both(f"{BLOCK}.attention.{part}", f"{_HF_CLIP_BLOCK}.self_attn.{part}_proj")),
    *_both(f"{BLOCK}.attention.proj", f"{_HF_CLIP_BLOCK}.self_attn.out_proj"),
    *_both(f"{BLOCK}.norm2", f"{_HF_CLIP_BLOCK}.layer_norm2"),
    *_both(f"{BLOCK}.mlp.fc1", f"{_HF_CLIP_BLOCK}.mlp.fc1"),
    *_both(f"{BLOCK}.mlp.fc2", f"{_HF_CLIP_BLOCK}.mlp.fc2"),
    *_named(f"{POOL}.query", "head.probe", singletons=(0,)),
    *_packed(f"{POOL}.attention.qkv", "head.attention.in_proj"),
    *_both(f"{POOL}.attention.proj", "head.attention.out_proj"),
    *_both(f"{POOL}.norm", "head.layernorm"),
    *_both(f"{POOL}.mlp.fc1", "head.mlp.fc1"),
    *_both(f"{POOL}.mlp.fc2", "head.mlp.fc2"),
]


def _hf_blocks(*blocks: str) -> list[Rule]:
    """Blocks of transformers' ViT kin, in the names of its version 5 and of the files on the hub."""
    attention, old = [f"{block}.attention" for block in blocks], [f"{block}.attention.attention" for block in blocks]
    return [
        rule
        for i, block in enumerate(blocks)
        for rule in (
            *_both(f"{BLOCK}.norm1", f"{block}.layernorm_before", f"{block}.norm1"),
            *_both(f"{BLOCK}.attention.q", f"{attention[i]}.q_proj", f"{old[i]}.query"),
            *_both(f"{BLOCK}.attention.k", f"{attention[i]}.k_proj", f"{old[i]}.key"),
            *_both(f"{BLOCK}.attention.v", f"{attention[i]}.v_proj", f"{old[i]}.value"),
            *_both(f"{BLOCK}.attention.proj", f"{attention[i]}.o_proj", f"{attention[i]}.output.dense"),
            *_named(
                f"{BLOCK}.attention.relative_bias",
                f"{block}.relative_position_bias.relative_position_bias_table",
                f"{old[i]}.relative_position_bias.relative_position_bias_table",
            ),
            *_named(f"{BLOCK}.scale1", f"{block}.lambda_1", f"{block}.layer_scale1.lambda1"),
            *_both(f"{BLOCK}.norm2", f"{block}.layernorm_after", f"{block}.norm2"),
            *_both(f"{BLOCK}.mlp.fc1", f"{block}.mlp.fc1", f"{block}.intermediate.dense", f"{block}.mlp.weights_in"),
            *_both(f"{BLOCK}.mlp.gate", f"{block}.mlp.gate_proj"),
            *_both(f"{BLOCK}.mlp.value", f"{block}.mlp.up_proj"),
            *_both(f"{BLOCK}.mlp.fc2", f"{block}.mlp.fc2", f"{block}.output.dense"),
            *_both(f"{BLOCK}.mlp.fc2", f"{block}.mlp.weights_out", f"{block}.mlp.down_proj"),
            *_named(f"{BLOCK}.scale2", f"{block}.lambda_2", f"{block}.layer_scale2.lambda1"),
        )
    ]


_HF_VIT = [
    *_tokens(
        "embeddings.cls_token",
        "embeddings.position_embeddings",
        "embeddings.register_tokens",
        "embeddings.distillation_token",
    ),
    *_both("backbone.patch_embedding", "embeddings.patch_embeddings.projection"),
    *_both("backbone.post_norm", "layernorm"),
    *_both("backbone.pool_norm", "pooler.layernorm"),
    *_named(
        "backbone.relative_bias",
        "shared_position_bias.relative_position_bias_table",
        "encoder.relative_position_bias.relative_position_bias_table",
    ),
    *_hf_blocks("layers.#", "encoder.layer.#"),
]

_HF_DINOV3 = [
    *_tokens("embeddings.cls_token", "embeddings.position_embeddings", "embeddings.register_tokens"),
    *_both("backbone.patch_embedding", "embeddings.patch_embeddings"),
    *_both("backbone.post_norm", "norm"),
    *_hf_blocks("layer.#", "model.layer.#"),
]


@dataclass(frozen=True)
class Layout:
    """Whose names: known by the patch embedding and the first block."""

    stem: str
    blocks: tuple[str, ...]
    rules: list[Rule]


LAYOUTS = {
    "timm": Layout("patch_embed.proj.weight", ("blocks.0.",), _TIMM),
    "OpenAI CLIP": Layout("conv1.weight", ("transformer.resblocks.0.",), _CLIP),
    "transformers CLIP": Layout("embeddings.patch_embedding.weight", ("encoder.layers.0.",), _HF_CLIP),
    "transformers ViT": Layout(
        "embeddings.patch_embeddings.projection.weight", ("layers.0.", "encoder.layer.0."), _HF_VIT
    ),
    "transformers DINOv3": Layout("embeddings.patch_embeddings.weight", ("layer.0.", "model.layer.0."), _HF_DINOV3),
}

# what an image transformer has beside its encoder: heads, projections, what only pretraining needs, constants
LEFT_OUT = re.compile(
    r"(head|head_dist|fc|pre_logits|classifier|\w+_classifier|lm_head|pooler\.dense|projectors|decoder\w*"
    r"|local_cls_norm|text\w*|token_embedding|ln_final)\..*"
    r"|proj|decoder\w*|(embeddings\.)?mask_token|logit_scale|logit_bias|text_projection"
    r"|input_resolution|context_length|vocab_size"
    r"|.*\.(relative_position_index|position_ids|k_bias)|(.*\.)?rope(_embed\w*)?\.(freqs_cos|freqs_sin|periods|inv_freq)"
)


@dataclass(frozen=True)
class Named:
    """An image encoder under our names, joined where several tensors there are one here.

    `state` has a stem of (width, 3, patch, patch), and biases of zeros where a kind of layer has none anywhere.
    """

    layout: str
    prefix: str
    state: StateDict
    left_out: tuple[str, ...]
    zero_biases: tuple[str, ...]  # kinds of layers whose biases are zeros that no file had
    keys_without_bias: bool  # queries and values have biases, keys have none (BEiT, EVA, DINOv3)


def find_layout(keys: Iterable[str]) -> tuple[str, str] | None:
    """The layout (a key of `LAYOUTS`) and the prefix of an image encoder's keys; None where there is none in them."""
    keys = list(keys)
    found = [
        (name, key.removesuffix(layout.stem))
        for name, layout in LAYOUTS.items()
        for key in keys
        if key == layout.stem or key.endswith("." + layout.stem)
    ]
    encoders = [
        (name, prefix)
        for name, prefix in found
        if any(key.startswith(tuple(prefix + block for block in LAYOUTS[name].blocks)) for key in keys)
    ]
    # the momentum encoder of MoCo and the student of DINO are not what their authors evaluate
    return min(encoders, key=lambda pair: (bool(re.search("momentum|student", pair[1])), len(pair[1])), default=None)


def to_our_names(state: Mapping[str, Tensor], *, source: str = "the state dict") -> Named:
    """Find the image encoder in a state dict and rename it.

    Args:
        state: a state dict of any known layout, under any prefix, with whatever else its file holds: text towers,
            heads and decoders are left out. Tensors are not copied but where several become one.
        source: what errors call it.

    Raises:
        CheckpointError: no image transformer of a known layout, or tensors that ours have no place for.
    """
    found = find_layout(state)
    if found is None:
        raise CheckpointError(
            f"{source}: no image transformer in keys like {first_of(state)}; known are the names of "
            f"{', '.join(LAYOUTS)}"
        )
    layout, prefix = found
    inside = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    ours, unknown = to_ours(inside, LAYOUTS[layout].rules)
    if unexpected := [prefix + key for key in unknown if not LEFT_OUT.fullmatch(key)]:
        raise CheckpointError(f"{source}: our image transformer has no place for {first_of(unexpected)}")
    left_out = [*(key for key in state if not key.startswith(prefix)), *(prefix + key for key in unknown)]
    queries, keys = (f"backbone.blocks.0.attention.{part}.bias" in ours for part in "qk")
    zeros = _join_all(ours)
    ours[STEM] = _image_stem(ours[STEM], source)
    return Named(layout, prefix, ours, tuple(left_out), tuple(zeros), queries and not keys)


def depth_of(state: Iterable[str]) -> int:
    """Blocks in a state under our names."""
    return 1 + max((int(key.split(".")[2]) for key in state if key.startswith("backbone.blocks.")), default=-1)


def _join_all(state: StateDict) -> list[str]:
    """Make one tensor of what is several there, in place; returns the kinds of layers that had no bias."""
    blocks = [f"backbone.blocks.{block}" for block in range(depth_of(state))]
    _join(state, [f"{block}.attention" for block in blocks], ("q", "k", "v"), "qkv")
    _join(state, [f"{block}.mlp" for block in blocks], ("gate", "value"), "fc1")
    _join(state, [f"{POOL}.attention"], ("q", "kv"), "qkv")
    for block in blocks:
        if state.pop(f"{block}.attention.key_mask", None) is not None:
            bias = state[f"{block}.attention.qkv.bias"].clone()
            bias.view(3, -1)[1] = 0
            state[f"{block}.attention.qkv.bias"] = bias
    if (shared := state.pop("backbone.relative_bias", None)) is not None:
        state.update({f"{block}.attention.relative_bias": shared for block in blocks})
    kinds = ("attention.qkv", "attention.proj", "mlp.fc1", "mlp.fc2")
    return [kind for kind in kinds if _zero_biases(state, blocks, kind)]


def _join(state: StateDict, modules: Sequence[str], parts: Sequence[str], whole: str) -> None:
    """Linear layers side by side as one. A part without a bias in any module gets zeros, if others have one."""
    biased = {part for part in parts if any(f"{module}.{part}.bias" in state for module in modules)}
    for module in modules:
        weights = {part: state.pop(f"{module}.{part}.weight") for part in parts if f"{module}.{part}.weight" in state}
        biases = {part: state.pop(f"{module}.{part}.bias") for part in parts if f"{module}.{part}.bias" in state}
        if len(weights) == 1:  # a plain MLP whose layer has the name that a gated one's value has
            (state[f"{module}.{whole}.weight"],) = weights.values()
        elif weights:
            state[f"{module}.{whole}.weight"] = torch.cat(list(weights.values()))
        if biases and biases.keys() == biased:
            rows = {part: weight.shape[0] for part, weight in weights.items()} or dict.fromkeys(
                parts, len(next(iter(biases.values())))
            )
            like = next(iter(biases.values()))
            state[f"{module}.{whole}.bias"] = torch.cat(
                [biases.get(part, like.new_zeros(count)) for part, count in rows.items()]
            )


def _zero_biases(state: StateDict, blocks: Sequence[str], kind: str) -> bool:
    """Zeros for a kind of layer that has no bias in any block."""
    if any(f"{block}.{kind}.bias" in state for block in blocks):
        return False
    for block in blocks:
        if (weight := state.get(f"{block}.{kind}.weight")) is not None:
            state[f"{block}.{kind}.bias"] = weight.new_zeros(weight.shape[0])
    return True


def _image_stem(stem: Tensor, source: str) -> Tensor:
    """(width, 3, patch, patch), from what else a patch embedding may be stored as."""
    if stem.ndim == 2:  # SigLIP 2 for pictures of any shape: a linear layer on a patch's pixels, channels last
        side = math.isqrt(stem.shape[1] // 3)
        stem = stem.view(stem.shape[0], side, side, 3).permute(0, 3, 1, 2)
    if stem.ndim == 5 and stem.shape[2] == 1:
        stem = stem.squeeze(2)
    if stem.ndim != 4 or stem.shape[1] != 3 or stem.shape[2] != stem.shape[3]:
        raise CheckpointError(
            f"{source}: a patch embedding of shape {tuple(stem.shape)} where an image transformer has "
            "(width, 3, patch, patch); load_model reads video models"
        )
    return stem
