"""Video models that this package does not run, by their names, so that their files are refused by name. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from uniformerv2.errors import CheckpointError

TUBELETS = re.compile(r"(^|.*\.)patch_embed(ding)?s?\.proj(ection)?\.weight")  # patches that span several frames


class AnotherModel(CheckpointError):
    """Weights of a model that this package does not run."""


class Kind(NamedTuple):
    """How a model is recognised, and what runs it."""

    name: str
    key: re.Pattern[str]  # found in one of its names
    program: str
    tubelets: bool = False  # its patches span several frames
    class_token: bool = True  # may have one


# the first that fits: names of the authors' code, of SlowFast, PyTorchVideo, torchvision, mmaction2 and transformers
KINDS = (
    Kind("MViT", re.compile(r"\battn\.(_attention_)?pool_[qkv]\."), "PyTorchVideo, SlowFast or torchvision"),
    Kind(
        "TimeSformer",
        re.compile(r"\.temporal_att(entio)?n\.|(^|\.)time_embed(dings)?$"),
        "transformers' TimesformerForVideoClassification",
    ),
    Kind("UniFormer (the first one)", re.compile(r"(^|\.)blocks[1-4]\.\d+\.pos_embed\."), "Sense-X/UniFormer"),
    Kind("X-CLIP", re.compile(r"(^|\.)(mit|prompts_generator)\."), "transformers' XCLIPModel"),
    Kind(
        "Swin",
        re.compile(r"(^|\.)(layers|features)\.\d+\.(blocks\.)?\d+\.attn\.relative_position_bias_table$"),
        "torchvision or mmaction2",
    ),
    Kind("Hiera", re.compile(r"(^|\.)pos_embed_temporal$"), "facebookresearch/hiera"),
    Kind("V-JEPA", re.compile(r"embeddings\.patch_embeddings\.proj\.weight$"), "transformers' VJEPA2Model", True),
    Kind("ViViT", re.compile(r"embeddings\.cls_token$"), "transformers' VivitForVideoClassification", True),
    Kind(
        "VideoMAE",
        re.compile(r"embeddings\.patch_embeddings\.projection\.weight$|\.attn\.q_bias$"),
        "transformers' VideoMAEForVideoClassification",
        True,
    ),
    Kind("V-JEPA", re.compile(r"(^|\.)blocks\.0\.attn\.qkv\.weight$"), "facebookresearch/vjepa2", True, False),
)


def refuse_other_models(state: Mapping[str, Tensor], source: str) -> None:
    """Raises AnotherModel, with the name of the model, what runs it and what can be done here."""
    tubelets = any(
        TUBELETS.fullmatch(key) and len(value.shape) == 5 and value.shape[2] > 1 for key, value in state.items()
    )
    class_token = any(key.endswith("cls_token") for key in state)
    for kind in KINDS:
        possible = (tubelets or not kind.tubelets) and (kind.class_token or not class_token)
        if possible and any(kind.key.search(key) for key in state):
            raise AnotherModel(
                f"{source}: the weights of {kind.name}, which {kind.program} runs and this package does not; take a "
                "published UniFormerV2 (`uniformerv2 models`), or arm an image transformer (docs/image_transformers.md)"
            )
