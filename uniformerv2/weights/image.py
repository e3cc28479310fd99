"""Files of image transformers -> armed video models."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from uniformerv2.errors import CheckpointError
from uniformerv2.model.arming import fit_weights, load_image_weights
from uniformerv2.model.config import Layout, ModelConfig, Preprocessing, layout_options
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.weights.checkpoint import check_fit, read_safetensors
from uniformerv2.weights.formats import TIMM_VIT, to_ours

HEAD_DIM = 64  # of every transformer in the known families; a file may say otherwise in its metadata


def arm(
    source: str | Path,
    *,
    num_classes: int,
    layout: Layout = "scene",
    labels: Sequence[str] = (),
    num_frames: int = 8,
    size: tuple[int, int] | None = None,
    **options: object,
) -> UniFormerV2:
    """Turn an image transformer into a video model.

    Until it is trained, every frame's class token is exactly the image model's (section 3 of the paper).

    Args:
        source: a safetensors file with timm's vision transformer names: exact GELU, no norm before the blocks,
            a final norm, one class token. Its metadata may give `heads`, `mean` and `std` (as JSON); without
            them heads are width / 64, and mean and std are 0.5. Its classifier is left behind.
        num_classes: classes of the new head.
        layout: "scene" or "temporal", see `layout_options`.
        labels: class names in the order of the new head.
        num_frames: frames of a clip.
        size: (height, width) of a clip in pixels; default: the image model's own.
        options: fields of `ModelConfig` that replace what the layout says.

    Raises:
        CheckpointError: the file is unreadable or is no such transformer.
    """
    metadata, state = read_safetensors(source)
    state = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
    renamed, unknown = to_ours(state, TIMM_VIT)
    image = _image_config(source, renamed, metadata)
    mean, std = (tuple(json.loads(metadata.get(key, "[0.5, 0.5, 0.5]"))) for key in ("mean", "std"))

    size = size or image.image_size
    fields: dict[str, object] = {
        "image_size": size,
        "num_classes": num_classes,
        **layout_options(layout, image.depth),
        **options,
    }
    config = replace(image, **fields)  # type: ignore[arg-type]
    model = UniFormerV2(config, Preprocessing(num_frames=num_frames, size=size, mean=mean, std=std), labels)
    fitted, _ = fit_weights(renamed, image, config)
    wanted = {
        key: tensor for key, tensor in model.state_dict().items() if key.startswith("backbone.") and ".local" not in key
    }
    check_fit({**fitted, **{key: state[key] for key in unknown}}, wanted, source=str(source))
    load_image_weights(model, fitted)
    return model


def _image_config(source: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> ModelConfig:
    """What the tensors tell of the image transformer."""
    try:
        width, _, patch_size, _ = state["backbone.patch_embedding.weight"].shape
        patches = state["backbone.position_embedding"].shape[0] - 1
        depth = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("backbone.blocks."))
        hidden = state["backbone.blocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{source}: no image transformer with timm's names ({error} is missing)") from error
    side = math.isqrt(patches)
    if side * side != patches:
        raise CheckpointError(f"{source}: {patches} position embeddings are no square grid with a class token")
    return ModelConfig(
        width=width,
        depth=depth,
        heads=int(metadata.get("heads", width // HEAD_DIM)),
        patch_size=patch_size,
        image_size=(side * patch_size, side * patch_size),
        mlp_ratio=hidden / width,
        activation="gelu",
        norm_eps=1e-6,
        patch_bias=True,
        pre_norm=False,
        post_norm=True,
        global_after=(),
    )
