"""Names of image transformers in other projects -> ours. Pure: names and tensors in, names and tensors out.

A naming scheme is a table of rules like those of key_names.py, but read in one direction and with several names for one
parameter: projects that share a scheme differ in a name or two. `#` stands for a block number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uniformerv2.errors import CheckpointError
from uniformerv2.weights.key_names import Rule, StateDict, first_of, layer, packed_layer, to_ours
from uniformerv2.weights.other_models import refuse_other_models
from uniformerv2.weights.unwrapping import Weights, is_averaged, no_averaged_weights

BLOCK, POOL = "backbone.blocks.#", "backbone.pool"
STEM, POSITIONS = "backbone.patch_embedding.weight", "backbone.position_embedding"


def _parameter(ours: str, *theirs: str, singletons: tuple[int, ...] = ()) -> list[Rule]:
    """One tensor, under one of several names."""
    return [Rule(ours, name, singletons) for name in theirs]


def _tokens(class_token: str, positions: str, *registers: str) -> list[Rule]:
    """Tokens and positions that have a batch dimension."""
    return [
        *_parameter("backbone.class_token", class_token, singletons=(0, 1)),
        *_parameter("backbone.registers", *registers, singletons=(0,)),
        *_parameter(POSITIONS, positions, singletons=(0,)),
    ]


# timm's names, which DeiT, MAE, MoCo v3, DINO, DINOv2, DINOv3, BEiT and EVA share but for a few
_TIMM = [
    *_tokens("cls_token", "pos_embed", "reg_token", "register_tokens", "storage_tokens", "dist_token"),
    *layer("backbone.patch_embedding", "patch_embed.proj"),
    *layer("backbone.pre_norm", "norm_pre"),
    *layer("backbone.post_norm", "norm"),
    *layer("backbone.pool_norm", "fc_norm"),
    *layer(f"{BLOCK}.norm1", "blocks.#.norm1"),
    *layer(f"{BLOCK}.attention.qkv", "blocks.#.attn.qkv"),
    *_parameter(f"{BLOCK}.attention.key_mask", "blocks.#.attn.qkv.bias_mask"),  # DINOv3's own: its keys have no bias
    *(rule for part in "qkv" for rule in layer(f"{BLOCK}.attention.{part}", f"blocks.#.attn.{part}_proj")),
    *(Rule(f"{BLOCK}.attention.{part}.bias", f"blocks.#.attn.{part}_bias") for part in "qkv"),
    *_parameter(f"{BLOCK}.attention.relative_bias", "blocks.#.attn.relative_position_bias_table"),
    *_parameter("backbone.relative_bias", "rel_pos_bias.relative_position_bias_table"),
    *layer(f"{BLOCK}.attention.norm", "blocks.#.attn.norm", "blocks.#.attn.inner_attn_ln"),
    *layer(f"{BLOCK}.attention.proj", "blocks.#.attn.proj"),
    *_parameter(f"{BLOCK}.scale1", "blocks.#.ls1.gamma", "blocks.#.gamma_1"),
    *layer(f"{BLOCK}.norm2", "blocks.#.norm2"),
    *layer(f"{BLOCK}.mlp.fc1", "blocks.#.mlp.fc1", "blocks.#.mlp.w12"),
    *layer(f"{BLOCK}.mlp.gate", "blocks.#.mlp.fc1_g", "blocks.#.mlp.w1"),
    *layer(f"{BLOCK}.mlp.value", "blocks.#.mlp.fc1_x", "blocks.#.mlp.w2"),
    *layer(f"{BLOCK}.mlp.norm", "blocks.#.mlp.norm", "blocks.#.mlp.ffn_ln"),
    *layer(f"{BLOCK}.mlp.fc2", "blocks.#.mlp.fc2", "blocks.#.mlp.w3"),
    *_parameter(f"{BLOCK}.scale2", "blocks.#.ls2.gamma", "blocks.#.gamma_2"),
    *_parameter(f"{POOL}.query", "attn_pool.latent", singletons=(0,)),
    *layer(f"{POOL}.attention.q", "attn_pool.q"),
    *layer(f"{POOL}.attention.kv", "attn_pool.kv"),
    *layer(f"{POOL}.attention.proj", "attn_pool.proj"),
    *layer(f"{POOL}.norm", "attn_pool.norm"),
    *layer(f"{POOL}.mlp.fc1", "attn_pool.mlp.fc1"),
    *layer(f"{POOL}.mlp.fc2", "attn_pool.mlp.fc2"),
]

# OpenAI's CLIP, which open_clip, mmaction2's CLIP encoders and the Perception Encoder share
_CLIP_BLOCK = "transformer.resblocks.#"
_CLIP = [
    *_parameter("backbone.class_token", "class_embedding"),
    *_parameter(POSITIONS, "positional_embedding"),
    *layer("backbone.patch_embedding", "conv1"),
    *layer("backbone.pre_norm", "ln_pre"),
    *layer("backbone.post_norm", "ln_post"),
    *layer(f"{BLOCK}.norm1", f"{_CLIP_BLOCK}.ln_1"),
    *packed_layer(f"{BLOCK}.attention.qkv", f"{_CLIP_BLOCK}.attn.in_proj"),
    *layer(f"{BLOCK}.attention.proj", f"{_CLIP_BLOCK}.attn.out_proj"),
    *_parameter(f"{BLOCK}.scale1", f"{_CLIP_BLOCK}.ls_1.gamma"),
    *layer(f"{BLOCK}.norm2", f"{_CLIP_BLOCK}.ln_2"),
    *layer(f"{BLOCK}.mlp.fc1", f"{_CLIP_BLOCK}.mlp.c_fc"),
    *layer(f"{BLOCK}.mlp.fc2", f"{_CLIP_BLOCK}.mlp.c_proj"),
    *_parameter(f"{BLOCK}.scale2", f"{_CLIP_BLOCK}.ls_2.gamma"),
    *_parameter(f"{POOL}.query", "attn_pool.probe", singletons=(0,)),
    *packed_layer(f"{POOL}.attention.qkv", "attn_pool.attn.in_proj"),
    *layer(f"{POOL}.attention.proj", "attn_pool.attn.out_proj"),
    *layer(f"{POOL}.norm", "attn_pool.layernorm"),
    *layer(f"{POOL}.mlp.fc1", "attn_pool.mlp.c_fc"),
    *layer(f"{POOL}.mlp.fc2", "attn_pool.mlp.c_proj"),
]

# transformers' CLIP and SigLIP
_HF_CLIP_BLOCK = "encoder.layers.#"
_HF_CLIP = [
    *_parameter("backbone.class_token", "embeddings.class_embedding"),
    *_parameter(POSITIONS, "embeddings.position_embedding.weight"),
    *layer("backbone.patch_embedding", "embeddings.patch_embedding"),
    *layer("backbone.pre_norm", "pre_layrnorm"),  # their spelling
    *layer("backbone.post_norm", "post_layernorm"),
    *layer(f"{BLOCK}.norm1", f"{_HF_CLIP_BLOCK}.layer_norm1"),
    *(rule for part in "qkv" for rule in layer(f"{BLOCK}.attention.{part}", f"{_HF_CLIP_BLOCK}.self_attn.{part}_proj")),
    *layer(f"{BLOCK}.attention.proj", f"{_HF_CLIP_BLOCK}.self_attn.out_proj"),
    *layer(f"{BLOCK}.norm2", f"{_HF_CLIP_BLOCK}.layer_norm2"),
    *layer(f"{BLOCK}.mlp.fc1", f"{_HF_CLIP_BLOCK}.mlp.fc1"),
    *layer(f"{BLOCK}.mlp.fc2", f"{_HF_CLIP_BLOCK}.mlp.fc2"),
    *_parameter(f"{POOL}.query", "head.probe", singletons=(0,)),
    *packed_layer(f"{POOL}.attention.qkv", "head.attention.in_proj"),
    *layer(f"{POOL}.attention.proj", "head.attention.out_proj"),
    *layer(f"{POOL}.norm", "head.layernorm"),
    *layer(f"{POOL}.mlp.fc1", "head.mlp.fc1"),
    *layer(f"{POOL}.mlp.fc2", "head.mlp.fc2"),
]


def _hf_blocks(*blocks: str) -> list[Rule]:
    """Blocks of transformers' ViT kin, in the names of its version 5 and of the files on the hub."""
    attention, old = [f"{block}.attention" for block in blocks], [f"{block}.attention.attention" for block in blocks]
    return [
        rule
        for i, block in enumerate(blocks)
        for rule in (
            *layer(f"{BLOCK}.norm1", f"{block}.layernorm_before", f"{block}.norm1"),
            *layer(f"{BLOCK}.attention.q", f"{attention[i]}.q_proj", f"{old[i]}.query"),
            *layer(f"{BLOCK}.attention.k", f"{attention[i]}.k_proj", f"{old[i]}.key"),
            *layer(f"{BLOCK}.attention.v", f"{attention[i]}.v_proj", f"{old[i]}.value"),
            *layer(f"{BLOCK}.attention.proj", f"{attention[i]}.o_proj", f"{attention[i]}.output.dense"),
            *_parameter(
                f"{BLOCK}.attention.relative_bias",
                f"{block}.relative_position_bias.relative_position_bias_table",
                f"{old[i]}.relative_position_bias.relative_position_bias_table",
            ),
            *_parameter(f"{BLOCK}.scale1", f"{block}.lambda_1", f"{block}.layer_scale1.lambda1"),
            *layer(f"{BLOCK}.norm2", f"{block}.layernorm_after", f"{block}.norm2"),
            *layer(f"{BLOCK}.mlp.fc1", f"{block}.mlp.fc1", f"{block}.intermediate.dense", f"{block}.mlp.weights_in"),
            *layer(f"{BLOCK}.mlp.gate", f"{block}.mlp.gate_proj"),
            *layer(f"{BLOCK}.mlp.value", f"{block}.mlp.up_proj"),
            *layer(f"{BLOCK}.mlp.fc2", f"{block}.mlp.fc2", f"{block}.output.dense"),
            *layer(f"{BLOCK}.mlp.fc2", f"{block}.mlp.weights_out", f"{block}.mlp.down_proj"),
            *_parameter(f"{BLOCK}.scale2", f"{block}.lambda_2", f"{block}.layer_scale2.lambda1"),
        )
    ]


