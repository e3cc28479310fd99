"""The official model, built from a checkout of its code: only its model file is read, none of it is copied.

The file imports two things that a checkout does not bring, or that need its whole package: `DropPath` from timm, and a
logger. Stand-ins take their place while it is loaded.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from torch import nn

from uniformerv2 import ModelConfig, UniFormerV2
from uniformerv2.model.vit import DropPath
from uniformerv2.weights.formats import VIDEO_FORMATS, from_ours

MODEL_FILE = Path("slowfast/models/uniformerv2_model.py")


def official_model(checkout: Path, ours: UniFormerV2, frames: int) -> nn.Module:
    """The official model with the architecture and the weights of ours, in training mode."""
    config: ModelConfig = ours.config
    stages = len(config.global_after)
    model = _load(checkout / MODEL_FILE).VisionTransformer(
        input_resolution=config.image_size[0],
        patch_size=config.patch_size,
        width=config.width,
        layers=config.depth,
        heads=config.heads,
        output_dim=config.width,
        t_size=frames,
        dw_reduction=config.local_reduction,
        temporal_downsample=config.temporal_downsample,
        no_lmhra=config.local_blocks == "none",
        double_lmhra=config.local_blocks == "attention+mlp",
        return_list=list(config.global_after),
        n_layers=stages,
        n_dim=config.width,
        n_head=config.heads,
        mlp_factor=config.global_mlp_ratio,
        mlp_dropout=[config.global_dropout] * stages,
        cls_dropout=config.head_dropout,
        num_classes=config.num_classes,
    )
    state, unknown = from_ours(ours.state_dict(), VIDEO_FORMATS["official"])
    assert not unknown, unknown
    model.load_state_dict({name.removeprefix("backbone."): tensor for name, tensor in state.items()})
    return model.train()


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("official_uniformerv2", file)
    if not file.is_file() or spec is None or spec.loader is None:
        sys.exit(f"{file} is not there: --reference takes a checkout of the official UniFormerV2")
    module = importlib.util.module_from_spec(spec)
    with _stand_ins():
        spec.loader.exec_module(module)
    return module


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Modules under the names that the official file imports."""
    layers, logger = ModuleType("timm.models.layers"), ModuleType("slowfast.utils.logging")
    layers.DropPath = DropPath  # type: ignore[attr-defined]
    logger.get_logger = logging.getLogger  # type: ignore[attr-defined]
    names = ["timm", "timm.models", "slowfast", "slowfast.utils"]
    modules = {name: ModuleType(name) for name in names} | {layers.__name__: layers, logger.__name__: logger}
    modules["slowfast.utils"].logging = logger  # type: ignore[attr-defined]
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
