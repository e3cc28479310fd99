"""Key names of video models in other projects <-> ours. Pure: names and tensors in, names and tensors out.

Each foreign format is a table of rules that is read in both directions. `#` stands for a block number. The key names of
image transformers are in image_key_names.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

from torch import Tensor

StateDict = dict[str, Tensor]


class Rule(NamedTuple):
    """One parameter under both names, and the dimensions of length one that only the foreign tensor has."""

    ours: str
    theirs: str
    singletons: tuple[int, ...] = ()


def layer(ours: str, *theirs: str, singletons: tuple[int, ...] = ()) -> list[Rule]:
    """A module with a weight and a bias, under one of several names; only the weight's shape may differ."""
    return [
        rule
        for name in theirs
        for rule in (Rule(f"{ours}.weight", f"{name}.weight", singletons), Rule(f"{ours}.bias", f"{name}.bias"))
    ]


def packed_layer(ours: str, theirs: str) -> list[Rule]:
    """The packed input projection of nn.MultiheadAttention."""
    return [Rule(f"{ours}.weight", f"{theirs}_weight"), Rule(f"{ours}.bias", f"{theirs}_bias")]


def _local_aggregator(ours: str, theirs: str) -> list[Rule]:
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return [
        *layer(f"{ours}.norm", f"{theirs}.pos_embed.0"),
        *(Rule(f"{ours}.norm.{name}", f"{theirs}.pos_embed.0.{name}") for name in statistics),
        # 1 x 1 x 1 convolutions there, linear layers here
        *layer(f"{ours}.reduce", f"{theirs}.pos_embed.1", singletons=(2, 3, 4)),
        *layer(f"{ours}.temporal", f"{theirs}.pos_embed.2", singletons=(3, 4)),
        *layer(f"{ours}.expand", f"{theirs}.pos_embed.3", singletons=(2, 3, 4)),
    ]


_BLOCK, _THEIR_BLOCK = "backbone.blocks.#", "backbone.transformer.resblocks.#"
_STAGE, _THEIR_STAGE = "global_blocks.#", "backbone.transformer.dec.#"

_OFFICIAL_BODY = [
    Rule("backbone.class_token", "backbone.class_embedding"),
    Rule("backbone.position_embedding", "backbone.positional_embedding"),
    Rule("backbone.patch_embedding.weight", "backbone.conv1.weight"),
    *layer("backbone.pre_norm", "backbone.ln_pre"),
    Rule("query", "backbone.transformer.temporal_cls_token", (0,)),
    Rule("mix", "backbone.transformer.balance"),
    *layer(f"{_BLOCK}.norm1", f"{_THEIR_BLOCK}.ln_1"),
    *packed_layer(f"{_BLOCK}.attention.qkv", f"{_THEIR_BLOCK}.attn.in_proj"),
    *layer(f"{_BLOCK}.attention.proj", f"{_THEIR_BLOCK}.attn.out_proj"),
    *layer(f"{_BLOCK}.norm2", f"{_THEIR_BLOCK}.ln_2"),
    *layer(f"{_BLOCK}.mlp.fc1", f"{_THEIR_BLOCK}.mlp.c_fc"),
    *layer(f"{_BLOCK}.mlp.fc2", f"{_THEIR_BLOCK}.mlp.c_proj"),
    *_local_aggregator(f"{_BLOCK}.local1", f"{_THEIR_BLOCK}.lmhra1"),
    *_local_aggregator(f"{_BLOCK}.local2", f"{_THEIR_BLOCK}.lmhra2"),
    *layer(f"{_STAGE}.position_encoding", "backbone.transformer.dpe.#"),
    *layer(f"{_STAGE}.query_norm", f"{_THEIR_STAGE}.ln_1"),
    *layer(f"{_STAGE}.context_norm", f"{_THEIR_STAGE}.ln_3"),
    *packed_layer(f"{_STAGE}.attention.qkv", f"{_THEIR_STAGE}.attn.in_proj"),
    *layer(f"{_STAGE}.attention.proj", f"{_THEIR_STAGE}.attn.out_proj"),
    *layer(f"{_STAGE}.mlp_norm", f"{_THEIR_STAGE}.ln_2"),
    *layer(f"{_STAGE}.mlp.fc1", f"{_THEIR_STAGE}.mlp.c_fc"),
    *layer(f"{_STAGE}.mlp.fc2", f"{_THEIR_STAGE}.mlp.c_proj"),
]