_HF_VIT = [
    *_tokens(
        "embeddings.cls_token",
        "embeddings.position_embeddings",
        "embeddings.register_tokens",
        "embeddings.distillation_token",
    ),
    *layer("backbone.patch_embedding", "embeddings.patch_embeddings.projection"),
    *layer("backbone.post_norm", "layernorm"),
    *layer("backbone.pool_norm", "pooler.layernorm"),
    *_parameter(
        "backbone.relative_bias",
        "shared_position_bias.relative_position_bias_table",
        "encoder.relative_position_bias.relative_position_bias_table",
    ),
    *_hf_blocks("layers.#", "encoder.layer.#"),
]

_HF_DINOV3 = [
    *_tokens("embeddings.cls_token", "embeddings.position_embeddings", "embeddings.register_tokens"),
    *layer("backbone.patch_embedding", "embeddings.patch_embeddings"),
    *layer("backbone.post_norm", "norm"),
    *_hf_blocks("layer.#", "model.layer.#"),
]


@dataclass(frozen=True)
class NamingScheme:
    """The key names of a project, recognised by the patch embedding and the first block."""

    stem: str
    blocks: tuple[str, ...]
    rules: list[Rule]


NAMING_SCHEMES = {
    "timm": NamingScheme("patch_embed.proj.weight", ("blocks.0.",), _TIMM),
    "OpenAI CLIP": NamingScheme("conv1.weight", ("transformer.resblocks.0.",), _CLIP),
    "transformers CLIP": NamingScheme("embeddings.patch_embedding.weight", ("encoder.layers.0.",), _HF_CLIP),
    "transformers ViT": NamingScheme(
        "embeddings.patch_embeddings.projection.weight", ("layers.0.", "encoder.layer.0."), _HF_VIT
    ),
    "transformers DINOv3": NamingScheme(
        "embeddings.patch_embeddings.weight", ("layer.0.", "model.layer.0."), _HF_DINOV3
    ),
}

