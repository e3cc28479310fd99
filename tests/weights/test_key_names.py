"""Tables of key names, read both ways; every released experiment is renamed in test_convert.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models import architecture
from uniformerv2 import CheckpointError, UniFormerV2, load_weights
from uniformerv2.weights.key_names import (
    VIDEO_FORMATS,
    add_backbone_prefix,
    formats_of,
    from_ours,
    to_ours,
)

CONFIG = architecture("temporal", depth=2, image_size=(16, 16), global_after=(0, 1))


@pytest.mark.parametrize("kind", ["official", "mmaction2"])
def test_values_survive_both_ways(kind: str) -> None:
    model = UniFormerV2(CONFIG)
    state = {key: torch.rand(tensor.shape) for key, tensor in model.state_dict().items()}
    theirs, unknown = from_ours(state, VIDEO_FORMATS[kind])
    assert not unknown
    assert len(theirs) == len(state)
    assert list(formats_of(theirs)) == [kind]
    assert theirs["backbone.transformer.resblocks.1.lmhra2.pos_embed.3.weight"].shape == (32, 21, 1, 1, 1)
    back, unknown = to_ours(theirs, VIDEO_FORMATS[kind])
    assert not unknown
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)

    load_weights(model, theirs)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], tensor.to(loaded[key].dtype)) for key, tensor in state.items())


def test_loading_names_what_is_missing_unexpected_or_of_another_shape() -> None:
    model = UniFormerV2(CONFIG)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state, _ = from_ours(model.state_dict(), VIDEO_FORMATS["official"])
    del state["backbone.transformer.balance"]
    state["backbone.transformer.surprise"] = torch.zeros(1)
    state["backbone.positional_embedding"] = torch.zeros(10, 32)
    with pytest.raises(CheckpointError) as error:
        load_weights(model, state, source="some.pyth")
    message = str(error.value)
    assert message.startswith("some.pyth does not fit")
    assert "1 missing: mix" in message
    assert "1 unexpected: backbone.transformer.surprise" in message
    assert "backbone.position_embedding (10, 32) instead of (5, 32)" in message
    assert "\n" not in message
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items()), "nothing was loaded"


def test_a_frozen_file_does_not_load_into_a_mixing_model() -> None:
    frozen = UniFormerV2(replace(CONFIG, mix_class_token=False))
    state, _ = from_ours(frozen.state_dict(), VIDEO_FORMATS["official"])
    with pytest.raises(CheckpointError, match="1 missing: mix"):
        load_weights(UniFormerV2(CONFIG), state)


def test_keys_identify_formats_and_mixtures() -> None:
    ours = UniFormerV2(CONFIG).state_dict()
    states = {"ours": ours} | {kind: from_ours(ours, VIDEO_FORMATS[kind])[0] for kind in VIDEO_FORMATS}
    for kind, state in states.items():
        assert list(formats_of(state)) == [kind]
        for other, mixed in states.items():
            assert set(formats_of({**state, **mixed})) == {kind, other}
    bare = [key.removeprefix("backbone.") for key in states["official"]]
    assert list(formats_of(bare)) == ["official"]


def test_keys_of_image_models_are_no_video_format() -> None:
    clip = ["class_embedding", "transformer.resblocks.0.ln_1.weight", "proj", "backbone.conv1.weight"]
    timm = ["cls_token", "blocks.0.norm1.weight", "head.weight", "fc_norm.weight"]
    dinov2_training = ["backbone.blocks.0.norm1.weight", "dino_head.mlp.0.weight"]
    for keys in (clip, timm, dinov2_training):
        assert formats_of(keys) == {}


def test_official_names_without_backbone_are_completed_and_others_kept() -> None:
    state = {"transformer.balance": torch.zeros(1), "backbone.ln_pre.bias": torch.ones(1)}
    assert set(add_backbone_prefix(state)) == {"backbone.transformer.balance", "backbone.ln_pre.bias"}