VideoFormat = Literal["ours", "official", "mmaction2"]

VIDEO_FORMATS: dict[str, list[Rule]] = {
    # OpenGVLab/UniFormerV2 @ 722a434
    "official": [
        *_OFFICIAL_BODY,
        *layer("head.norm", "backbone.transformer.proj.0"),
        *layer("head.linear", "backbone.transformer.proj.2"),
    ],
    # open-mmlab/mmaction2 @ 4d6c934
    "mmaction2": [
        *_OFFICIAL_BODY,
        *layer("head.norm", "backbone.transformer.norm"),
        *layer("head.linear", "cls_head.fc_cls"),
    ],
}


# keys that every file of a format has, and none of another; official heads come without "backbone." too
FORMAT_KEYS: dict[VideoFormat, re.Pattern[str]] = {
    "ours": re.compile(r"head\.(linear|norm)\..*|backbone\.(class_token|patch_embedding\..*)|global_blocks\..*"),
    "official": re.compile(r"(backbone\.)?transformer\.proj\.[02]\..*"),
    "mmaction2": re.compile(r"cls_head\..*|backbone\.transformer\.norm\..*"),
}
IGNORED_PREFIXES = {"mmaction2": "data_preprocessor."}  # of constants that are no weights


def formats_of(keys: Iterable[str]) -> dict[VideoFormat, str]:
    """The video formats that keys belong to, each with one such key; several formats are a mixture."""
    names = list(keys)
    found = {name: next((key for key in names if known.fullmatch(key)), None) for name, known in FORMAT_KEYS.items()}
    return {name: key for name, key in found.items() if key is not None}


def add_backbone_prefix(state: Mapping[str, Tensor]) -> StateDict:
    """Official tensors with the prefix `backbone.`, which some of the official files lack."""
    return {key if key.startswith("backbone.") else f"backbone.{key}": tensor for key, tensor in state.items()}


def to_ours(state: Mapping[str, Tensor], rules: list[Rule]) -> tuple[StateDict, list[str]]:
    """Rename foreign tensors; the second result lists the foreign keys without a rule."""
    return _rename(state, [(rule.theirs, rule.ours, rule, _squeeze) for rule in rules])


def from_ours(state: Mapping[str, Tensor], rules: list[Rule]) -> tuple[StateDict, list[str]]:
    """Rename our tensors; the second result lists our keys without a foreign name."""
    return _rename(state, [(rule.ours, rule.theirs, rule, _unsqueeze) for rule in rules])


Translation = tuple[str, str, Rule, Callable[[Tensor, Rule], Tensor]]


def first_of(keys: Iterable[str], limit: int = 5) -> str:
    """The first few of many names, for one line."""
    keys = list(keys)
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")


def _rename(state: Mapping[str, Tensor], translations: list[Translation]) -> tuple[StateDict, list[str]]:
    patterns = [
        (re.compile(re.escape(source).replace(r"\#", r"(\d+)")), target, rule, reshape)
        for source, target, rule, reshape in translations
    ]
    renamed: StateDict = {}
    unknown: list[str] = []
    for key, tensor in state.items():
        for pattern, target, rule, reshape in patterns:
            if match := pattern.fullmatch(key):
                renamed[target.replace("#", match[1]) if match.lastindex else target] = reshape(tensor, rule)
                break
        else:
            unknown.append(key)
    return renamed, unknown


def _squeeze(tensor: Tensor, rule: Rule) -> Tensor:
    fits = all(dim < tensor.ndim and tensor.shape[dim] == 1 for dim in rule.singletons)
    # a tensor of another shape is left as it is, for the strict comparison with the model to report it
    return tensor.squeeze(rule.singletons) if fits and rule.singletons else tensor


def _unsqueeze(tensor: Tensor, rule: Rule) -> Tensor:
    for dim in rule.singletons:
        tensor = tensor.unsqueeze(dim)
    return tensor
