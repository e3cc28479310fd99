"""The global stages and heads of many models on the same tokens, as a few batched products.

Parameters are stacked: each has the shape that it has in the model, after a leading axis of settings. What is computed
is `UniFormerV2.aggregate` and the head, in training mode without dropout, of each of these models (section 3.3 of
arXiv:2211.09552), for sequential fusion and one query. As keys and values of the tokens are never formed
(`CrossAttention`), all settings work on the same tokens: scale and shift of a stage's norm go to the query and to the
weighted mean too, since

    softmax(q' (w x + b)) = softmax((q' w) x), and sum_i a_i (w x_i + b) = w (sum_i a_i x_i) + b where sum_i a_i = 1.

The dynamic position encoding changes the tokens before their norm, so that nothing would be shared if each setting
learned its own. It is not trained, and the same for all settings; at zero the stages do not know when a token was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniformerv2.model.config import ModelConfig
from uniformerv2.model.positions import TokenLayout
from uniformerv2.model.uniblocks import DynamicPositionEncoding, GlobalUniBlock
from uniformerv2.model.uniformerv2 import EncodedFrames, UniFormerV2
from uniformerv2.model.vit import activation

Stacked = Mapping[str, Tensor]  # (settings, ...) by the name that the parameter has in the model


class SharedTokens(NamedTuple):
    """Clips as all settings see them."""

    stages: tuple[Tensor, ...]  # (batch, tokens of the clip, width) of each stage, normalised, not scaled nor shifted
    frames: Tensor  # (batch, width): the mean frame embedding

    @classmethod
    @torch.no_grad()
    def of(cls, model: UniFormerV2, encoded: EncodedFrames) -> SharedTokens:
        """From the output of `encode`, with the position encodings of the model."""
        stages = []
        for block, tokens in zip(model.global_blocks, encoded.stages, strict=True):
            assert isinstance(block, GlobalUniBlock)
            stages.append(_context(block.position_encoding, tokens, encoded.layout))
        return cls(tuple(stages), encoded.frame_embeddings.mean(1))


def _context(encoding: DynamicPositionEncoding, tokens: Tensor, layout: TokenLayout) -> Tensor:
    """What the context of `GlobalUniBlock` is before scale and shift."""
    first, patches, _ = layout.split(tokens)
    if encoding.weight.any():
        # (batch, frames, patches, width) -> (batch, frames, rows, columns, width) and back
        patches = patches + encoding(patches.unflatten(2, layout.grid)).flatten(2, 3)
    return F.layer_norm(torch.cat([first, patches], dim=2), tokens.shape[-1:]).flatten(1, 2)


def probe_parameters(model: UniFormerV2) -> dict[str, nn.Parameter]:
    """What a probe trains, by name."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith("backbone.") and ".position_encoding." not in name
    }


def stack(model: UniFormerV2, settings: int) -> dict[str, Tensor]:
    """The probe's parameters, so many times, as leaves that need a gradient."""
    return {
        name: parameter.detach().expand(settings, *parameter.shape).clone().requires_grad_()
        for name, parameter in probe_parameters(model).items()
    }


@torch.no_grad()
def unstack(model: UniFormerV2, stacked: Stacked, setting: int) -> None:
    """Give a model the parameters of one setting."""
    for name, parameter in probe_parameters(model).items():
        parameter.copy_(stacked[name][setting])


def stacked_logits(config: ModelConfig, stacked: Stacked, tokens: SharedTokens) -> Tensor:
    """(settings, batch, classes).

    Args:
        config: of the model, with sequential fusion, one query, and the class token mixed in.
        stacked: its parameters, of every setting.
        tokens: of the clips.
    """
    query = stacked["query"]  # (settings, 1, width): before the first stage the same for all clips
    for number, of_stage in enumerate(tokens.stages):
        query = _stage(config, stacked, f"global_blocks.{number}.", query, of_stage)
    share = stacked["mix"].sigmoid()[:, None]
    pooled = (1 - share) * query + share * tokens.frames
    return _linear(stacked, "head.linear", _norm(stacked, "head.norm", pooled))


def _stage(config: ModelConfig, stacked: Stacked, block: str, query: Tensor, tokens: Tensor) -> Tensor:
    """`GlobalUniBlock.forward`: (settings, batch or 1, width) -> (settings, batch, width)."""
    query = query + _attend(config.heads, stacked, block, _norm(stacked, f"{block}query_norm", query), tokens)
    hidden = _linear(stacked, f"{block}mlp.fc1", _norm(stacked, f"{block}mlp_norm", query))
    return query + _linear(stacked, f"{block}mlp.fc2", activation(config.activation)(hidden))


def _attend(heads: int, stacked: Stacked, block: str, query: Tensor, tokens: Tensor) -> Tensor:
    """`CrossAttention.cross` of one query: (settings, batch or 1, width) -> (settings, batch, width)."""
    settings, _, width = query.shape
    dim = width // heads
    # (settings, 3·width, ...) -> three of (settings, heads, dim, ...)
    weight = stacked[f"{block}attention.qkv.weight"].view(settings, 3, heads, dim, width)
    query_weight, key_weight, value_weight = weight.unbind(1)
    query_bias, _, value_bias = stacked[f"{block}attention.qkv.bias"].view(settings, 3, heads, 1, dim).unbind(1)
    # the norm of the context: (settings, 1, 1, width)
    scale, shift = (stacked[f"{block}context_norm.{name}"][:, None, None] for name in ("weight", "bias"))
    # (settings, 1, batch, width) -> (settings, heads, batch, dim) -> (settings, heads, batch, width)
    projected = query[:, None] @ query_weight.transpose(-1, -2) + query_bias
    absorbed = projected @ key_weight * (scale * dim**-0.5)
    # -> (batch, settings·heads, width): one product with the tokens for all settings
    rows = absorbed.permute(2, 0, 1, 3).flatten(1, 2)
    summed = (rows @ tokens.transpose(-1, -2)).softmax(-1) @ tokens
    # -> (settings, heads, batch, width)
    context = summed.unflatten(1, (settings, heads)).permute(1, 2, 0, 3) * scale + shift
    values = context @ value_weight.transpose(-1, -2) + value_bias
    return _linear(stacked, f"{block}attention.proj", values.transpose(1, 2).flatten(2))


def _linear(stacked: Stacked, layer: str, x: Tensor) -> Tensor:
    """(settings, batch, in) -> (settings, batch, out)."""
    return torch.baddbmm(stacked[f"{layer}.bias"][:, None], x, stacked[f"{layer}.weight"].transpose(1, 2))


def _norm(stacked: Stacked, layer: str, x: Tensor) -> Tensor:
    """(settings, batch, width) -> the same shape."""
    return F.layer_norm(x, x.shape[-1:]) * stacked[f"{layer}.weight"][:, None] + stacked[f"{layer}.bias"][:, None]
