"""What is recorded of the official implementation, of mmaction2 and of timm. The name of an entry is its seed too."""

from __future__ import annotations

from typing import Any, NamedTuple


class Video(NamedTuple):
    """A small video model: fields of `ModelConfig`, and frames of its clips."""

    options: dict[str, Any]
    frames: int = 4
    source: str = "official"  # in whose code and key names

    @property
    def config(self) -> dict[str, Any]:
        return {**SIZES, **self.options}

    @property
    def clip(self) -> tuple[int, ...]:
        """(batch, channels, frames, height, width)"""
        return (2, 3, self.frames, *SIZES["image_size"])


class Image(NamedTuple):
    """A small image transformer: timm's names of its architecture and its pool, and the side of its images."""

    timm_model: str
    side: int
    pool: str = "token"

    @property
    def images(self) -> tuple[int, ...]:
        """(batch, channels, height, width)"""
        return 2, 3, self.side, self.side


class Crops(NamedTuple):
    """Frames to crop, (frames, height, width, channels), and the side of the crops."""

    frames: tuple[int, int, int, int]
    side: int


SIZES: dict[str, Any] = {
    **{"width": 48, "depth": 4, "heads": 4, "patch_size": 8, "image_size": (32, 32)},
    **{"global_after": (1, 2, 3), "num_classes": 7},
}
LOCAL = {"local_blocks": "attention+mlp"}
TEMPORAL = {**LOCAL, "temporal_downsample": True}
TARGET = (2, 5)  # classes of the two clips

VIDEO = {
    "scene": Video({}),
    "temporal": Video(TEMPORAL, frames=8),
    "local_single": Video({"local_blocks": "attention"}),
    "local_no_downsample": Video(LOCAL),
    "frozen": Video({"mix_class_token": False}),
    "sparse_stages": Video({"depth": 5, "global_after": (0, 3)}),
    "downsample_only": Video({"temporal_downsample": True}, frames=8),
    "reduction2": Video({**LOCAL, "local_reduction": 2.0}),
    "mmaction2_scene": Video({}, source="mmaction2"),
    "mmaction2_temporal": Video(TEMPORAL, frames=8, source="mmaction2"),
}

OVERRIDES = {"embed_dim": 48, "depth": 3, "num_heads": 4}  # of the image transformers
IMAGE = {
    "supervised_vit": Image("vit_tiny_patch16_224", 32),
    "deit3": Image("deit3_small_patch16_224", 32),
    "clip": Image("vit_base_patch16_clip_quickgelu_224", 32),
    "siglip": Image("vit_base_patch16_siglip_224", 32, "map"),
    "dinov2": Image("vit_small_patch14_dinov2", 28),
    "dinov2_registers": Image("vit_small_patch14_reg4_dinov2", 28),
    "dinov2_swiglu": Image("vit_giant_patch14_dinov2", 28),
    "beit": Image("beit_base_patch16_224", 32, "avg"),
    "eva02": Image("eva02_tiny_patch14_224", 28, "avg"),
    "eva02_clip": Image("eva02_base_patch16_clip_224", 32),
    "dinov3": Image("vit_small_patch16_dinov3", 32, "avg"),
    "dinov3_swiglu": Image("vit_small_plus_patch16_dinov3", 32, "avg"),
    "perception_encoder": Image("vit_pe_core_tiny_patch16_384", 32, "map"),
}

CROPS = {
    "landscape": Crops((2, 60, 91, 3), 32),
    "portrait": Crops((2, 77, 45, 3), 32),
    "square": Crops((2, 50, 50, 3), 48),
    "upscale": Crops((2, 24, 40, 3), 32),
}

# (frames of a video, segments, clips): which frames make each clip
SAMPLING = [
    (frames, segments, clips) for frames in (1, 5, 9, 16, 100, 251, 1797) for segments in (8, 16) for clips in (1, 3, 4)
]
