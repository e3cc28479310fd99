"""Small models of every architecture, with random weights, and random input."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from uniformerv2.model.config import ModelConfig, Preprocessing, RotaryEmbedding
from uniformerv2.model.uniformerv2 import UniFormerV2

Module = TypeVar("Module", bound=nn.Module)

BASE = ModelConfig(width=32, depth=3, heads=2, patch_size=8, image_size=(16, 24), global_after=(0, 2), num_classes=5)
# constants that differ from channel to channel
PREPROCESSING = Preprocessing(size=(16, 24), mean=(0.2, 0.5, 0.4), std=(0.1, 0.3, 0.2), channel_order="bgr")

TEMPORAL = {"local_blocks": "attention+mlp", "temporal_downsample": True}
DINOV3 = RotaryEmbedding(100.0, (4 * math.pi, 4 * math.pi), 0.5, -2 * math.pi, halves=True)
# fields of ModelConfig beside those of BASE
ARCHITECTURES: dict[str, dict[str, Any]] = {
    # layouts of the video model
    "scene": {},
    "temporal": TEMPORAL,
    "local": {"local_blocks": "attention", "local_kernel": 5, "local_reduction": 2.0},
    # options beyond the paper, model/temporal_mixing.py
    "calibrated": {**TEMPORAL, "local_mixing": "calibrated"},
    "differences": {"local_blocks": "attention", "local_mixing": "differences"},
    "shift": {"local_blocks": "attention", "local_mixing": "shift", "local_kernel": 5},
    "downsampling": {"temporal_downsample": True},
    "frozen": {"mix_class_token": False, "num_queries": 2},
    "parallel": {"fusion": "parallel", "num_queries": 2},
    "hierarchical kv": {"fusion": "hierarchical_kv", "num_queries": 2},
    "hierarchical q": {"fusion": "hierarchical_q", "num_queries": 2},
    "no stages": {"global_after": ()},
    # families of image transformers
    "plain": {"pre_norm": False, "post_norm": True, "activation": "gelu", "patch_bias": True},
    "clip": {"post_norm": True},
    "siglip": {
        **{"class_token": False, "pool": "attention", "pool_heads": 4, "pool_mlp_ratio": 3.0},
        **{"pre_norm": False, "post_norm": True, "activation": "gelu_tanh"},
    },
    "mean": {"class_token": False, "pool": "mean", "pre_norm": False, "post_norm": True},
    "beit": {
        **{"relative_bias": True, "position_embedding": False, "layer_scale": True},
        **{"pool": "mean", "pre_norm": False, "pool_norm": True},
    },
    "eva02-e": {"norm_after": True, "layer_scale": True, "pre_norm": False, "post_norm": True, "activation": "gelu"},
    "dinov2": {
        **{"layer_scale": True, "register_tokens": 4, "gated_mlp": True, "mlp_ratio": 2.5},
        **{"pre_norm": False, "post_norm": True},
    },
    "dinov3": {
        **{"layer_scale": True, "register_tokens": 4, "rotary": DINOV3, "position_embedding": False},
        **{"pool": "mean", "pre_norm": False},
    },
    "eva02": {
        **{"rotary": RotaryEmbedding(), "gated_mlp": True, "attention_norm": True, "mlp_norm": True},
        **{"pool": "mean", "pre_norm": False},
    },
    "perception encoder": {
        **{"rotary": RotaryEmbedding(span=(2.0, 3.0), offset=1.0, columns_first=True)},
        **{"post_norm": True, "pool": "attention"},
    },
    "mlp norm": {"mlp_norm": True},  # between QuickGELU and the layer that would take its constant
}


def architecture(name: str, **options: Any) -> ModelConfig:
    return replace(BASE, **{**ARCHITECTURES[name], **options})


def small_model(name: str = "scene", preprocessing: Preprocessing = PREPROCESSING, **options: Any) -> UniFormerV2:
    """A model in eval mode with random weights and statistics."""
    return randomised(UniFormerV2(architecture(name, **options), preprocessing)).eval()


def randomised(module: Module, *, std: float = 0.2) -> Module:
    """The module with random weights and statistics: nothing is hidden by a zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
            elif name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return module


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_pixels(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
