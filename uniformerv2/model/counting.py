"""Parameters and multiply-adds of an architecture, without building it."""

from __future__ import annotations

from uniformerv2.model.config import CALIBRATION_REDUCTION, ModelConfig


def count_parameters(config: ModelConfig) -> int:
    """Trainable parameters."""
    import torch  # the products below need none

    from uniformerv2.model.uniformerv2 import UniFormerV2

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UniFormerV2(config).parameters())


def count_multiply_adds(config: ModelConfig, num_frames: int, size: tuple[int, int] | None = None) -> int:
    """Multiply-adds of all matrix products and convolutions for one clip in eval mode.

    By formulas; tests compare them with torch's counter.

    Args:
        config: the architecture.
        num_frames: frames of the clip.
        size: (height, width) of the clip in pixels; default: `config.image_size`.
    """
    height, width = size or config.image_size
    patches = (height // config.patch_size) * (width // config.patch_size)
    frames = -(-num_frames // 2) if config.temporal_downsample else num_frames
    spatial_tokens = patches + int(config.class_token)
    total = _stem(config, num_frames) * patches
    block = _block(config, spatial_tokens + config.register_tokens) + _local(config) * patches
    total += config.depth * (frames * block + _calibration(config, frames))
    if config.pool == "attention":
        heads = config.pool_heads or config.heads
        total += frames * _cross(config.width, heads, 1, spatial_tokens, config.pool_mlp_ratio)
    total += _stages(config, frames, patches, spatial_tokens)
    return total + config.width * config.num_classes


def _stem(config: ModelConfig, num_frames: int) -> int:
    """Per patch. Taps outside of the clip are not computed."""
    taps = num_frames
    if config.temporal_downsample:
        even, odd = -(-num_frames // 2), num_frames // 2
        taps = even + odd + min(odd, even - 1)
    return taps * 3 * config.patch_size**2 * config.width


def _block(config: ModelConfig, tokens: int) -> int:
    """One block on one frame: projections, scores and weighted sums, MLP."""
    width = config.width
    attention = tokens * 4 * width * width + 2 * tokens * tokens * width
    return attention + tokens * (3 if config.gated_mlp else 2) * width * round(width * config.mlp_ratio)


def _local(config: ModelConfig) -> int:
    """The local aggregators of one block, per patch of a frame."""
    count, channels = _aggregators(config)
    kernels = 2 if config.local_mixing == "differences" else 1
    return count * channels * (2 * config.width + kernels * config.local_kernel)


def _calibration(config: ModelConfig, frames: int) -> int:
    """What calibrates the convolutions of one block: per frame three taps and the factors, per clip its mean."""
    if config.local_mixing != "calibrated":
        return 0
    count, channels = _aggregators(config)
    hidden = max(channels // CALIBRATION_REDUCTION, 1)
    return count * channels * hidden * (frames * (3 + config.local_kernel) + 1)


def _aggregators(config: ModelConfig) -> tuple[int, int]:
    """The local aggregators of a block, and their channels."""
    count = {"none": 0, "attention": 1, "attention+mlp": 2}[config.local_blocks]
    return count, int(config.width / config.local_reduction)


def _stages(config: ModelConfig, frames: int, patches: int, spatial_tokens: int) -> int:
    """Position encodings, cross-attention, MLPs and fusion of the global stages."""
    stages, queries = len(config.global_after), config.num_queries
    total = stages * frames * patches * 27 * config.width
    for stage in range(stages):
        extra = config.num_queries if config.fusion == "hierarchical_kv" and stage else 0
        total += _cross(config.width, config.heads, queries, frames * spatial_tokens + extra, config.global_mlp_ratio)
        queries += config.num_queries if config.fusion == "hierarchical_q" else 0
    return total + (stages * config.width**2 if config.fusion == "parallel" else 0)


def _cross(width: int, heads: int, queries: int, tokens: int, mlp_ratio: float) -> int:
    """A query projected, absorbed into the keys, two products with the tokens, values, output; MLP."""
    return queries * (4 * width * width + 2 * heads * tokens * width + 2 * width * round(width * mlp_ratio))