# keys outside of the encoder: heads, projections, parts for pretraining only, constants
LEFT_OUT = re.compile(
    r"(head|head_dist|fc|pre_logits|classifier|\w+_classifier|lm_head|pooler\.dense|projectors|decoder\w*"
    r"|local_cls_norm|text\w*|token_embedding|ln_final)\..*"
    r"|proj|decoder\w*|(embeddings\.)?mask_token|logit_scale|logit_bias|text_projection"
    r"|input_resolution|context_length|vocab_size"
    r"|.*\.(relative_position_index|position_ids|k_bias)|(.*\.)?rope(_embed\w*)?\.(freqs_cos|freqs_sin|periods|inv_freq)"
)


@dataclass(frozen=True)
class ImageEncoder:
    """An image encoder under our names; tensors that are one here and several there are joined.

    `state` has a stem of (width, 3, patch, patch), and zeros as biases where a kind of layer has no bias in any block.
    """

    scheme: str  # a key of NAMING_SCHEMES
    prefix: str
    state: StateDict
    left_out: tuple[str, ...]
    zero_biases: tuple[str, ...]  # kinds of layers whose biases are zeros that no file had
    keys_without_bias: bool  # queries and values have biases, keys have none (BEiT, EVA, DINOv3)


def find_encoder(keys: Iterable[str], weights: Weights = "model") -> tuple[str, str] | None:
    """The naming scheme (a key of `NAMING_SCHEMES`) and the prefix of an image encoder; None where there is none."""
    keys = list(keys)
    found = [
        (name, key.removesuffix(scheme.stem))
        for name, scheme in NAMING_SCHEMES.items()
        for key in keys
        if key == scheme.stem or key.endswith("." + scheme.stem)
    ]
    encoders = [
        (name, prefix)
        for name, prefix in found
        if any(key.startswith(tuple(prefix + block for block in NAMING_SCHEMES[name].blocks)) for key in keys)
    ]
    if weights == "ema":
        encoders = [pair for pair in encoders if is_averaged(pair[1]) or re.search("momentum|teacher", pair[1])]

    def rank(pair: tuple[str, str]) -> tuple[bool, bool, int]:
        # the momentum encoder of MoCo and the student of DINO are not evaluated by their authors
        return is_averaged(pair[1]), bool(re.search("momentum|student", pair[1])), len(pair[1])

    return min(encoders, key=rank, default=None)


