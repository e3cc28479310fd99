"""Which family a state dict is of, its architecture, and the tensors under our names."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from uniformerv2.errors import CheckpointError
from uniformerv2.model.config import RotaryEmbedding
from uniformerv2.weights.image_hints import Hints, hints_from_timm_name
from uniformerv2.weights.image_recognise import read_image_model
from uniformerv2.weights.key_names import StateDict
from weights.samples import META, assert_fits, clip_state, linear, prefixed, small_vit, timm_state

GAMMA, LS = "gamma_{}", "ls{}.gamma"
DINOV3: dict[str, Any] = {"registers": 4, "positions": 0, "bias": "none", "scale": GAMMA}
PE: dict[str, Any] = {"norms": ("norm_pre", "norm"), "pool": True}
TURN = 4 * math.pi

# from the papers and the released configurations: state, family, heads, and other fields of the architecture
PUBLISHED: dict[str, tuple[StateDict, str, int, dict[str, Any]]] = {
    "ViT-B/16": (
        timm_state(768, 12, 3072),
        "ViT",
        12,
        {"image_size": (224, 224), "post_norm": True, "pre_norm": False, "activation": "gelu", "norm_eps": 1e-6},
    ),
    "ViT-H/14": (timm_state(1280, 32, 5120, patch=14, grid=16), "ViT", 16, {"depth": 32, "patch_size": 14}),
    "DeiT III-L": (
        timm_state(1024, 24, 4096, positions=196, scale=LS),
        "DeiT III",
        16,
        {"layer_scale": True, "class_token": True, "image_size": (224, 224)},
    ),
    "CLIP ViT-g/14, timm": (
        timm_state(1408, 40, 6144, patch=14, grid=16, norms=("norm_pre", "norm")),
        "CLIP",
        16,
        {"pre_norm": True, "patch_bias": False, "norm_eps": 1e-5, "activation": "gelu"},
    ),
    "OpenAI CLIP L/14@336": (
        prefixed("visual.", clip_state(1024, 24, patch=14, grid=24)) | {"logit_scale": META()},
        "CLIP",
        16,
        {"activation": "quick_gelu", "image_size": (336, 336), "post_norm": True},
    ),
    "open_clip bigG": (
        prefixed("visual.", clip_state(1664, 48, patch=14, grid=16)),
        "CLIP",
        16,
        {"activation": "gelu"},
    ),
    "mmaction2's CLIP encoder": (
        prefixed("backbone.", clip_state(768, 12, post_norm=False)),
        "CLIP",
        12,
        {"post_norm": False, "activation": "quick_gelu"},
    ),
    "SigLIP so400m/14": (
        timm_state(1152, 27, 4304, patch=14, grid=16, class_token=False, pool=True),
        "SigLIP",
        16,
        {"class_token": False, "pool": "attention", "pool_heads": 16, "mlp_ratio": 4304 / 1152},
    ),
    "SigLIP 2 giant, by open_clip": (
        prefixed("visual.trunk.", timm_state(1536, 40, 6144, class_token=False, pool=True))
        | {"text.x.weight": META(1)},
        "SigLIP",
        16,
        {"depth": 40},
    ),
    "DINOv2-g": (
        timm_state(1536, 40, 4096, patch=14, grid=37, scale=LS, gate="packed"),
        "DINOv2",
        24,
        {"gated_mlp": True, "image_size": (518, 518), "register_tokens": 0, "rotary": None},
    ),
    "DINOv2-g with registers": (
        timm_state(1536, 40, 4096, patch=14, grid=37, positions=37 * 37, registers=4, scale=LS, gate="packed"),
        "DINOv2",
        24,
        {"register_tokens": 4},
    ),
    "DINOv3-7B": (
        timm_state(4096, 40, 8192, gate="split", **DINOV3),
        "DINOv3",
        32,
        {
            "rotary": RotaryEmbedding(100.0, (TURN, TURN), offset=0.5, start=-TURN / 2, halves=True),
            "position_embedding": False,
            "norm_eps": 1e-5,
            "gated_mlp": True,
            "pool": "class_token",
        },
    ),
    "DINOv3-H+": (timm_state(1280, 32, 5120, gate="split", **DINOV3), "DINOv3", 20, {"gated_mlp": True}),
    "BEiT-L": (
        timm_state(1024, 24, 4096, positions=0, bias="qv", scale=GAMMA, norms=("fc_norm",), relative_heads=16),
        "BEiT",
        16,
        {"relative_bias": True, "pool": "mean", "pool_norm": True, "post_norm": False, "image_size": (224, 224)},
    ),
    "EVA-02-Ti": (
        timm_state(192, 12, 512, patch=14, grid=24, bias="qv", gate="packed", norms=("fc_norm",)),
        "EVA-02",
        3,
        {"rotary": RotaryEmbedding(span=(16.0, 16.0)), "mlp_norm": False, "pool": "mean", "gated_mlp": True},
    ),
    "EVA-02-CLIP-L": (
        timm_state(
            1024, 24, 2730, patch=14, grid=24, bias="split", gate="split", inner_norms=("attn.norm", "mlp.norm")
        ),
        "EVA-02",
        16,
        {"rotary": RotaryEmbedding(span=(16.0, 16.0)), "attention_norm": True, "mlp_norm": True, "pool": "class_token"},
    ),
    "EVA-g": (
        timm_state(1408, 40, 6144, patch=14, grid=16, bias="qv", norms=("fc_norm",)),
        "EVA",
        16,
        {"rotary": None, "gated_mlp": False, "norm_after": False},
    ),
    "EVA-02-E": (
        timm_state(1792, 64, 15360, patch=14, grid=16, bias="qv"),
        "EVA",
        16,
        {"rotary": None, "gated_mlp": False, "norm_after": True, "pool": "class_token"},
    ),
    "PE-core-B": (
        timm_state(768, 12, 3072, **PE),
        "Perception Encoder",
        12,
        {
            "rotary": RotaryEmbedding(span=(14.0, 14.0), offset=1.0, columns_first=True),
            "pool_heads": 8,
            "pool": "attention",
        },
    ),
    "PE-core-G": (
        timm_state(1536, 50, 8960, patch=14, grid=32, class_token=False, **PE),
        "Perception Encoder",
        16,
        {"rotary": RotaryEmbedding(span=(32.0, 32.0), offset=0.0, columns_first=True), "class_token": False},
    ),
    "PE-lang-L": (
        timm_state(1024, 23, 4096, patch=14, grid=32, norms=("norm_pre",), scale=GAMMA),
        "Perception Encoder",
        16,
        {"post_norm": False, "pool": "class_token"},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_by_their_keys_and_shapes(name: str) -> None:
    state, family, heads, expected = PUBLISHED[name]
    image = read_image_model(state)
    assert (image.family, image.config.heads) == (family, heads)
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
