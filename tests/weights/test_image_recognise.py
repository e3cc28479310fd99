"""Which family a state dict is of, by tensors and hints, its architecture, and the tensors under our names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models import DINOV3
from uniformerv2.errors import CheckpointError
from uniformerv2.model.config import RotaryEmbedding
from uniformerv2.weights.image_hints import Hints, hints_from_config, hints_from_metadata, hints_from_timm_name
from uniformerv2.weights.image_recognise import read_image_model
from uniformerv2.weights.key_names import StateDict
from weights.samples import META, assert_fits, clip_state, linear, prefixed, small_vit, timm_state

GAMMA, LS = "gamma_{}", "ls{}.gamma"
DINO: dict[str, Any] = {"registers": 4, "positions": 0, "bias": "none", "scale": GAMMA}
PE: dict[str, Any] = {"norms": ("norm_pre", "norm"), "pool": True}
SPAN14 = RotaryEmbedding(span=(14.0, 14.0), offset=1.0, columns_first=True)
SPAN16 = RotaryEmbedding(span=(16.0, 16.0))
SPAN32 = RotaryEmbedding(span=(32.0, 32.0), offset=0.0, columns_first=True)
GATED, GELU, QUICK_GELU = {"gated_mlp": True}, {"activation": "gelu"}, {"activation": "quick_gelu"}
INNER_NORMS, MEAN = {"attention_norm": True, "mlp_norm": True}, {"pool": "mean", "post_norm": False}

STATES = {
    "ViT-B/16": timm_state(768, 12, 3072),
    "ViT-H/14": timm_state(1280, 32, 5120, patch=14, grid=16),
    "DeiT III-L": timm_state(1024, 24, 4096, positions=196, scale=LS),
    "CLIP ViT-g/14, timm": timm_state(1408, 40, 6144, patch=14, grid=16, norms=("norm_pre", "norm")),
    "OpenAI CLIP L/14@336": prefixed("visual.", clip_state(1024, 24, patch=14, grid=24)) | {"logit_scale": META()},
    "open_clip bigG": prefixed("visual.", clip_state(1664, 48, patch=14, grid=16)),
    "mmaction2's CLIP encoder": prefixed("backbone.", clip_state(768, 12, post_norm=False)),
    "SigLIP so400m/14": timm_state(1152, 27, 4304, patch=14, grid=16, class_token=False, pool=True),
    "SigLIP 2 giant, by open_clip": prefixed("visual.trunk.", timm_state(1536, 40, 6144, class_token=False, pool=True))
    | {"text.x.weight": META(1)},
    "DINOv2-g": timm_state(1536, 40, 4096, patch=14, grid=37, scale=LS, gate="packed"),
    "DINOv2-g with registers": timm_state(
        1536, 40, 4096, patch=14, grid=37, positions=37 * 37, registers=4, scale=LS, gate="packed"
    ),
    "DINOv3-7B": timm_state(4096, 40, 8192, gate="split", **DINO),
    "DINOv3-H+": timm_state(1280, 32, 5120, gate="split", **DINO),
    "BEiT-L": timm_state(1024, 24, 4096, positions=0, bias="qv", scale=GAMMA, norms=("fc_norm",), relative_heads=16),
    "EVA-02-Ti": timm_state(192, 12, 512, patch=14, grid=24, bias="qv", gate="packed", norms=("fc_norm",)),
    "EVA-02-CLIP-L": timm_state(
        1024, 24, 2730, patch=14, grid=24, bias="split", gate="split", inner_norms=("attn.norm", "mlp.norm")
    ),
    "EVA-g": timm_state(1408, 40, 6144, patch=14, grid=16, bias="qv", norms=("fc_norm",)),
    "EVA-02-E": timm_state(1792, 64, 15360, patch=14, grid=16, bias="qv"),
    "PE-core-B": timm_state(768, 12, 3072, **PE),
    "PE-core-G": timm_state(1536, 50, 8960, patch=14, grid=32, class_token=False, **PE),
    "PE-lang-L": timm_state(1024, 23, 4096, patch=14, grid=32, norms=("norm_pre",), scale=GAMMA),
}
# from the papers and the released configurations: family, and fields of the architecture
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT-B/16": ("ViT", {"heads": 12, "norm_eps": 1e-6, "activation": "gelu", "pre_norm": False, "post_norm": True}),
    "ViT-H/14": ("ViT", {"heads": 16, "depth": 32, "patch_size": 14, "image_size": (224, 224)}),
    "DeiT III-L": ("DeiT III", {"heads": 16, "layer_scale": True, "class_token": True, "image_size": (224, 224)}),
    "CLIP ViT-g/14, timm": ("CLIP", {"heads": 16, "pre_norm": True, "patch_bias": False, "norm_eps": 1e-5, **GELU}),
    "OpenAI CLIP L/14@336": ("CLIP", {"heads": 16, "image_size": (336, 336), "post_norm": True, **QUICK_GELU}),
    "open_clip bigG": ("CLIP", {"heads": 16, **GELU}),
    "mmaction2's CLIP encoder": ("CLIP", {"heads": 12, "post_norm": False, **QUICK_GELU}),
    "SigLIP so400m/14": ("SigLIP", {"heads": 16, "class_token": False, "pool_heads": 16, "mlp_ratio": 4304 / 1152}),
    "SigLIP 2 giant, by open_clip": ("SigLIP", {"heads": 16, "depth": 40, "pool": "attention"}),
    "DINOv2-g": ("DINOv2", {"heads": 24, "image_size": (518, 518), "register_tokens": 0, "rotary": None, **GATED}),
    "DINOv2-g with registers": ("DINOv2", {"heads": 24, "register_tokens": 4}),
    "DINOv3-7B": ("DINOv3", {"heads": 32, "rotary": DINOV3, "position_embedding": False, "norm_eps": 1e-5, **GATED}),
    "DINOv3-H+": ("DINOv3", {"heads": 20, "pool": "class_token", **GATED}),
    "BEiT-L": ("BEiT", {"heads": 16, "relative_bias": True, "pool_norm": True, "image_size": (224, 224), **MEAN}),
    "EVA-02-Ti": ("EVA-02", {"heads": 3, "rotary": SPAN16, "mlp_norm": False, "pool": "mean", **GATED}),
    "EVA-02-CLIP-L": ("EVA-02", {"heads": 16, "rotary": SPAN16, **INNER_NORMS, "pool": "class_token"}),
    "EVA-g": ("EVA", {"heads": 16, "rotary": None, "gated_mlp": False, "norm_after": False}),
    "EVA-02-E": ("EVA", {"heads": 16, "rotary": None, "gated_mlp": False, "norm_after": True, "pool": "class_token"}),
    "PE-core-B": ("Perception Encoder", {"heads": 12, "rotary": SPAN14, "pool_heads": 8, "pool": "attention"}),
    "PE-core-G": ("Perception Encoder", {"heads": 16, "rotary": SPAN32, "class_token": False}),
    "PE-lang-L": ("Perception Encoder", {"heads": 16, "post_norm": False, "pool": "class_token"}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_by_their_keys_and_shapes(name: str) -> None:
    family, expected = PUBLISHED[name]
    image = read_image_model(STATES[name])
    assert image.family == family
    assert {field: getattr(image.config, field) for field in expected} == expected
    assert any("heads" in line for line in image.report) == ("BEiT" not in name)  # its biases tell its heads
    assert_fits(image)


def test_of_several_encoders_the_one_that_its_authors_evaluate() -> None:
    online, momentum = small_vit(), small_vit(patch=4)
    moco = prefixed("module.momentum_encoder.", momentum) | prefixed("module.base_encoder.", online)
    image = read_image_model(moco, heads=2)
    assert (image.family, image.config.patch_size) == ("MoCo v3", 2)
    dino = prefixed("student.backbone.", momentum) | prefixed("teacher.backbone.", online)
    dino |= {"teacher.head.last_layer.weight_v": torch.ones(1)}
    image = read_image_model(dino, heads=2)
    assert (image.family, image.config.patch_size) == ("DINO", 2)
    assert "student.backbone" in image.report[-1]


def test_what_a_file_holds_besides_tells_families_of_one_architecture() -> None:
    mae = small_vit() | {"mask_token": torch.ones(1, 1, 8), "decoder_embed.weight": torch.ones(4, 8)}
    mae |= {"decoder_blocks.0.norm1.weight": torch.ones(4), "decoder_pos_embed": torch.ones(1, 5, 4)}
    image = read_image_model(mae, heads=2)
    assert image.family == "MAE"
    assert image.mean == (0.485, 0.456, 0.406)
    assert read_image_model(small_vit() | linear("head", 5, 8, rand=torch.randn), heads=2).family == "ViT"


def test_moco_small_has_twelve_heads() -> None:
    assert read_image_model(prefixed("base_encoder.", timm_state(384, 2, 1536))).config.heads == 12
    assert read_image_model(timm_state(384, 2, 1536)).config.heads == 6


@pytest.mark.parametrize(
    ("state", "options", "message"),
    [
        ({"conv1.weight": META(64, 3, 7, 7), "layer1.0.conv1.weight": META(64, 64, 1, 1)}, {}, "no image transformer"),
        (small_vit(positions=0), {"heads": 2}, "no positions: neither an embedding nor relative biases"),
        (small_vit(positions=0, registers=2, class_token=False), {"heads": 2}, "no positions"),
        (small_vit(positions=8), {"heads": 2}, "8 position embeddings are no square grid; give image_size"),
        (small_vit(), {"heads": 3}, "width 8 is not divisible by heads 3"),
        (small_vit(class_token=False), {"heads": 2, "pool": "class_token"}, "needs a class token"),
        (small_vit(), {"heads": 2, "wings": 2}, "wings"),
        (
            {k: v for k, v in small_vit().items() if ".mlp.fc2" not in k},
            {},
            "backbone.blocks.0.mlp.fc2.weight (as this package calls",
        ),
        (small_vit() | {"rope.freqs": META(2, 4)}, {}, "no place for rope.freqs"),  # learned, unlike EVA's
        (small_vit() | {"blocks.0.attn.gate.weight": META(8, 8)}, {}, "no place for blocks.0.attn.gate.weight"),
    ],
)
def test_what_cannot_be_understood_is_refused(state: StateDict, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=r"^a file: ") as error:
        read_image_model(state, source="a file", **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_norms_behind_the_layers_are_told_by_the_name() -> None:
    hints = hints_from_timm_name("vit_base_patch16_rpn_224")
    assert read_image_model(small_vit(), hints, heads=2).config.norm_after
    assert not read_image_model(small_vit(), heads=2).config.norm_after


def test_rotary_positions_that_only_the_name_tells_are_refused_and_can_be_given() -> None:
    hints = hints_from_timm_name("vit_small_patch16_rope_ape_224")
    with pytest.raises(CheckpointError, match="rotary positions of an unknown kind; give rotary"):
        read_image_model(small_vit(positions=4, scale=GAMMA), hints, heads=2)
    given = RotaryEmbedding(span=(14.0, 14.0))
    assert read_image_model(small_vit(positions=4, scale=GAMMA), hints, heads=2, rotary=given).config.rotary == given


def test_options_come_before_hints_and_hints_before_what_is_usual() -> None:
    hints = Hints(heads=4, activation="gelu_tanh", pool="mean", norm_eps=0.5, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    image = read_image_model(small_vit(), hints, heads=2)
    config = image.config
    assert (config.heads, config.activation, config.pool, config.norm_eps) == (2, "gelu_tanh", "mean", 0.5)
    assert image.mean == (0.1, 0.2, 0.3)
    assert len(image.report) == 1
    # a configuration that asks for what the tensors cannot do is not followed
    assert read_image_model(small_vit(), Hints(heads=2, pool="attention")).config.pool == "class_token"
    assert read_image_model(small_vit(), Hints(heads=2, image_size=(224, 224))).config.image_size == (4, 4)


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