def rename_encoder(
    state: Mapping[str, Tensor], *, source: str = "the state dict", weights: Weights = "model"
) -> ImageEncoder:
    """Find the image encoder in a state dict and rename it.

    Args:
        state: a state dict of any known naming scheme, under any prefix. Text towers, heads and decoders are left out.
            Tensors are not copied, except where several become one.
        source: its name in errors.
        weights: which, where the names of averaged weights have a prefix of their own.

    Raises:
        CheckpointError: no image transformer of a known naming scheme, or tensors without a counterpart here.
    """
    refuse_other_models(state, source)
    found = find_encoder(state, weights)
    if found is None and weights == "ema" and find_encoder(state):
        raise no_averaged_weights(source)
    if found is None:
        raise CheckpointError(
            f"{source}: no image transformer in keys like {first_of(state)}; the known names are those of "
            f"{', '.join(NAMING_SCHEMES)}"
        )
    scheme, prefix = found
    inside = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    ours, unknown = to_ours(inside, NAMING_SCHEMES[scheme].rules)
    if unexpected := [prefix + key for key in unknown if not LEFT_OUT.fullmatch(key)]:
        raise CheckpointError(f"{source}: our image transformer has no place for {first_of(unexpected)}")
    left_out = [*(key for key in state if not key.startswith(prefix)), *(prefix + key for key in unknown)]
    queries, keys = (f"backbone.blocks.0.attention.{part}.bias" in ours for part in "qk")
    zeros = _join_all(ours)
    ours[STEM] = _image_stem(ours[STEM], source)
    return ImageEncoder(scheme, prefix, ours, tuple(left_out), tuple(zeros), queries and not keys)


def depth_of(state: Iterable[str]) -> int:
    """Number of blocks in tensors under our names."""
    return 1 + max((int(key.split(".")[2]) for key in state if key.startswith("backbone.blocks.")), default=-1)


def _join_all(state: StateDict) -> list[str]:
    """Join tensors that are one here, in place; returns the kinds of layers that had no bias."""
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
    """Make one linear layer of several. A part without a bias in any module gets zeros if other parts have one."""
    biased = {part for part in parts if any(f"{module}.{part}.bias" in state for module in modules)}
    for module in modules:
        weights = {part: state.pop(f"{module}.{part}.weight") for part in parts if f"{module}.{part}.weight" in state}
        biases = {part: state.pop(f"{module}.{part}.bias") for part in parts if f"{module}.{part}.bias" in state}
        if len(weights) == 1:  # a plain MLP whose layer is named like the value of a gated one
            (state[f"{module}.{whole}.weight"],) = weights.values()
        elif weights:
            state[f"{module}.{whole}.weight"] = torch.cat(list(weights.values()))
        if biases and biases.keys() == biased:
            example = next(iter(biases.values()))
            rows = {part: len(weights[part]) for part in weights} or dict.fromkeys(parts, len(example))
            joined = [biases.get(part, example.new_zeros(count)) for part, count in rows.items()]
            state[f"{module}.{whole}.bias"] = torch.cat(joined)


def _zero_biases(state: StateDict, blocks: Sequence[str], kind: str) -> bool:
    """Zeros for a kind of layer that has no bias in any block."""
    if any(f"{block}.{kind}.bias" in state for block in blocks):
        return False
    for block in blocks:
        if (weight := state.get(f"{block}.{kind}.weight")) is not None:
            state[f"{block}.{kind}.bias"] = weight.new_zeros(weight.shape[0])
    return True


def _image_stem(stem: Tensor, source: str) -> Tensor:
    """A patch embedding as (width, 3, patch, patch), from the other shapes that are in use."""
    if stem.ndim == 2:  # SigLIP 2 for images of any shape: a linear layer on a patch's pixels, channels last
        side = math.isqrt(stem.shape[1] // 3)
        stem = stem.view(stem.shape[0], side, side, 3).permute(0, 3, 1, 2)
    if stem.ndim == 5 and stem.shape[2] == 1:
        stem = stem.squeeze(2)
    if stem.ndim != 4 or stem.shape[1] != 3 or stem.shape[2] != stem.shape[3]:
        raise CheckpointError(
            f"{source}: its patch embedding is {tuple(stem.shape)}, expected (width, 3, patch, patch) of an image "
            "transformer; load_model reads video models"
        )
    return stem
