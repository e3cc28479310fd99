"""Files of other video models, and whole pickled modules, are refused by name, with what can be done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uniformerv2 import CheckpointError, arm, load_model
from weights.samples import META, linear, prefixed, small_model, small_vit

State = dict[str, Tensor]


def tubelets(state: State, name: str = "patch_embed.proj.weight") -> State:
    """The state with patches that span two frames."""
    return {**state, name: META(8, 3, 2, 2, 2)}


def of_transformers(name: str, **sizes: int) -> State:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        config = getattr(transformers, f"{name}Config")(num_hidden_layers=1, **sizes)
        return getattr(transformers, f"{name}ForVideoClassification")(config).state_dict()


OTHERS: dict[str, tuple[str, Callable[[], State]]] = {
    "videomae of transformers": ("VideoMAE", lambda: of_transformers("VideoMAE")),
    "videomae": ("VideoMAE", lambda: tubelets(small_vit(bias="qv", class_token=False))),
    "videomae, pretrained": (
        "VideoMAE",
        lambda: prefixed("encoder.", tubelets(small_vit(bias="qv", class_token=False))) | linear("decoder.head", 8, 8),
    ),
    "timesformer of transformers": ("TimeSformer", lambda: of_transformers("Timesformer")),
    "timesformer": (
        "TimeSformer",
        lambda: prefixed(
            "model.", small_vit() | linear("blocks.0.temporal_attn.qkv", 24, 8) | {"time_embed": META(1, 8, 8)}
        ),
    ),
    "vivit of transformers": ("ViViT", lambda: of_transformers("Vivit")),
    "v-jepa 2 of transformers": ("V-JEPA", lambda: of_transformers("VJEPA2", pred_num_hidden_layers=1)),
    "v-jepa": ("V-JEPA", lambda: prefixed("module.backbone.", tubelets(small_vit(class_token=False, positions=0)))),
    "mvit of slowfast": ("MViT", lambda: tubelets(small_vit()) | {"blocks.0.attn.pool_q.weight": META(8, 1, 3, 3, 3)}),
    "mvit of pytorchvideo": ("MViT", lambda: {"blocks.0.attn._attention_pool_q.pool.weight": META(8, 1, 3, 3, 3)}),
    "uniformer": (
        "UniFormer",
        lambda: {"patch_embed1.proj.weight": META(8, 3, 3, 4, 4), "blocks1.0.pos_embed.weight": META(8, 1, 3, 3, 3)},
    ),
    "swin": ("Swin", lambda: {"backbone.layers.0.blocks.0.attn.relative_position_bias_table": META(9, 2)}),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    "load", [load_model, lambda state: load_model(state, num_classes=3), lambda state: arm(state, num_classes=3)]
)
def test_another_video_model_is_called_by_its_name(name: str, load: Callable[[State], Any]) -> None:
    model, state = OTHERS[name]
    with pytest.raises(
        CheckpointError, match=rf"the weights of {model}.* runs and this package does not; take"
    ) as error:
        load(state())
    assert "\n" not in str(error.value)


def test_the_encoder_of_v_jepa_is_found_in_its_file(tmp_path: Path) -> None:
    encoder = prefixed("module.backbone.", tubelets(small_vit(class_token=False, positions=0)))
    encoder = {key: torch.zeros(value.shape) for key, value in encoder.items()}
    torch.save({"encoder": encoder, "predictor": encoder, "opt": {}, "epoch": 3}, tmp_path / "vitl16.pth.tar")
    with pytest.raises(CheckpointError, match=r"vitl16\.pth\.tar: the weights of V-JEPA"):
        load_model(tmp_path / "vitl16.pth.tar")


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize(
    ("wrap", "place"), [(lambda model: model, ""), (lambda model: {"epoch": 3, "model": model}, r"\['model'\]")]
)
def test_a_whole_pickled_module_is_named_with_the_line_that_makes_weights_of_it(
    tmp_path: Path, archive: bool, wrap: Callable[[nn.Module], Any], place: str
) -> None:
    path = tmp_path / "model.pth"
    torch.save(wrap(small_model()), path, _use_new_zipfile_serialization=archive)
    line = rf"torch\.save\(torch\.load\(FILE, weights_only=False\){place}\.state_dict\(\), NEW\)"
    with pytest.raises(
        CheckpointError, match=rf"model\.pth: a whole pickled module \(uniformerv2\.[\w.]*UniFormerV2\), .*: {line}"
    ) as error:
        load_model(path)
    assert "\n" not in str(error.value)


def test_a_live_module_is_no_checkpoint() -> None:
    with pytest.raises(CheckpointError, match=r"the given HubUniFormerV2 is a live module, .* take a live UniFormerV2"):
        load_model(small_model())  # type: ignore[arg-type]
