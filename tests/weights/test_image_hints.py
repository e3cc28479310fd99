"""Hints about image transformers from metadata, names and configurations."""

from __future__ import annotations

from uniformerv2.weights.image_hints import Hints, hints_from_config, hints_from_metadata, hints_from_timm_name


def test_hints_of_metadata_and_configurations() -> None:
    metadata = {
        "timm_model": "vit_pe_core_tiny_patch16_384.fb",
        "overrides": '{"num_heads": 4}',
        "img_size": "32",
        "global_pool": "map",
        "note": "{",
    }
    assert hints_from_metadata(metadata) == Hints(
        heads=4, image_size=(32, 32), pool="attention", activation="gelu", rotary_grid=(24, 24)
    )
    assert hints_from_timm_name("timm/vit_base_patch16_clip_quickgelu_224.openai").activation == "quick_gelu"
    assert hints_from_timm_name("vit_so400m_patch16_siglip_256").activation == "gelu_tanh"
    assert hints_from_timm_name("vit_so400m_patch14_siglip_224").activation == "gelu"
    vision = {"num_attention_heads": 3, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "image_size": 32}
    hints = Hints(heads=3, activation="gelu_tanh", norm_eps=1e-6, image_size=(32, 32))
    assert hints_from_config({"model_type": "siglip", "vision_config": vision}) == hints_from_config(vision) == hints
    pretrained = {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "input_size": [3, 32, 48]}
    assert hints_from_config({"architecture": "", "global_pool": "avg", "pretrained_cfg": pretrained}) == Hints(
        pool="mean", image_size=(32, 48), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0)
    )
    assert hints_from_config({}) == Hints()
