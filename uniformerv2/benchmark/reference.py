"""The official implementation, out of a checkout of it, with the weights of a model of ours: for comparisons.

Its model file imports `timm` for drop path and its own package for a logger. Stand-ins replace both during the import,
so a checkout is all that is needed.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from uniformerv2.errors import RecipeError
from uniformerv2.model.config import ModelConfig
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.model.vit import DropPath
from uniformerv2.weights.key_names import VIDEO_FORMATS, from_ours

MODEL_FILE = "slowfast/models/uniformerv2_model.py"


def load_reference(checkout: str | Path, ours: UniFormerV2, *, num_frames: int) -> nn.Module:
    """The official model of the same architecture and weights. Its clips are floats that are normalised already.

    Args:
        checkout: a clone of OpenGVLab/UniFormerV2.
        ours: the model to copy; its image transformer must be CLIP's, its fusion sequential.
        num_frames: frames of a clip; the official model fixes them when it is built.

    Raises:
        RecipeError: `checkout` has no model file, or its model has no place for a weight of ours.
    """
    model = build_reference(checkout, ours.config, num_frames=num_frames)
    state, unknown = from_ours(ours.state_dict(), VIDEO_FORMATS["official"])
    if unknown:
        raise RecipeError(f"the official model has no place for {', '.join(unknown)}")
    model.load_state_dict({name.removeprefix("backbone."): tensor.clone() for name, tensor in state.items()})
    return model.train(ours.training)


def build_reference(checkout: str | Path, config: ModelConfig, *, num_frames: int) -> nn.Module:
    """The official model of an architecture, with the weights that it starts with; see `load_reference`."""
    return _import_official(Path(checkout) / MODEL_FILE).VisionTransformer(
        **shared_options(config, num_frames),
        output_dim=config.width,  # not used
        backbone_drop_path_rate=config.drop_path,
        use_checkpoint=config.checkpoint_blocks > 0,
        checkpoint_num=[config.checkpoint_blocks],
        mlp_factor=config.global_mlp_ratio,
        drop_path_rate=config.global_drop_path,
        mlp_dropout=[config.global_dropout] * len(config.global_after),
        cls_dropout=config.head_dropout,
        num_classes=config.num_classes,
        frozen=not config.mix_class_token,
    )


def shared_options(config: ModelConfig, num_frames: int) -> dict[str, Any]:
    """The options that the official model and that of mmaction2 have in common."""
    return {
        "input_resolution": config.image_size[0],
        "patch_size": config.patch_size,
        "width": config.width,
        "layers": config.depth,
        "heads": config.heads,
        "t_size": num_frames,
        "dw_reduction": config.local_reduction,
        "temporal_downsample": config.temporal_downsample,
        "no_lmhra": config.local_blocks == "none",
        "double_lmhra": config.local_blocks == "attention+mlp",
        "return_list": list(config.global_after),
        "n_layers": len(config.global_after),
        "n_dim": config.width,
        "n_head": config.heads,
    }


def _import_official(file: Path) -> ModuleType:
    if not file.is_file():
        raise RecipeError(f"{file}: no such file; --reference takes a checkout of OpenGVLab/UniFormerV2")
    layers, messages = ModuleType("timm.models.layers"), ModuleType("slowfast.utils.logging")
    layers.DropPath = DropPath  # type: ignore[attr-defined]
    quiet = logging.getLogger("official_uniformerv2")
    messages.get_logger = lambda name: quiet  # type: ignore[attr-defined]
    utils = ModuleType("slowfast.utils")
    utils.logging = messages  # type: ignore[attr-defined]
    stand_ins = {
        "timm": ModuleType("timm"),
        "timm.models": ModuleType("timm.models"),
        "timm.models.layers": layers,
        "slowfast": ModuleType("slowfast"),
        "slowfast.utils": utils,
        "slowfast.utils.logging": messages,
    }
    with standing_in(stand_ins):
        return import_file(file, "official_uniformerv2")


def import_file(file: Path, name: str) -> ModuleType:
    """A module from a file that no installed package has."""
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@contextmanager
def standing_in(modules: Mapping[str, ModuleType]) -> Iterator[None]:
    """Modules by the names under which a foreign file imports them, inside this context only."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
