"""Key names of other projects <-> ours. Pure: names and tensors in, names and tensors out.

Each foreign format is a table of rules that is read in both directions. `#` stands for a block number.
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


def _both(ours: str, theirs: str, singletons: tuple[int, ...] = ()) -> list[Rule]:
    """A module with a weight and a bias; only the weight's shape may differ."""
    return [Rule(f"{ours}.weight", f"{theirs}.weight", singletons), Rule(f"{ours}.bias", f"{theirs}.bias")]


def _packed(ours: str, theirs: str) -> list[Rule]:
    """The packed input projection of nn.MultiheadAttention."""
    return [Rule(f"{ours}.weight", f"{theirs}_weight"), Rule(f"{ours}.bias", f"{theirs}_bias")]


def _local(ours: str, theirs: str) -> list[Rule]:
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return [
        *_both(f"{ours}.norm", f"{theirs}.pos_embed.0"),
        *(Rule(f"{ours}.norm.{name}", f"{theirs}.pos_embed.0.{name}") for name in statistics),
        # 1 x 1 x 1 convolutions there, linear layers here
        *_both(f"{ours}.reduce", f"{theirs}.pos_embed.1", (2, 3, 4)),
        *_both(f"{ours}.temporal", f"{theirs}.pos_embed.2", (3, 4)),
        *_both(f"{ours}.expand", f"{theirs}.pos_embed.3", (2, 3, 4)),
    ]


_BLOCK, _THEIR_BLOCK = "backbone.blocks.#", "backbone.transformer.resblocks.#"
_STAGE, _THEIR_STAGE = "global_blocks.#", "backbone.transformer.dec.#"

_OFFICIAL_BODY = [
    Rule("backbone.class_token", "backbone.class_embedding"),
    Rule("backbone.position_embedding", "backbone.positional_embedding"),
    Rule("backbone.patch_embedding.weight", "backbone.conv1.weight"),
    *_both("backbone.pre_norm", "backbone.ln_pre"),
    Rule("query", "backbone.transformer.temporal_cls_token", (0,)),
    Rule("mix", "backbone.transformer.balance"),
    *_both(f"{_BLOCK}.norm1", f"{_THEIR_BLOCK}.ln_1"),
    *_packed(f"{_BLOCK}.attention.qkv", f"{_THEIR_BLOCK}.attn.in_proj"),
    *_both(f"{_BLOCK}.attention.proj", f"{_THEIR_BLOCK}.attn.out_proj"),
    *_both(f"{_BLOCK}.norm2", f"{_THEIR_BLOCK}.ln_2"),
    *_both(f"{_BLOCK}.mlp.fc1", f"{_THEIR_BLOCK}.mlp.c_fc"),
    *_both(f"{_BLOCK}.mlp.fc2", f"{_THEIR_BLOCK}.mlp.c_proj"),
    *_local(f"{_BLOCK}.local1", f"{_THEIR_BLOCK}.lmhra1"),
    *_local(f"{_BLOCK}.local2", f"{_THEIR_BLOCK}.lmhra2"),
    *_both(f"{_STAGE}.position_encoding", "backbone.transformer.dpe.#"),
    *_both(f"{_STAGE}.query_norm", f"{_THEIR_STAGE}.ln_1"),
    *_both(f"{_STAGE}.context_norm", f"{_THEIR_STAGE}.ln_3"),
    *_packed(f"{_STAGE}.attention.qkv", f"{_THEIR_STAGE}.attn.in_proj"),
    *_both(f"{_STAGE}.attention.proj", f"{_THEIR_STAGE}.attn.out_proj"),
    *_both(f"{_STAGE}.mlp_norm", f"{_THEIR_STAGE}.ln_2"),
    *_both(f"{_STAGE}.mlp.fc1", f"{_THEIR_STAGE}.mlp.c_fc"),
    *_both(f"{_STAGE}.mlp.fc2", f"{_THEIR_STAGE}.mlp.c_proj"),
]

VideoFormat = Literal["ours", "official", "mmaction2"]

VIDEO_FORMATS: dict[str, list[Rule]] = {
    # OpenGVLab/UniFormerV2 @ 722a434
    "official": [
        *_OFFICIAL_BODY,
        *_both("head.norm", "backbone.transformer.proj.0"),
        *_both("head.linear", "backbone.transformer.proj.2"),
    ],
    # open-mmlab/mmaction2 @ 4d6c934
    "mmaction2": [
        *_OFFICIAL_BODY,
        *_both("head.norm", "backbone.transformer.norm"),
        *_both("head.linear", "cls_head.fc_cls"),
    ],
}


# what stands in every file of a format, and in none of another; official heads come without "backbone." too
MARKS: dict[VideoFormat, re.Pattern[str]] = {
    "ours": re.compile(r"head\.(linear|norm)\..*|backbone\.(class_token|patch_embedding\..*)|global_blocks\..*"),
    "official": re.compile(r"(backbone\.)?transformer\.proj\.[02]\..*"),
    "mmaction2": re.compile(r"cls_head\..*|backbone\.transformer\.norm\..*"),
}
IGNORED = {"mmaction2": "data_preprocessor."}  # constants that are no weights, by prefix


def marks(keys: Iterable[str]) -> dict[VideoFormat, str]:
    """The video formats that keys are of, each with one key that tells it; more than one is a mixture."""
    names = list(keys)
    found = {kind: next((name for name in names if mark.fullmatch(name)), None) for kind, mark in MARKS.items()}
    return {kind: name for kind, name in found.items() if name is not None}


def video_format(keys: Iterable[str]) -> VideoFormat | None:
    """Which format a video model's keys are in, or None for none that is known, or for several at once."""
    found = marks(keys)
    return next(iter(found)) if len(found) == 1 else None


def with_backbone(state: Mapping[str, Tensor]) -> StateDict:
    """Official tensors with the prefix `backbone.`, which some of the official files lack."""
    return {key if key.startswith("backbone.") else f"backbone.{key}": tensor for key, tensor in state.items()}


def to_ours(state: Mapping[str, Tensor], rules: list[Rule]) -> tuple[StateDict, list[str]]:
    """Rename foreign tensors.

    Returns:
        The tensors under our names, and the foreign keys that no rule knows.
    """
    return _rename(state, [(rule.theirs, rule.ours, rule, _squeeze) for rule in rules])


def from_ours(state: Mapping[str, Tensor], rules: list[Rule]) -> tuple[StateDict, list[str]]:
    """Rename our tensors; the second result is the keys of ours that the foreign format has no name for."""
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
    # a tensor of another shape is left as it is, for the strict comparison with the model to name it
    return tensor.squeeze(rule.singletons) if fits and rule.singletons else tensor


def _unsqueeze(tensor: Tensor, rule: Rule) -> Tensor:
    for dim in rule.singletons:
        tensor = tensor.unsqueeze(dim)
    return tensor
